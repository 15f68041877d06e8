"""Checkpoints in a config: name them as `model.vision` and `model.decoder`, and all else follows."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxfusion.config import to_dict
from jaxfusion.config.model import ModelConfig, Vision, ViTConfig
from jaxfusion.config.presets import PRESETS
from jaxfusion.errors import UserError
from jaxfusion.pretrained.checkpoint import family_of, open_checkpoint
from jaxfusion.pretrained.families import FAMILIES
from jaxfusion.pretrained.family import Family
from jaxfusion.pretrained.pixels import fit, read_pixels
from jaxfusion.pretrained.runs import room_config
from jaxfusion.workdir import is_run

ROOMS = ("vision", "encoder", "decoder")


def expand(values: dict[str, Any]) -> dict[str, Any]:
    """A config's dict with the settings of the checkpoints that it names in their place, and their names under
    `pretrained`. A dict that names none comes back as it is, and so does one that has been through here before.

    `model = CHECKPOINT` takes a whole model or a language model, and so does `model = {"checkpoint": CHECKPOINT, ...}`
    with settings that are put over its own, such as dtype and lora; `model.vision`, `model.encoder` and `model.decoder`
    take a room each, as a name or likewise, and the text embedding and the width come with the decoder (or else the
    encoder). A run's directory does for a checkpoint.
    Raises UserError for a checkpoint that is not there, or of another kind than its place.
    """
    named = dict(values.get("pretrained") or {})
    model = values.get("model")
    if isinstance(model, str):
        model = {"checkpoint": model}
    if isinstance(model, Mapping) and "checkpoint" in model:
        name, given = model["checkpoint"], {key: value for key, value in model.items() if key != "checkpoint"}
        model, named = to_dict(_read(name, "model")) | given, {"model": name}
    for room in ROOMS if isinstance(model, Mapping) else ():
        name, given = model.get(room), {}
        if isinstance(name, Mapping) and "checkpoint" in name:
            name, given = name["checkpoint"], {key: value for key, value in name.items() if key != "checkpoint"}
        elif not (isinstance(name, str) and is_checkpoint(name, room)):
            continue
        model = model | _room(name, room)
        model[room] |= given
        named[room] = name
    return values | {"model": model, "pretrained": named} if named else values


def is_checkpoint(name: str, room: str) -> bool:
    """Whether a room's name is that of a checkpoint: a path or a hub id, and not a preset's."""
    return name not in PRESETS[room] and ("/" in name or Path(name).exists())


def _room(name: str, room: str) -> dict[str, Any]:
    found = _read(name, room)
    if room == "vision":
        return {"vision": to_dict(found if is_run(Path(name)) else _for_projector(found))}
    taken = to_dict(replace(found, dtype="float32"))
    return {key: taken[key] for key in ("width", "text_embedding", room)}


def _for_projector(vision: Vision) -> Vision:
    """What the projector reads of a tower: the states before its final norm, and before its last layer where there is a
    class token, which is left out, as in LLaVA (Liu et al. 2024). That is also what LLaVA's files can say."""
    if not isinstance(vision, ViTConfig):
        return vision
    if vision.class_token:
        return replace(vision, feature_layer=-2, keep_class_token=False)
    return replace(vision, feature_layer=-1)


def _read(name: str, room: str) -> ModelConfig | Vision:
    if is_run(Path(name)):
        return room_config(name, room)
    checkpoint = open_checkpoint(name)
    family = family_of(checkpoint, FAMILIES)
    _check_kind(family, room, name)
    found = family.read_config(checkpoint.config)
    pixels = read_pixels(checkpoint.home, family.model_type) if family.room in ("vision", "whole") else None
    return fit(found, pixels)


def _check_kind(family: Family, room: str, name: str) -> None:
    kinds = {"model": ("language", "whole"), "vision": ("vision",), "encoder": ("encoder",), "decoder": ("language",)}
    if family.room not in kinds[room]:
        places = {"language": "model.decoder", "vision": "model.vision", "encoder": "model.encoder", "whole": "model"}
        raise UserError(
            f"config.{_key(room)}: {name} is of the kind {family.room!r} ({family.model_type}); "
            f"name it as config.{places[family.room]}"
        )


def _key(room: str) -> str:
    return "model" if room == "model" else f"model.{room}"
