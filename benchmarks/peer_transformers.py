"""Transformers' model of a preset's config.json: eager, or compiled by torch.compile; attention by torch's SDPA."""

from copy import deepcopy
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.padded import Padded, pad
from benchmarks.peer import DEVICE, Peer
from benchmarks.presets import Preset
from benchmarks.synthetic import synthetic_batch
from benchmarks.weights import random_params
from jaxfusion.errors import UserError
from jaxfusion.models.vlm import build
from jaxfusion.pretrained.families import FAMILIES
from jaxfusion.pretrained.table import flatten, tensors, to_theirs
from jaxfusion.pretrained.whole import MODULES


def make_peer(preset: Preset, *, compiled: bool) -> Peer:
    config, model = make_model(preset)
    model = _freeze(model, fill(model, preset), preset)
    if preset.remat != "none":  # the one choice there is: a layer is computed again as a whole
        model.gradient_checkpointing_enable()
    vision = preset.model.vision
    padded = pad(synthetic_batch(preset), config.image_token_id, shifted=True, mean=vision.mean, std=vision.std)
    inputs = {name: value.to(DEVICE) for name, value in inputs_of(padded, config.model_type).items()}
    peer = Peer(preset, lambda model: model(**inputs, use_cache=False).loss, model, padded.tokens.shape)
    if compiled:
        peer.model = torch.compile(model)
    return peer


def make_model(preset: Preset) -> tuple[Any, torch.nn.Module]:
    """Its configuration, and the model on the device with weights of its own."""
    settings = deepcopy(preset.checkpoint)
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    with DEVICE:
        return config, transformers.AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")


def fill(model: torch.nn.Module, preset: Preset) -> dict[str, str]:
    """Puts our weights into the model; the path in ours of each of its parameters. What is left out is not used."""
    leaves = flatten(random_params(build(preset.model)))
    parameters, paths = dict(model.named_parameters()), {}
    for tensor in tensors(FAMILIES[preset.checkpoint["model_type"]].table(preset.model), leaves):
        old, new = next((names for names in MODULES if tensor.name.startswith(names[0])), ("", ""))
        name = new + tensor.name.removeprefix(old)
        ours = [leaves[path] if tensor.layer is None else leaves[path][tensor.layer] for path in tensor.row.paths]
        with torch.no_grad():
            parameters[name].copy_(torch.from_numpy(np.ascontiguousarray(to_theirs(tensor.row, ours))))
        paths[name] = tensor.row.paths[0]
    return paths


def _freeze(model: torch.nn.Module, paths: dict[str, str], preset: Preset) -> torch.nn.Module:
    """What does not train gets no gradient and is kept in the dtype of the computation; adapters are PEFT's."""
    dtype = getattr(torch, preset.model.dtype)
    for name, parameter in model.named_parameters():
        trains = name in paths and any(fnmatchcase(paths[name], glob) for glob in preset.trainable)
        if not trains:
            parameter.requires_grad_(False)
            parameter.data = parameter.data.to(dtype)
    if not preset.model.lora:
        return model
    try:
        import peft
    except ModuleNotFoundError:
        raise UserError("--peer: adapters in transformers are PEFT's; pip install peft") from None
    (adapter,) = preset.model.lora
    targets = r".*language_model\.layers\..*(q|k|v|o|gate|up|down)_proj"
    return peft.get_peft_model(
        model, peft.LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=targets, lora_dropout=0.0)
    )


def inputs_of(padded: Padded, model_type: str) -> dict[str, torch.Tensor]:
    """As the family's processor and a padding collator give them."""
    pixels = torch.from_numpy(padded.images).permute(0, 1, 4, 2, 3).contiguous()
    inputs = {
        "input_ids": torch.from_numpy(padded.tokens),
        "attention_mask": torch.from_numpy(padded.real).long(),
        "labels": torch.from_numpy(padded.labels),
        "pixel_values": pixels if model_type == "idefics3" else pixels.flatten(0, 1),
    }
    if model_type == "paligemma":
        inputs["token_type_ids"] = torch.from_numpy(~padded.prompt).long()
    return inputs
