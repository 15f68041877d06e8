"""The config.json that is written: a checkpoint's, of what was read of it, and compared with the model's own."""

from dataclasses import replace
from typing import Any

from jaxfusion.config import to_dict
from jaxfusion.config.model import ModelConfig
from jaxfusion.errors import UserError

# How the same parameters are computed, which their config.json has no word for; adapters are merged.
COMPUTED = {"dtype": "float32", "attention": "auto", "lora": ()}


def check_same(theirs: Any, ours: Any, model_type: str) -> None:
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
    names = {"scan_layers": None, "dropout": 0.0}
    return replace(config, **{k: v for k, v in names.items() if hasattr(config, k)}) if config is not None else None


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, item in to_dict(value).items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat


def with_vocabulary(theirs: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """Their config.json with a vocabulary of this size, in a whole model where its text is described."""
    if "text_config" in theirs:
        return theirs | {"text_config": theirs["text_config"] | {"vocab_size": vocab_size}}
    return theirs | {"vocab_size": vocab_size}


def tower_alone(theirs: dict[str, Any]) -> dict[str, Any]:
    """Of CLIP or SigLIP with a text tower, which is not read, the vision tower's part; any other config as it is."""
    if theirs["model_type"] not in ("clip", "siglip"):
        return theirs
    settings = theirs.get("vision_config_dict")  # in old files of CLIP; see clip.py
    settings = theirs.get("vision_config") or {} if settings is None else settings
    return settings | {"model_type": f"{theirs['model_type']}_vision_model"}


def without_pooling_head(theirs: dict[str, Any]) -> dict[str, Any]:
    """SigLIP's, which nothing here reads: transformers would look for its weights, and make up those it misses."""
    if theirs.get("model_type") == "siglip_vision_model":
        return theirs | {"vision_use_head": False}
    if "vision_config" in theirs:
        return theirs | {"vision_config": without_pooling_head(theirs["vision_config"])}
    return theirs


def with_dtype(theirs: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Transformers 5 writes "dtype"; "torch_dtype" is what readers before it look for."""
    theirs = {key: value for key, value in theirs.items() if key not in ("dtype", "torch_dtype")}
    return theirs | {"dtype": dtype, "torch_dtype": dtype}
