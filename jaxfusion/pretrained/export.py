"""Out again: directories that transformers loads with `from_pretrained`, and servers built on it serve."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxfusion.config import to_dict
from jaxfusion.config.model import (
    MLPProjectorConfig,
    ModelConfig,
    PlaceFusionConfig,
    TransformerDecoderConfig,
    Vision,
    ViTConfig,
)
from jaxfusion.errors import UserError
from jaxfusion.models.lora import merge
from jaxfusion.models.tower import Tower
from jaxfusion.models.vlm import Model, Params
from jaxfusion.pretrained import torchvision
from jaxfusion.pretrained.families import FAMILIES
from jaxfusion.pretrained.family import Family
from jaxfusion.pretrained.table import Row, flatten
from jaxfusion.pretrained.write import write_params

# What is written of a checkpoint whose pooler or head is not read: transformers would make up those weights.
WITHOUT_HEAD = {
    "bert": "BertModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "dinov2": "Dinov2Model",
    "vit": "ViTModel",
    "resnet": "ResNetModel",
}

# How the same parameters are computed, which their config.json has no word for; adapters are merged.
COMPUTED = {"dtype": "float32", "attention": "auto", "lora": ()}


class Plan(NamedTuple):
    """What a directory will hold. config: config.json, empty where there is none. rows: of the whole parameter tree.
    files: name -> content."""

    config: dict[str, Any]
    rows: Sequence[Row]
    files: dict[str, bytes]


def save_pretrained(model: Model | Tower, params: Params, directory: str | Path, *, dtype: str | None = None) -> None:
    """Writes a directory that transformers' `from_pretrained` loads.

    A model or tower that came from a checkpoint is written in that checkpoint's architecture, without a head that is
    not read; one that was joined from a vision tower and a language model as `LlavaForConditionalGeneration`. A tower
    of torchvision's is written as its weights come: a bare model.safetensors under torchvision's names. Adapters are
    merged into the weights.
    dtype: "float32" or "bfloat16"; None keeps the parameters' own.
    Raises UserError, before anything is written, for what neither can express, naming what that is.
    """
    planned = plan(model)
    directory = new_directory(directory)
    if isinstance(model, Model):
        params = merge(params, model.config.lora)
    leaves = flatten(params)
    wanted = np.dtype(jnp.dtype(dtype)) if dtype else np.dtype(leaves[planned.rows[0].paths[0]].dtype)
    try:
        for name, content in planned.files.items():
            (directory / name).write_bytes(content)
        if isinstance(model, Model) and model.tokenizer is not None:
            model.tokenizer.save(directory)
        write_params(directory, planned.rows, params, wanted)
        # Last: without it nobody takes the directory for a checkpoint, and what stops before here leaves none.
        if planned.config:
            config = _with_dtype(planned.config, wanted.name)
            (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{directory}: cannot write there ({error.strerror or error}); choose another one") from error


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
        return _llava(model, rooms)
    raise UserError(
        "export: transformers has no architecture for a model whose decoder"
        f"{'' if model.config.vision is None else ' and vision'} did not come from a checkpoint; "
        "keep the workdir, which jaxfusion.load reads"
    )


def _same(model: Model | Tower, files: Mapping[str, bytes]) -> Plan:
    """The checkpoint's own architecture, or what of it was read; only the vocabulary may have grown."""
    theirs = _without_pooling_head(_tower_alone(json.loads(files["config.json"])))
    config = model.config
    if theirs["model_type"] in WITHOUT_HEAD:
        theirs["architectures"] = [WITHOUT_HEAD[theirs["model_type"]]]
    if isinstance(config, ModelConfig):
        theirs = _with_vocabulary(theirs, config.text_embedding.vocab_size)
    family = FAMILIES[theirs["model_type"]]
    _check_same(_read(family, theirs, model.pixels), config, theirs["model_type"])
    if theirs["model_type"] in torchvision.MODEL_TYPES:
        return Plan({}, family.table(config), {})
    return Plan(theirs, family.table(config), {n: c for n, c in files.items() if n != "config.json"})


def _llava(model: Model, rooms: Mapping[str, Mapping[str, bytes]]) -> Plan:
    config = model.config
    _check_llava(config)
    text, vision = (json.loads(rooms[room]["config.json"]) for room in ("decoder", "vision"))
    text = _with_vocabulary(text, config.text_embedding.vocab_size)
    theirs = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": text,
        "vision_config": _without_pooling_head(_tower_alone(vision)),
        "image_token_index": model.tokenizer.image_id,
        "image_seq_length": config.tokens_per_image,
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": config.decoder.tie_embeddings,
        "vision_feature_layer": config.vision.feature_layer,
        "vision_feature_select_strategy": "default" if config.vision.class_token else "full",
    }
    family = FAMILIES["llava"]
    # Of the towers' classes in transformers, DINOv2's alone resizes its table of positions without being asked.
    pixels = model.pixels if config.vision.layer_scale else None
    _check_same(_read(family, theirs, pixels), config, "llava")
    files = {n: c for n, c in rooms["decoder"].items() if n == "generation_config.json"}
    files |= {n: c for n, c in rooms["vision"].items() if n == "preprocessor_config.json"}
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": model.tokenizer.image_token,
        "patch_size": config.vision.patch_size,
        "vision_feature_select_strategy": theirs["vision_feature_select_strategy"],
        "num_additional_image_tokens": int(config.vision.class_token),
    }
    files["processor_config.json"] = json.dumps(processor, indent=2).encode()
    return Plan(theirs, family.table(config), files)


