"""Weights from a checkpoint's files straight onto their shards, one tensor after the other."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, Sharding
from jax.typing import DTypeLike

from jaxfusion.errors import UserError
from jaxfusion.pretrained.checkpoint import Checkpoint
from jaxfusion.pretrained.leaves import Leaf, NotFiniteError, make_leaf
from jaxfusion.pretrained.match import Match, Report, match
from jaxfusion.pretrained.table import Row, flatten, to_ours, unflatten

Params = Any

THREADS = min(8, max(2, os.cpu_count() or 1))  # two on one core too: one may wait for the disk
SECONDS_WITHOUT_PROGRESS = 1.0


def read_params(
    checkpoint: Checkpoint,
    rows: Sequence[Row],
    abstract: Params,
    dtype: DTypeLike | None = None,
    shardings: Any = None,
    *,
    ignored: Sequence[str] = (),
    aliases: Sequence[tuple[str, str]] = (),
) -> tuple[Params, Report]:
    """The leaves that the rows speak of, each tensor read once and put where it belongs.

    The host holds little more than the largest tensor at any time, besides what lives on its own CPU devices. New rows
    of a grown vocabulary are the mean of the old ones, so that a new token is no likelier than the average one
    (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models").

    abstract:  `jax.eval_shape` of the parameters, or of a part that has all the rows' leaves. Of a leaf that has a
               sharding, this process reads its own devices' part.
    dtype:     of every leaf; None leaves it to `abstract`.
    shardings: a tree as `abstract`, one for all, or a function (path, jax.ShapeDtypeStruct) -> sharding, of paths such
               as "decoder/layers/mlp/up/kernel"; None leaves it to `abstract`.
    ignored, aliases: as in `Family`.
    Raises UserError before any weight is read for tensors that are missing, or wrong in shape or dtype, and for
    shardings that do not fit; and as soon as it is read for one that holds an infinity or a NaN.
    """
    start = time.perf_counter()
    leaves, paths = flatten(abstract), sorted({path for row in rows for path in row.paths})
    shapes = {path: _with_dtype(leaves[path], dtype) for path in paths}
    shapes = place(shapes, shardings)
    matches, report = match(checkpoint, rows, shapes, ignored=ignored, aliases=aliases)
    leaves = {path: make_leaf(shape) for path, shape in shapes.items()}
    # The largest first: they are the ones to have in memory twice, so best while there is nothing else.
    matches = sorted(matches, key=lambda match: -match.stored.num_bytes)
    with ThreadPoolExecutor(THREADS) as pool:
        done = pool.map(lambda match: _read(match, leaves), matches)
        for _ in _with_progress(done, [match.stored.num_bytes for match in matches], checkpoint.path.name):
            pass
    params = jax.block_until_ready({path: leaf.finish() for path, leaf in leaves.items()})
    report.seconds = time.perf_counter() - start
    return unflatten(params), report


def _with_dtype(shape: jax.ShapeDtypeStruct, dtype: DTypeLike | None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype if dtype is None else dtype, sharding=shape.sharding)


def place(shapes: Mapping[str, jax.ShapeDtypeStruct], shardings: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Path -> shape with its sharding, for the shardings that `read_params` takes.

    Raises UserError, by the parameter's name, for what is no sharding or does not fit the shape.
    """
    if shardings is None:
        return dict(shapes)
    if isinstance(shardings, Sharding):
        found = dict.fromkeys(shapes, shardings)
    elif callable(shardings):
        found = {path: shardings(path, shape) for path, shape in shapes.items()}
    elif isinstance(shardings, Mapping):
        found = flatten(shardings)
    else:
        raise UserError(
            f"shardings: a {type(shardings).__name__} is none; give a Sharding, a tree of them, or a function"
        )
    return {path: _placed(path, shape, found) for path, shape in shapes.items()}


def _placed(path: str, shape: jax.ShapeDtypeStruct, found: Mapping[str, Any]) -> jax.ShapeDtypeStruct:
    if path not in found:
        raise UserError(f"shardings: {path}: there is none for it; give one for every parameter, or a function")
    sharding = found[path]
    if not isinstance(sharding, Sharding | None):
        raise UserError(f"shardings: {path}: {sharding!r} is a {type(sharding).__name__}, and a jax Sharding is wanted")
    if isinstance(sharding, NamedSharding) and AxisType.Explicit in sharding.mesh.axis_types:
        raise UserError(
            f"shardings: {path}: its mesh has explicit axes, with which the model does not compute; make it as in "
            "jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))"
        )
    try:
        if sharding is not None:
            sharding.shard_shape(shape.shape)  # which tells whether its axes divide
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"shardings: {path} of shape {shape.shape}: {reason}; give it another one") from None


def _read(match: Match, leaves: Mapping[str, Leaf]) -> None:
    wanted, stored = match
    value = stored.read()
    if stored.shape != wanted.shape:
        value = _grow(value, wanted.shape[0])
    shape = leaves[wanted.row.paths[0]].shape
    values = to_ours(wanted.row, value, shape if wanted.layer is None else shape[1:])
    for path, part in zip(wanted.row.paths, values, strict=True):
        try:
            leaves[path].put(wanted.layer, part)
        except NotFiniteError as error:
            raise UserError(f"{stored} holds an infinity or a NaN, as {error}; use an intact checkpoint") from None


def _grow(value: np.ndarray, num_rows: int) -> np.ndarray:
    with np.errstate(all="ignore"):  # of what is not finite the next to look at it speaks
        mean = value.mean(axis=0, dtype=np.float32, keepdims=True).astype(value.dtype)
    return np.concatenate([value, np.broadcast_to(mean, (num_rows - len(value), *value.shape[1:]))])


def _with_progress(done: Iterable[Any], sizes: Sequence[int], name: str) -> Iterator[Any]:
    """Passes it on, with a bar on a terminal once it has taken a while."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    start = time.perf_counter()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"reading {name}", total=sum(sizes), visible=False)
        for item, size in zip(done, sizes, strict=True):
            bar.update(task, advance=size, visible=time.perf_counter() - start > SECONDS_WITHOUT_PROGRESS)
            yield item
