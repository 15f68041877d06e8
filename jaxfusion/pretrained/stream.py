"""Weights from a checkpoint's files straight onto their shards, one tensor after the other."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding
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
    shardings: a tree as `abstract`, or one for all; None leaves it to `abstract`.
    ignored, aliases: as in `Family`.
    Raises UserError before any weight is read for tensors that are missing, or wrong in shape or dtype; and as soon as
    it is read for one that holds an infinity or a NaN.
    """
    start = time.perf_counter()
    shapes = _place(abstract, {path for row in rows for path in row.paths}, dtype, shardings)
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


def _place(
    abstract: Params, paths: set[str], dtype: DTypeLike | None, shardings: Any
) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = flatten(abstract)
    if isinstance(shardings, Sharding):
        shardings = dict.fromkeys(paths, shardings)
    elif shardings is not None:
        shardings = flatten(shardings)
    return {
        path: jax.ShapeDtypeStruct(
            shapes[path].shape,
            shapes[path].dtype if dtype is None else dtype,
            sharding=shapes[path].sharding if shardings is None else shardings[path],
        )
        for path in sorted(paths)
    }


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
