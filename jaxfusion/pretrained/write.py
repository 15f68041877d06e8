"""Writing safetensors files, one tensor at a time, as transformers reads them.

The library's own writer wants all tensors of a file in memory at once, and its NumPy side knows no bfloat16.
"""

import json
import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from jaxfusion.errors import UserError
from jaxfusion.pretrained.blocks import copy_finite, empty
from jaxfusion.pretrained.checkpoint import FLOATS
from jaxfusion.pretrained.table import Row, flatten, tensors, to_theirs

NAMES = {np.dtype(dtype): name for name, dtype in FLOATS.items()}

MAX_SHARD_BYTES = 5_000_000_000


def write_params(
    directory: Path,
    rows: Sequence[Row],
    params: Any,
    dtype: DTypeLike | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    stem: str = "model",
) -> list[Path]:
    """The parameters under the names and in the layout of a family's table; the files that were written.

    The host holds one tensor at a time, a single layer's where leaves are stacked.

    params: a tree with all leaves that the rows speak of. dtype: of the files; None leaves it to the leaves.
    stem:   of the files' names.
    Raises UserError for a leaf that holds an infinity or a NaN, and as `write_safetensors`.
    """
    leaves = flatten(params)
    wanted = {tensor.name: tensor for tensor in tensors(rows, leaves)}
    dtypes = {
        name: np.dtype(leaves[tensor.row.paths[0]].dtype if dtype is None else dtype) for name, tensor in wanted.items()
    }

    def read(name: str) -> np.ndarray:
        tensor = wanted[name]
        values = [_on_host(leaves[path], tensor.layer) for path in tensor.row.paths]
        value = empty(tensor.shape, dtypes[name])
        if not copy_finite(value, to_theirs(tensor.row, values)):
            raise UserError(f"{', '.join(tensor.row.paths)}: holds an infinity or a NaN; export an earlier checkpoint")
        return value

    shapes = {name: jax.ShapeDtypeStruct(tensor.shape, dtypes[name]) for name, tensor in wanted.items()}
    return write_safetensors(directory, shapes, read, max_shard_bytes, stem)


def write_safetensors(
    directory: Path,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    read: Callable[[str], np.ndarray],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    stem: str = "model",
) -> list[Path]:
    """stem.safetensors, or shards with an index where they are more than max_shard_bytes; the files that were written.

    No file gets its name before all are complete, so a failed write leaves what was there before. Then files of an
    earlier write go that would now be in the way.

    shapes: of every tensor, of a float dtype. read: gives each in turn, by its name.
    Raises UserError where the directory cannot be written.
    """
    shards = _shards(shapes, max_shard_bytes)
    names = [
        f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    index = f"{stem}.safetensors.index.json"
    temporary: dict[str, Path] = {}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, shard in zip(names, shards, strict=True):
            temporary[name] = directory / f".{name}.{os.getpid()}.tmp"
            _write_shard(temporary[name], {tensor: shapes[tensor] for tensor in shard}, read)
        if len(shards) > 1:
            temporary[index] = directory / f".{index}.{os.getpid()}.tmp"
            temporary[index].write_text(_index(shapes, names, shards))
        for name, file in temporary.items():
            file.replace(directory / name)
        ours = re.compile(re.escape(stem) + r"(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
        for file in list(directory.iterdir()):
            if ours.fullmatch(file.name) and file.name not in temporary:
                file.unlink()
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error.strerror}); make room there or name another") from None
    finally:
        for file in temporary.values():
            file.unlink(missing_ok=True)
    return [directory / name for name in temporary]


def _shards(shapes: Mapping[str, jax.ShapeDtypeStruct], max_bytes: int) -> list[list[str]]:
    """Names in files of at most max_bytes, or of one tensor; wide dtypes first, so that all are aligned."""
    shards: list[list[str]] = [[]]
    room = max_bytes
    for name in sorted(shapes, key=lambda name: -np.dtype(shapes[name].dtype).itemsize):
        size = _num_bytes(shapes[name])
        if size > room and shards[-1]:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= size
    return shards


def _write_shard(file: Path, shapes: Mapping[str, jax.ShapeDtypeStruct], read: Callable[[str], np.ndarray]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + _num_bytes(shape)
        header[name] = {"dtype": NAMES[np.dtype(shape.dtype)], "shape": shape.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            value = np.asarray(read(name), order="C")
            if (value.shape, value.dtype) != (shape.shape, np.dtype(shape.dtype)):
                raise ValueError(f"{name}: {value.dtype}{value.shape} where {shape.dtype}{shape.shape} was promised")
            stream.write(value.reshape(-1).view(np.uint8))
        stream.flush()
        os.fsync(stream.fileno())


def _index(shapes: Mapping[str, jax.ShapeDtypeStruct], names: Sequence[str], shards: Sequence[Sequence[str]]) -> str:
    owners = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total = sum(_num_bytes(shape) for shape in shapes.values())
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(owners.items()))}, indent=2) + "\n"


def _num_bytes(shape: jax.ShapeDtypeStruct) -> int:
    return prod(shape.shape) * np.dtype(shape.dtype).itemsize


@jax.jit
def _layer(leaf: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)


def _on_host(leaf: Any, layer: int | None) -> np.ndarray:
    if layer is None:
        return np.asarray(leaf)
    return np.asarray(_layer(leaf, layer)) if isinstance(leaf, jax.Array) else leaf[layer]
