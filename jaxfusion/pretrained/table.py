"""A pretrained family is a table: one row a tensor, read forwards to import and backwards to export.

A row says what their tensor is called, where ours lives, and how the axes move, as an einops pattern:

    Row("model.layers.{layer}.self_attn.q_proj.weight", "decoder/layers/attention/query/kernel", "(n h) d -> d n h")

`{layer}` runs over the leading axis of our leaf, which is stacked over layers and which the pattern does not name.
Where several of our leaves are one tensor of theirs, the row lists them all and the first axis on the pattern's right
runs over them, as in GPT-2's fused projection: "d (three n h) -> three d n h".
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import einops
import jax
import numpy as np
from flax import traverse_util


@dataclass(frozen=True)
class Row:
    """One tensor, or one for each layer.

    name:    theirs; may hold "{layer}".
    path:    ours, keys joined by "/"; a tuple of paths where their tensor holds several of our leaves.
    pattern: einops, theirs -> ours (without the layer axis); "" where nothing moves.
    sizes:   of axes that our leaf's shape does not tell, e.g. {"p": 14} in "d c p q -> (p q c) d".
    """

    name: str
    path: str | tuple[str, ...]
    pattern: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path


class Tensor(NamedTuple):
    """One tensor of theirs and its place in ours: the leaves `row.paths`, at index `layer` where they are stacked."""

    name: str
    row: Row
    layer: int | None
    shape: tuple[int, ...]


def prefixed(rows: Sequence[Row], name: str = "", path: str = "") -> list[Row]:
    """The rows with something put before their names and our paths, to make a tower's table part of a whole model's."""
    return [
        replace(
            row,
            name=name + row.name,
            path=path + row.path if isinstance(row.path, str) else tuple(path + p for p in row.path),
        )
        for row in rows
    ]


def flatten(params: Any) -> dict[str, Any]:
    """A nested dict of leaves as path -> leaf."""
    return traverse_util.flatten_dict(params, sep="/")


def unflatten(leaves: Mapping[str, Any]) -> Any:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(leaves, sep="/")


def tensors(rows: Sequence[Row], leaves: Mapping[str, Any]) -> Iterator[Tensor]:
    """Every tensor of theirs that our leaves are made of, with the shape it must have.

    leaves: path -> anything with a shape, such as `flatten(jax.eval_shape(...))`.
    """
    for row in rows:
        stacked = "{layer}" in row.name
        shape = leaves[row.paths[0]].shape
        theirs = _their_shape(row, shape[1:] if stacked else shape)
        for layer in range(shape[0]) if stacked else [None]:
            yield Tensor(row.name.format(layer=layer) if stacked else row.name, row, layer, theirs)


def to_ours(row: Row, value: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Their tensor as one array for each of the row's paths: a view where the axes allow it.

    shape: of one of our leaves, without the layer axis.
    """
    if not row.pattern:
        return [value]
    several = len(row.paths) > 1
    ours = einops.rearrange(value, row.pattern, **_known(row, (len(row.paths), *shape) if several else shape))
    return list(ours) if several else [ours]


def to_theirs(row: Row, values: Sequence[np.ndarray]) -> np.ndarray:
    """The inverse of `to_ours`, of one layer's arrays."""
    value = np.stack(values) if len(row.paths) > 1 else values[0]
    if not row.pattern:
        return value
    theirs, ours = row.pattern.split("->")
    return einops.rearrange(value, f"{ours} -> {theirs}", **_known(row, value.shape))


def _their_shape(row: Row, shape: tuple[int, ...]) -> tuple[int, ...]:
    leaves = [jax.ShapeDtypeStruct(shape, np.float32)] * len(row.paths)
    if not row.pattern:
        return shape

    def back(*values: jax.Array) -> jax.Array:
        theirs, ours = row.pattern.split("->")
        value = jax.numpy.stack(values) if len(values) > 1 else values[0]
        return einops.rearrange(value, f"{ours} -> {theirs}", **_known(row, value.shape))

    return jax.eval_shape(back, *leaves).shape


def _known(row: Row, shape: tuple[int, ...]) -> dict[str, int]:
    """Sizes of all the axes in the pattern that our shape or the row itself tells."""
    theirs, ours = row.pattern.split("->")
    axes = einops.parse_shape(np.broadcast_to(np.empty(()), shape), _simple(ours))
    used = set(theirs.replace("(", " ").replace(")", " ").split())
    return {name: size for name, size in {**axes, **row.sizes}.items() if name in used}


def _simple(side: str) -> str:
    """One side of a pattern with its composite axes replaced by placeholders."""
    out, depth = [], 0
    for token in side.replace("(", " ( ").replace(")", " ) ").split():
        if token == "(":
            depth += 1
            out.append("_")
        elif token == ")":
            depth -= 1
        elif depth == 0:
            out.append(token)
    return " ".join(out)
