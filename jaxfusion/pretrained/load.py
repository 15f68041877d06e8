"""Checkpoints to models: a whole one, a single tower, or the rooms of a joined model."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import jax
from jax.sharding import Sharding
from jaxtyping import Array

from jaxfusion.config.model import ModelConfig
from jaxfusion.errors import UserError
from jaxfusion.models.int8 import dequantise
from jaxfusion.models.lora import is_adapter
from jaxfusion.models.tower import Tower
from jaxfusion.models.vlm import Model, Params, build, complete, init
from jaxfusion.pretrained.checkpoint import family_of, open_checkpoint
from jaxfusion.pretrained.families import FAMILIES
from jaxfusion.pretrained.family import Family
from jaxfusion.pretrained.origin import Origin, Room
from jaxfusion.pretrained.runs import room_params, room_paths
from jaxfusion.pretrained.stream import Report, place, read_params
from jaxfusion.pretrained.table import Row, flatten, unflatten
from jaxfusion.text.tokenizer import Tokenizer
from jaxfusion.training.trainable import trained_paths
from jaxfusion.workdir import is_run, load_run

Dtype = Literal["float32", "bfloat16"]
DTYPES = get_args(Dtype)
Shardings = Sharding | Mapping[str, Any] | Callable[[str, jax.ShapeDtypeStruct], Sharding] | None


def load(source: str | Path, *, dtype: Dtype = "float32", shardings: Shardings = None) -> tuple[Model | Tower, Params]:
    """The model of a run or of a checkpoint, and its parameters as they stream from the files onto their shards.

    source:    a run's directory, a directory with a transformers config.json and safetensors, a .safetensors file with
               a config.json beside it or of torchvision's, or a hub id. A vision tower gives a `Tower`, for `see`.
    dtype:     of the parameters and of the computation.
    shardings: of the parameters: a tree as they are, one for all, or a function of a parameter's path, such as
               "decoder/layers/mlp/up/kernel", and its jax.ShapeDtypeStruct; None puts them on the default device.
    Raises UserError, before any weight is read, for whatever is missing, broken or unknown, or does not fit.
    """
    from jaxfusion.pretrained.pixels import fit, read_pixels

    if dtype not in DTYPES:
        raise UserError(f"dtype: {dtype!r} is none of {' and '.join(DTYPES)}; load it in one of them")
    if is_run(Path(source)):
        model, params = load_run(source)
        model = replace(model, config=replace(model.config, dtype=dtype))
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), dequantise(params, dtype))
        return model, unflatten(_put(flatten(params), shardings))
    checkpoint = open_checkpoint(source)
    family = family_of(checkpoint, FAMILIES)
    pixels = read_pixels(checkpoint.home, family.model_type) if family.room in ("vision", "whole") else None
    config = fit(family.read_config(checkpoint.config), pixels)
    origin = Origin.read({"vision" if family.room == "vision" else "model": checkpoint.path})
    if isinstance(config, ModelConfig):
        tokenizer = open_family_tokenizer(checkpoint.home, family, config, bare=family.room == "language")
        if tokenizer is not None and (tokenizer.image_id or 0) >= config.text_embedding.vocab_size:
            config = with_room_for(tokenizer, config)  # and otherwise the table stays what transformers makes of it
        model = build(replace(config, dtype=dtype), tokenizer)
        model = replace(model, origin=origin, pixels=pixels)
        abstract = jax.eval_shape(lambda rng: init(model, rng), jax.random.key(0))
    else:
        model = Tower(config, dtype, pixels=pixels, origin=origin)
        abstract = jax.eval_shape(lambda rng: init_tower(model, rng), jax.random.key(0))
    params, report = read_params(
        checkpoint, family.table(config), abstract, dtype, shardings, ignored=family.ignored, aliases=family.aliases
    )
    _tell(report)
    return model, params


def _put(leaves: dict[str, Array], shardings: Shardings) -> dict[str, Array]:
    if shardings is None:
        return leaves
    placed = place(jax.eval_shape(lambda: leaves), shardings)
    return {path: jax.device_put(leaf, placed[path].sharding) for path, leaf in leaves.items()}


def read_rooms(
    model: Model,
    checkpoints: Mapping[Room, str],
    rng: Array,
    abstract: Params | None = None,
    shardings: Shardings = None,
) -> Params:
    """The parameters of a model whose rooms come from checkpoints or runs: theirs, and fresh ones for the rest.

    checkpoints: by the config's key that named them, as in `config.pretrained`.
    abstract: shapes of all parameters, in the dtypes that theirs are to be read in; None: float32.
    shardings: of the checkpoints' parameters, as in `load`.
    """
    if abstract is None:
        abstract = jax.eval_shape(lambda r: init(model, r), rng)
    leaves: dict[str, Any] = {}
    for room, name in checkpoints.items():
        if is_run(Path(name)):
            leaves |= _put(room_params(name, room, abstract), shardings)
            continue
        checkpoint = open_checkpoint(name)
        family = family_of(checkpoint, FAMILIES)
        rows = _table(model, room, family)
        params, report = read_params(
            checkpoint, rows, abstract, shardings=shardings, ignored=family.ignored, aliases=family.aliases
        )
        _tell(report)
        leaves |= flatten(params)
    return complete(model, unflatten(leaves), rng)


def fresh_and_frozen(model: Model, checkpoints: Mapping[Room, str], trainable: Sequence[str]) -> list[str]:
    """Rooms with parameters that begin at random, since no checkpoint has them, and stay so, since they do not train.

    checkpoints: as in `read_rooms`. Adapters are not counted: until they train they add nothing.
    """
    shapes = jax.eval_shape(lambda rng: init(model, rng), jax.random.key(0))
    given: set[str] = set()
    for room, name in checkpoints.items():
        if is_run(Path(name)):
            given |= room_paths(name, room)
        else:
            rows = _table(model, room, family_of(open_checkpoint(name), FAMILIES))
            given.update(path for row in rows for path in row.paths)
    left = flatten(shapes).keys() - given - trained_paths(shapes, trainable)
    return sorted({path.split("/")[0] for path in left if not is_adapter(path)})


def read_tower(model: Model, checkpoints: Mapping[Room, str], abstract: Params) -> Params:
    """The room "vision" alone, from the checkpoint that it comes from: its own, or a whole model's.

    abstract: {"vision": shapes}, in the dtypes that the weights are to be read in.
    Raises UserError for a checkpoint that does not hold all of them, and as `read_params` does.
    """
    room = "vision" if "vision" in checkpoints else "model"
    if is_run(Path(checkpoints[room])):
        return unflatten(room_params(checkpoints[room], "vision", abstract))
    checkpoint = open_checkpoint(checkpoints[room])
    family = family_of(checkpoint, FAMILIES)
    rows = [row for row in _table(model, room, family) if all(path.startswith("vision/") for path in row.paths)]
    if {path for row in rows for path in row.paths} != flatten(abstract).keys():
        raise UserError(f"config.model.vision: the checkpoint {checkpoints[room]} holds no tower; name one that does")
    return read_params(checkpoint, rows, abstract, ignored=family.ignored, aliases=family.aliases)[0]


def _table(model: Model, room: Room, family: Family) -> Sequence[Row]:
    return family.table(model.config.vision if room == "vision" else model.config)


def open_family_tokenizer(path: Path, family: Family, config: ModelConfig, *, bare: bool = False) -> Tokenizer | None:
    """The tokenizer beside a checkpoint, which lays out images and conversations as its family does; None: there is
    none. bare: as in `load_tokenizer`; a run teaches its own layout."""
    from jaxfusion.text.pretrained import load_tokenizer

    tokenizer = load_tokenizer(path, config, image=family.image, bare=bare)
    if tokenizer is not None and tokenizer.chat_template is None and family.chat_template:
        tokenizer = load_tokenizer(path, config, image=family.image, chat_template=family.chat_template)
    return tokenizer


def init_tower(tower: Tower, rng: Array) -> Params:
    """Fresh float32 parameters of a vision tower alone, as the room "vision"."""
    size = tower.config.image_size
    module = replace(tower, attention="xla").module
    return {"vision": module.init(rng, jax.numpy.zeros((1, 1, size, size, 3), jax.numpy.uint8))["params"]}


def with_room_for(tokenizer: Tokenizer | None, config: ModelConfig) -> ModelConfig:
    """With room for tokens that the tokenizer has and the checkpoint's table has not, such as one for images that was
    added here."""
    text = config.text_embedding
    if tokenizer is None or tokenizer.vocab_size <= text.vocab_size:
        return config
    return replace(config, text_embedding=replace(text, vocab_size=tokenizer.vocab_size))


def _tell(report: Report) -> None:
    if report.surplus or report.grown:
        print(report, file=sys.stderr)
