"""Float32 to the bit, whatever stands beside it: what a row gives does not depend on how many rows there are, on its
place among them, on how far prompts are padded or on how long the cache is.

How a product or a sum is rounded depends on its shape: for another number of rows a library takes another kernel, or
cuts the sums elsewhere (He et al. 2025, "Defeating Nondeterminism in LLM Inference"). So in `rows_alike` each has one
of few shapes, tiles of what was asked for, filled up with padding. There is no such promise in 16 bits, whose products
are as large as they can be.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array, Float, Int, Shaped

# Positions that are taken together: where each row has one, as in decoding, since rows are few; and of prompts.
FEW, MANY = 8, 64

# Keys that are read together.
CHUNK = 32

_tile: ContextVar[int] = ContextVar("tile", default=0)


class PositionWise:
    """Marks modules whose `__call__` takes each position by itself."""


POSITION_WISE = (PositionWise, nn.Dense, nn.DenseGeneral, nn.LayerNorm, nn.RMSNorm)


@contextmanager
def rows_alike(tile: int) -> Iterator[None]:
    """Within it, what is traced has this property. tile: positions that are taken together; 0: within it, it has not.

    It cannot be told from shapes: a prompt may be padded to one position only, and a picture be one token.
    """
    token = _tile.set(tile)
    try:
        yield
    finally:
        _tile.reset(token)


def is_active() -> bool:
    return _tile.get() > 0


def by_tiles(function: Callable[..., Any], *arrays: Shaped[Array, "B T ..."], tile: int = 0) -> Any:
    """function(*arrays), which takes each position by itself, of a fixed number of positions at a time.

    The first of the arrays holds floats. Arrays of such shapes, or a tree of them, are returned.
    tile: of these arrays, where they are no row's own positions.
    """
    if not is_active():
        return function(*arrays)
    tile = tile or _tile.get()
    num_rows, length = arrays[0].shape[:2]
    num_positions = num_rows * length
    num_tiles = -(-num_positions // tile)

    def cut(x: Array) -> Array:
        x = x.reshape(num_positions, *x.shape[2:])
        x = jnp.pad(x, ((0, num_tiles * tile - num_positions), *[(0, 0)] * (x.ndim - 1)))
        return x.reshape(num_tiles, 1, tile, *x.shape[1:])

    def whole(y: Array) -> Array:
        return y.reshape(-1, *y.shape[3:])[:num_positions].reshape(num_rows, length, *y.shape[3:])

    def of_one(*tiles: Array) -> Any:
        with rows_alike(0):  # there is nothing left to cut
            return function(*tiles)

    return jax.tree.map(whole, _one_after_another(of_one, tuple(map(cut, arrays))))


def one_by_one(function: Callable[..., Array], *arrays: Shaped[Array, "B ..."]) -> Array:
    """function, whose arrays and result all lead with the row, of one row at a time. The first array holds floats."""
    return jnp.squeeze(_one_after_another(function, tuple(x[:, None] for x in arrays)), 1)


def _one_after_another(function: Callable[..., Any], arrays: tuple[Array, ...]) -> Any:
    """function(*(x[i] for x in arrays)) for each i, stacked, by a program of its own that is the same for any number.

    The loop is one whose length XLA cannot know: what runs once would be fused with what is around it, whatever
    barriers there are, and so be rounded in another way. (Where a number is no number it runs once more, to no effect.)
    """
    number = arrays[0].shape[0]
    length = number + jnp.isnan(arrays[0].ravel()[0].astype(jnp.float32)).astype(jnp.int32)
    if number == 1:  # of one alone, XLA would know the place
        arrays = tuple(jnp.pad(x, ((0, 1), *[(0, 0)] * (x.ndim - 1))) for x in arrays)
    one = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in arrays]
    # Traced once, as a module may be called only once by its name.
    program, results = jax.make_jaxpr(function, return_shape=True)(*one)
    room, structure = jax.tree.flatten(results)

    def step(index: Array, filled: list[Array]) -> list[Array]:
        found = jaxpr_as_fun(program)(*(jax.lax.dynamic_index_in_dim(x, index, keepdims=False) for x in arrays))
        put = partial(jax.lax.dynamic_update_index_in_dim, index=index, axis=0)
        return list(map(put, filled, found))

    filled = [jnp.zeros((len(arrays[0]), *leaf.shape), leaf.dtype) for leaf in room]
    filled = jax.lax.fori_loop(0, length, step, filled)
    return jax.tree.unflatten(structure, [leaf[:number] for leaf in filled])


@contextmanager
def tiled_modules() -> Iterator[None]:
    """Modules that take each position by itself are called by tiles, where `rows_alike` is active."""

    def call_tiled(call: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if not isinstance(context.module, POSITION_WISE) or context.method_name != "__call__" or not is_active():
            return call(*args, **kwargs)
        return by_tiles(lambda x: call(x, *args[1:], **kwargs), args[0])

    with nn.intercept_methods(call_tiled):
        yield


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S G H"],
    value: Float[Array, "B S G H"],
    start: Int[Array, "B T"],
    end: Int[Array, "B T"],
    scale: float,
    softcap: float,
) -> Float[Array, "B T N H"]:
    """Attention over intervals, in tiles of queries and chunks of keys; as `attention.attention` says."""
    num_rows, num_queries, num_heads, head_dim = query.shape
    num_groups = key.shape[2]
    tile = 1 if _tile.get() == FEW else MANY
    query = query.reshape(*query.shape[:2], num_groups, -1, head_dim)
    query, start, end = (_cut(part, tile) for part in (query, start, end))
    key, value = (_cut(part, CHUNK) for part in (key, value))
    position = jnp.arange(key.shape[1] * CHUNK).reshape(-1, 1, CHUNK)  # [c, 1, s]

    def read(query: Array, start: Array, end: Array) -> Array:
        each = jnp.broadcast_to(query[:, None], (num_rows, key.shape[1], *query.shape[1:]))
        logits = jnp.einsum("bctgnh,bcsgh->bcgnts", each, key, preferred_element_type=jnp.float32) * scale
        if softcap:
            logits = softcap * jnp.tanh(logits / softcap)
        start, end = (place[:, None, :, None] for place in (start, end))
        seen = ((position >= start) & (position < end))[:, :, None, None]
        nothing = jnp.finfo(jnp.float32).min
        logits = jnp.where(seen, logits, nothing)
        highest = jnp.max(logits, axis=(1, -1), keepdims=True)
        weights = jnp.exp(logits - highest)
        total = _sum(_sum(weights, -1), 1)[..., None]
        share = jnp.where(highest[:, 0] > nothing, 1 / total, 0)
        out = _sum(jnp.einsum("bcgnts,bcsgh->bcgnth", weights, value), 1) * share
        return jnp.transpose(out, (0, 3, 1, 2, 4))

    tiles = (jnp.moveaxis(part, 1, 0) for part in (query, start, end))
    out = jnp.moveaxis(_one_after_another(read, tuple(tiles)), 0, 1)
    return out.reshape(num_rows, -1, num_heads, head_dim)[:, :num_queries]


def _cut(x: Array, size: int) -> Array:
    """[B, T, ...] as [B, tiles, size, ...], padded at the end."""
    missing = -x.shape[1] % size
    if missing:
        x = jnp.pad(x, ((0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)))
    return x.reshape(x.shape[0], -1, size, *x.shape[2:])


def _sum(x: Array, axis: int) -> Array:
    """In halves, so that zeros at the end change nothing: how many there are does not move a single addition."""
    while (length := x.shape[axis]) > 1:
        half = 1 << (length - 1).bit_length() - 1
        lower = jax.lax.slice_in_dim(x, 0, half, axis=axis)
        upper = jax.lax.slice_in_dim(x, half, length, axis=axis)
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, 2 * half - length)
        x = lower + jnp.pad(upper, padding)
    return jnp.squeeze(x, axis)
