"""Rooms that begin with what another run has trained, named by its directory where a checkpoint would be."""

from collections.abc import Mapping
from pathlib import Path

import jax

from jaxfusion.config.model import ModelConfig, Vision
from jaxfusion.errors import UserError
from jaxfusion.models.int8 import dequantise
from jaxfusion.models.lora import is_adapter
from jaxfusion.models.vlm import Model, Params, init
from jaxfusion.pretrained.origin import Origin, Room
from jaxfusion.pretrained.table import flatten
from jaxfusion.workdir import PRETRAINED, is_run, load_run, read_workdir_config

# What comes with a room: its own parameters and, of one that reads text, the text embedding's.
PREFIXES: dict[Room, tuple[str, ...]] = {
    "model": ("",),
    "decoder": ("text_embedding/", "decoder/"),
    "encoder": ("text_embedding/", "encoder/"),
    "vision": ("vision/",),
}


def room_config(name: str, room: Room) -> ModelConfig | Vision:
    """The settings of a run's model, or of its vision room. Raises UserError where the run has no such room."""
    config = read_workdir_config(Path(name)).model
    if room == "model":
        return config
    if getattr(config, room) is None:
        raise UserError(f"config.model.{room}: the run {name} has no such room; name a run or checkpoint that has")
    return config.vision if room == "vision" else config


def room_origin(name: str, room: Room) -> Origin:
    """What the run keeps of the checkpoints that it began with: of all its rooms, or of this one."""
    kept = Origin.load(Path(name).expanduser() / PRETRAINED)
    if room == "model":
        return kept
    if "model" in kept.rooms:
        raise UserError(
            f"config.model.{room}: the run {name} began with a whole checkpoint, whose rooms belong together; name it "
            "as config.model"
        )
    return Origin({room: kept.rooms[room]} if room in kept.rooms else {})


def origin_of(named: Mapping[Room, str]) -> Origin:
    """What export writes again: of checkpoints their small files, and of runs what they keep of theirs."""
    rooms: dict[Room, Mapping[str, bytes]] = {}
    runs = frozenset(room for room, name in named.items() if is_run(Path(name)))
    for room, name in named.items():
        rooms |= (room_origin(name, room) if room in runs else Origin.read({room: name})).rooms
    return Origin(rooms, runs)


def room_paths(name: str, room: Room) -> set[str]:
    """Of the parameters that a run gives a room."""
    model = Model(read_workdir_config(Path(name)).model)
    shapes = flatten(jax.eval_shape(lambda rng: init(model, rng), jax.random.key(0)))
    return {path for path in shapes if path.startswith(PREFIXES[room])}


def room_params(name: str, room: Room, abstract: Params) -> dict[str, jax.Array]:
    """The newest parameters that a run gives a room, by their paths, in the dtypes of `abstract`.

    abstract: shapes of all parameters of the model that begins with them.
    Raises UserError for some that have no place in the model, or another shape there.
    """
    setting = "config.model" if room == "model" else f"config.model.{room}"
    wanted, found = flatten(abstract), {}
    for path, leaf in flatten(dequantise(load_run(name, PREFIXES[room])[1])).items():
        shape = wanted[path].shape if path in wanted else None
        if leaf.shape != shape:
            place = f"the model's has {shape}" if shape else "the model has no place for it"
            raise UserError(
                f"{setting}: {path} of the run {name} has the shape {leaf.shape}, and {place}; leave the settings of "
                "its rooms as they are, or name the run in the place of those rooms that are to begin with its own"
            )
        found[path] = leaf.astype(wanted[path].dtype)
    if room == "model" and (left := sorted(p for p in wanted.keys() - found.keys() if not is_adapter(p))):
        raise UserError(
            f"{setting}: the run {name} has no {left[0]}; leave the settings of its rooms as they are, or name the run "
            "in the place of those rooms that are to begin with its own"
        )
    return found
