"""Out again: directories that transformers loads with `from_pretrained`, and servers built on it serve."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfusion.config.model import ModelConfig
from jaxfusion.errors import UserError
from jaxfusion.models.int8 import dequantise
from jaxfusion.models.lora import merge
from jaxfusion.models.tower import Tower
from jaxfusion.models.vlm import Model, Params
from jaxfusion.pretrained import torchvision
from jaxfusion.pretrained.families import FAMILIES
from jaxfusion.pretrained.joined import llava
from jaxfusion.pretrained.processor import as_loaded, processor_files
from jaxfusion.pretrained.table import Row
from jaxfusion.pretrained.write import write_params
from jaxfusion.pretrained.written import check_same, tower_alone, with_dtype, with_vocabulary, without_pooling_head
from jaxfusion.text.pretrained import OWN, PretrainedTokenizer
from jaxfusion.text.tokenizer import Tokenizer

# What is written of a checkpoint whose pooler or head is not read: transformers would make up those weights.
WITHOUT_HEAD = {
    "bert": "BertModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "dinov2": "Dinov2Model",
    "vit": "ViTModel",
    "resnet": "ResNetModel",
}


class Plan(NamedTuple):
    """What a directory will hold. config: config.json, empty where there is none. rows: of the whole parameter tree.
    files: name -> content. tokenizer: likewise, of the checkpoint that it came from. joined: of several checkpoints."""

    config: dict[str, Any]
    rows: Sequence[Row]
    files: dict[str, bytes]
    tokenizer: dict[str, bytes]
    joined: bool = False


def save_pretrained(model: Model | Tower, params: Params, directory: str | Path, *, dtype: str | None = None) -> None:
    """Writes a directory that transformers' `from_pretrained` loads.

    A model or tower that came from a checkpoint is written in that checkpoint's architecture, without a head that is
    not read; one that was joined from a vision tower and a language model as `LlavaForConditionalGeneration`. A tower
    of torchvision's is written as its weights come: a bare model.safetensors under torchvision's names. Adapters are
    merged into the weights, and kernels in 8 bits written as floats.
    dtype: "float32" or "bfloat16"; None keeps the parameters' own, or where they have several the model's.
    Raises UserError, before anything is written, for what neither can express, naming what that is.
    """
    planned = plan(model)
    directory = new_directory(directory)
    wanted = np.dtype(jnp.dtype(dtype)) if dtype else _dtype_of(model, params)
    if isinstance(model, Model):
        params = dequantise(params, wanted)
        if model.config.lora:  # in the wider of the two dtypes, or what was learned would be rounded to the base's
            params = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, wanted)), params)
        params = merge(params, model.config.lora)
    try:
        for name, content in planned.files.items():
            (directory / name).write_bytes(content)
        _write_tokenizer(getattr(model, "tokenizer", None), directory, planned)
        write_params(directory, planned.rows, params, wanted)
        # Last: without it nobody takes the directory for a checkpoint, and what stops before here leaves none.
        if planned.config:
            config = with_dtype(planned.config, wanted.name)
            (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{directory}: cannot write there ({error.strerror or error}); choose another one") from error


def _dtype_of(model: Model | Tower, params: Params) -> np.dtype:
    own = {leaf.dtype for leaf in jax.tree.leaves(params) if leaf.dtype != jnp.int8}
    usual = model.config.dtype if isinstance(model, Model) else model.dtype
    return np.dtype(own.pop() if len(own) == 1 else jnp.dtype(usual))


def _write_tokenizer(tokenizer: Tokenizer | None, directory: Path, planned: Plan) -> None:
    """Of a model that has none, such as a tower, what the checkpoint has."""
    if isinstance(tokenizer, PretrainedTokenizer):
        config = json.dumps(planned.config).encode()
        tokenizer.export(directory, planned.tokenizer | {"config.json": config}, of_parts=planned.joined)
    elif tokenizer is not None:
        tokenizer.save(directory)
    else:
        for name, content in planned.tokenizer.items():
            (directory / name).write_bytes(content)


def new_directory(path: str | Path) -> Path:
    """Made, where it is not there. Raises UserError where something is in it already, or it cannot be made."""
    directory = Path(path)
    if directory.is_dir() and any(directory.iterdir()):
        raise UserError(f"{directory}: it is not empty; choose another directory for the export")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory}: cannot write there ({error.strerror or error}); choose another one") from error
    return directory


def plan(model: Model | Tower) -> Plan:
    """The architecture that a model is written in. Raises UserError where there is none."""
    rooms = model.origin.rooms if model.origin else {}
    if isinstance(model, Tower) and not rooms:
        raise UserError("export: the tower came from no checkpoint, whose architecture it could have; load one")
    if isinstance(model, Tower) or set(rooms) == {"model"}:
        return _same(model, *rooms.values())
    if set(rooms) == {"decoder"} and model.config.vision is None:
        return _same(model, *rooms.values())
    if set(rooms) == {"decoder", "vision"}:
        config, files = llava(model, rooms)
        return Plan(config, FAMILIES["llava"].table(model.config), files, _of_tokenizer(rooms["decoder"]), joined=True)
    raise UserError(
        "export: transformers has no architecture for a model whose decoder"
        f"{'' if model.config.vision is None else ' and vision'} did not come from a checkpoint; "
        "keep the workdir, which jaxfusion.load reads"
    )


def _same(model: Model | Tower, files: Mapping[str, bytes]) -> Plan:
    """The checkpoint's own architecture, or what of it was read; only the vocabulary may have grown."""
    theirs = without_pooling_head(tower_alone(json.loads(files["config.json"])))
    config = model.config
    if theirs["model_type"] in WITHOUT_HEAD:
        theirs["architectures"] = [WITHOUT_HEAD[theirs["model_type"]]]
    if isinstance(config, ModelConfig):
        theirs = with_vocabulary(theirs, config.text_embedding.vocab_size)
    family = FAMILIES[theirs["model_type"]]
    pictures = processor_files(files, config.vision if isinstance(config, ModelConfig) else config, family.model_type)
    check_same(as_loaded(family.read_config(theirs), theirs, pictures), config, family.model_type)
    if family.model_type in torchvision.MODEL_TYPES:
        return Plan({}, family.table(config), {}, {})
    others = {n: c for n, c in files.items() if n not in OWN and n != "config.json"}
    return Plan(theirs, family.table(config), others | pictures, _of_tokenizer(files))


def _of_tokenizer(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name in OWN}
