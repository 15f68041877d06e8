"""Adapters as files of PEFT (Mangrulkar et al. 2022), which transformers and vLLM put on the checkpoint they belong to.

Theirs are two matrices a linear layer: `lora_A.weight`, [rank, inputs], and `lora_B.weight`, [outputs, rank].
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxfusion.config.model import LoraConfig
from jaxfusion.errors import UserError
from jaxfusion.models.lora import adapter_of, is_adapter
from jaxfusion.models.vlm import Model, Params
from jaxfusion.pretrained.export import new_directory, plan
from jaxfusion.pretrained.table import Row, flatten, tensors
from jaxfusion.pretrained.whole import MODULES
from jaxfusion.pretrained.write import write_params

CONFIG, STEM = "adapter_config.json", "adapter_model"


def save_adapters(model: Model, params: Params, directory: str | Path, *, base: str | None = None) -> None:
    """Writes the adapters of a model that came from one checkpoint, for `PeftModel.from_pretrained(checkpoint, ...)`.

    Nothing but the adapters is written: what else was trained is lost, and `save_pretrained`, which merges them into
    the weights, keeps it.
    base: what `base_model_name_or_path` says, the checkpoint's hub id or path.
    Raises UserError where there are none, or where PEFT has no name for one.
    """
    adapters = model.config.lora
    if not adapters:
        raise UserError("export: the model has no adapters (config.model.lora); export it without --adapters")
    if not model.origin or set(model.origin.rooms) != {"model"}:
        raise UserError(
            "export: adapters alone need one checkpoint that they belong to, and this model was put together from "
            "several or none; export it merged"
        )
    planned = plan(model)
    leaves = flatten(params)
    rows, config_of = [], {}
    for row in planned.rows:
        layer, _, name = row.paths[0].rpartition("/")
        if name != "kernel" or f"{layer}/lora_a" not in leaves:
            continue
        if len(row.paths) > 1:
            raise UserError(f"export: {row.name} is one matrix, and has an adapter for each part; export it merged")
        rows += _rows(row, layer)
        config_of |= {tensor.name: adapter_of(layer, adapters) for tensor in tensors([row], leaves)}
    left = {path for path in leaves if is_adapter(path)} - {path for row in rows for path in row.paths}
    if left:
        raise UserError(f"export: {min(left)}: the checkpoint has no such layer; export it merged")
    directory = new_directory(directory)
    write_params(directory, rows, params, jnp.float32, stem=STEM)
    ranks = {_module(name): adapter for name, adapter in config_of.items()}
    text = json.dumps(_config(ranks, planned.config, base), indent=2)
    (directory / CONFIG).write_text(text + "\n", encoding="utf-8")


def _rows(row: Row, layer: str) -> list[Row]:
    """Of a layer's two matrices, whose axes are the kernel's."""
    theirs, ours = (row.pattern or "i o -> i o").split("->")
    groups = re.findall(r"\([^)]*\)|\w+", theirs)
    axes = [group.strip("()").split() for group in groups]
    first = 0 if ours.split()[: len(axes[0])] == axes[0] else 1  # inputs come first in ours, and may in theirs
    inputs, outputs = axes[first], axes[1 - first]
    name = f"base_model.model.{_module(row.name)}"
    return [
        Row(f"{name}.lora_A.weight", f"{layer}/lora_a", f"r {groups[first]} -> {' '.join(inputs)} r", row.sizes),
        Row(f"{name}.lora_B.weight", f"{layer}/lora_b", f"{groups[1 - first]} r -> r {' '.join(outputs)}", row.sizes),
    ]


def _module(name: str) -> str:
    """The layer's path in transformers' model, of which the tensor has another name in the files of whole models."""
    for prefix, module in MODULES:
        if name.startswith(prefix):
            name = module + name.removeprefix(prefix)
            break
    return name.removesuffix(".weight")


def _config(adapters: Mapping[str, LoraConfig], theirs: Mapping[str, Any], base: str | None) -> dict[str, Any]:
    """adapter_config.json. adapters: by module."""
    usual = next(iter(adapters.values()))
    causal = theirs["architectures"][0].endswith("ForCausalLM") if theirs.get("architectures") else False
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if causal else None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": usual.rank,
        "lora_alpha": usual.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": theirs["model_type"] == "gpt2",
        "use_rslora": False,
        "target_modules": list(adapters),
        "rank_pattern": {name: lora.rank for name, lora in adapters.items() if lora.rank != usual.rank},
        "alpha_pattern": {name: lora.alpha for name, lora in adapters.items() if lora.alpha != usual.alpha},
    }