def _check_llava(config: ModelConfig) -> None:
    """Raises UserError for what `LlavaForConditionalGeneration` has no word for."""

    def refuse(field: str, why: str) -> None:
        raise UserError(f"export: config.model.{field}: LLaVA's architecture {why}; keep the workdir, or train anew so")

    if not isinstance(config.vision, ViTConfig):
        refuse("vision", "takes a Vision Transformer")
    if config.vision.feature_layer >= 0:
        refuse("vision.feature_layer", "reads hidden states before the final norm: -1, or -2 for the last but one")
    if not isinstance(config.projector, MLPProjectorConfig) or config.projector.hidden_width not in (0, config.width):
        refuse("projector", "has an MLP of the text model's width")
    if not isinstance(config.fusion, PlaceFusionConfig):
        refuse("fusion", "places visual tokens in the sequence")
    if config.encoder is not None:
        refuse("encoder", "has none")
    if not isinstance(config.decoder, TransformerDecoderConfig) or config.decoder.prefix_lm:
        refuse("decoder", "is causal")


def _read(family: Family, theirs: dict[str, Any], pixels: Any) -> ModelConfig | Vision:
    """What loading the directory will make of it: where there are pixels, a tower for images of their size."""
    from jaxfusion.pretrained.pixels import fit  # which needs Pillow

    return fit(family.read_config(theirs), pixels)


def _check_same(theirs: Any, ours: Any, model_type: str) -> None:
    """Raises UserError where the architecture that would be written is not the one that was trained."""
    theirs, ours = _flat(_stripped(theirs)), _flat(_stripped(ours))
    for key in sorted(theirs.keys() | ours.keys()):
        if theirs.get(key) != ours.get(key):
            raise UserError(
                f"export: config.model.{key} is {ours.get(key)!r}, and the architecture {model_type!r} says "
                f"{theirs.get(key)!r}; keep the workdir, which jaxfusion.load reads"
            )


def _stripped(config: Any) -> Any:
    """Without settings that change how a model is computed or trained, but not what it is."""
    if isinstance(config, ModelConfig):
        text = config.text_embedding
        text = replace(text, max_positions=0) if text.positions != "learned" else text
        return replace(
            config,
            **COMPUTED,
            text_embedding=text,
            vision=_stripped(config.vision),
            encoder=_stripped(config.encoder),
            decoder=_stripped(config.decoder),
        )
    # Mean and deviation of pixels stand in the image processor's file.
    names = {"scan_layers": True, "dropout": 0.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    return replace(config, **{k: v for k, v in names.items() if hasattr(config, k)}) if config is not None else None


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, item in to_dict(value).items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat


def _with_vocabulary(theirs: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """Their config.json with a vocabulary of this size, in a whole model where its text is described."""
    if "text_config" in theirs:
        return theirs | {"text_config": theirs["text_config"] | {"vocab_size": vocab_size}}
    return theirs | {"vocab_size": vocab_size}


def _tower_alone(theirs: dict[str, Any]) -> dict[str, Any]:
    """Of CLIP or SigLIP with a text tower, which is not read, the vision tower's part; any other config as it is."""
    if theirs["model_type"] not in ("clip", "siglip"):
        return theirs
    settings = theirs.get("vision_config_dict")  # in old files of CLIP; see clip.py
    settings = theirs.get("vision_config") or {} if settings is None else settings
    return settings | {"model_type": f"{theirs['model_type']}_vision_model"}


def _without_pooling_head(theirs: dict[str, Any]) -> dict[str, Any]:
    """SigLIP's, which nothing here reads: transformers would look for its weights, and make up those it misses."""
    if theirs.get("model_type") == "siglip_vision_model":
        return theirs | {"vision_use_head": False}
    if "vision_config" in theirs:
        return theirs | {"vision_config": _without_pooling_head(theirs["vision_config"])}
    return theirs


def _with_dtype(theirs: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Transformers 5 writes "dtype"; "torch_dtype" is what readers before it look for."""
    theirs = {key: value for key, value in theirs.items() if key not in ("dtype", "torch_dtype")}
    return theirs | {"dtype": dtype, "torch_dtype": dtype}
