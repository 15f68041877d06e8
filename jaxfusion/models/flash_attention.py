"""Fused attention over intervals for GPUs, forward and backward, in Pallas (Triton): no T x S array is in memory.

The method is FlashAttention-2's (Dao 2024): softmax over blocks of keys with a running maximum, and a backward pass
that forms each block's weights again from the log-normaliser. What is ours is the mask: each query has a range of keys,
so a block of queries reads just the blocks of keys between its lowest start and its highest end, and a block of keys
just the queries between the first and the last that reach it. Packed rows, windows and padding cost what they see.

Where there is no GPU the same kernels run in Pallas's interpreter, which is slow and exact enough for tests.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float, Int

from jaxfusion.hardware import find_hardware
from jaxfusion.models.rows import device_kind

LOG2E = math.log2(math.e)
NOTHING = -1e30  # a logit below all others, whose differences are still numbers
PROGRAMS = 512  # that fill a GPU of 100 to 150 multiprocessors a few times


class Blocks(NamedTuple):
    """Queries and keys that one program holds, and what Triton should make of it."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


class Kernel(NamedTuple):
    """What is fixed when a kernel is compiled. scale: of the logits; softcap: 0 is none."""

    scale: float
    softcap: float
    interpret: bool


def flash_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S G H"],
    value: Float[Array, "B S G H"],
    start: Int[Array, "B T"],
    end: Int[Array, "B T"],
    *,
    scale: float,
    softcap: float = 0.0,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Softmax attention of query i over the keys [start_i, end_i); zeros where there are none.

    N query heads share G key-value heads in groups of N/G. Products are in the inputs' dtype, sums and the softmax in
    float32. softcap: logits are bent by cap tanh(x / cap); 0: not.
    interpret: run on any device, slowly.
    """
    length = query.shape[1]
    unit = max(_block(length), _block(key.shape[1]))
    query, start, end = (_pad(x, unit) for x in (query, start, end))
    key, value = (_pad(x, unit) for x in (key, value))
    out = _attention(Kernel(scale, softcap, interpret), query, key, value, start, end)
    return out[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(kernel: Kernel, query: Array, key: Array, value: Array, start: Array, end: Array) -> Array:
    return _forward(kernel, query, key, value, start, end)[0]


def _attention_forward(kernel: Kernel, query: Array, key: Array, value: Array, start: Array, end: Array) -> tuple:
    out, normaliser = _forward(kernel, query, key, value, start, end)
    return out, (query, key, value, start, end, out, normaliser)


def _attention_backward(kernel: Kernel, residuals: tuple, by_out: Array) -> tuple:
    query, key, value, start, end, out, normaliser = residuals
    # What the softmax's own gradient takes off every logit of a query (FlashAttention-2, the D of algorithm 2).
    common = jnp.einsum("btnh,btnh->bnt", out, by_out, preferred_element_type=jnp.float32)
    arrays = (query, key, value, start, end, by_out, normaliser, common)
    return _by_query(kernel, *arrays), *_by_key_value(kernel, *arrays), None, None


_attention.defvjp(_attention_forward, _attention_backward)


# --- forward ----------------------------------------------------------------------------------------------------------


def _forward(
    kernel: Kernel, query: Array, key: Array, value: Array, start: Array, end: Array
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """The output, and each query's log-normaliser to the base 2."""
    batch, length, heads, head_dim = query.shape
    blocks = _forward_blocks(query, key)
    by_query, by_keys, rows = _specs(query, key, blocks.queries)
    return pl.pallas_call(
        functools.partial(_forward_kernel, kernel, blocks, head_dim),
        grid=(length // blocks.queries, batch, heads),
        in_specs=[rows, rows, by_query, by_keys, by_keys],
        out_specs=[by_query, _per_head(blocks.queries)],
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
        ],
        compiler_params=plt.CompilerParams(num_warps=blocks.num_warps, num_stages=blocks.num_stages),
        interpret=kernel.interpret,
        name="flash_attention_forward",
    )(start, end, query, key, value)


def _forward_kernel(
    kernel: Kernel, blocks: Blocks, head_dim: int, start_ref, end_ref, q_ref, k_ref, v_ref, out_ref, normaliser_ref
) -> None:
    start, end, real = start_ref[...], end_ref[...], _real(q_ref, head_dim)
    q = plt.load(q_ref, mask=real, other=0.0)

    def add_keys(index: Array, carry: tuple) -> tuple:
        out, highest, total = carry
        keys = pl.ds(index * blocks.keys, blocks.keys)
        k = plt.load(k_ref.at[keys, :], mask=real, other=0.0)
        v = plt.load(v_ref.at[keys, :], mask=real, other=0.0)
        seen = _seen(start, end, index * blocks.keys, blocks.keys)
        logits = jnp.where(seen, _logits(kernel, q, k, LOG2E), NOTHING)
        # Never as low as NOTHING, so that what is not seen weighs nothing where a query has seen nothing yet.
        new_highest = jnp.maximum(highest, jnp.max(logits, axis=1))
        weights = jnp.exp2(logits - new_highest[:, None])
        shrink = jnp.exp2(highest - new_highest)
        out = out * shrink[:, None] + _dot(weights.astype(v.dtype), v)
        return out, new_highest, total * shrink + jnp.sum(weights, axis=1)

    first, last = _key_blocks(start, end, blocks.keys)
    lowest = jnp.full(q.shape[0], NOTHING / 2)
    nothing = jnp.zeros(q.shape, jnp.float32), lowest, jnp.zeros(q.shape[0], jnp.float32)
    out, highest, total = jax.lax.fori_loop(first, last, add_keys, nothing)
    total = jnp.where(total == 0, 1.0, total)
    plt.store(out_ref, (out / total[:, None]).astype(out_ref.dtype), mask=real)
    normaliser_ref[...] = highest + jnp.log2(total)


# --- backward ---------------------------------------------------------------------------------------------------------


def _by_query(kernel: Kernel, query: Array, key: Array, value: Array, start: Array, end: Array, *rest: Array) -> Array:
    batch, length, heads, head_dim = query.shape
    blocks = _backward_blocks(query, key, for_query=True)
    by_query, by_keys, rows = _specs(query, key, blocks.queries)
    per_head = _per_head(blocks.queries)
    return pl.pallas_call(
        functools.partial(_by_query_kernel, kernel, blocks, head_dim),
        grid=(length // blocks.queries, batch, heads),
        in_specs=[rows, rows, by_query, by_keys, by_keys, by_query, per_head, per_head],
        out_specs=by_query,
        out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
        compiler_params=plt.CompilerParams(num_warps=blocks.num_warps, num_stages=blocks.num_stages),
        interpret=kernel.interpret,
        name="flash_attention_backward_query",
    )(start, end, query, key, value, *rest)


def _by_query_kernel(
    kernel: Kernel,
    blocks: Blocks,
    head_dim: int,
    start_ref,
    end_ref,
    q_ref,
    k_ref,
    v_ref,
    by_out_ref,
    normaliser_ref,
    common_ref,
    by_q_ref,
) -> None:
    start, end, real = start_ref[...], end_ref[...], _real(q_ref, head_dim)
    q = plt.load(q_ref, mask=real, other=0.0)
    by_out = plt.load(by_out_ref, mask=real, other=0.0)
    normaliser, common = normaliser_ref[...], common_ref[...]

    def add_keys(index: Array, by_q: Array) -> Array:
        keys = pl.ds(index * blocks.keys, blocks.keys)
        k = plt.load(k_ref.at[keys, :], mask=real, other=0.0)
        v = plt.load(v_ref.at[keys, :], mask=real, other=0.0)
        seen = _seen(start, end, index * blocks.keys, blocks.keys)
        _, by_logits = _by_logits(kernel, q, k, v, by_out, normaliser, common, seen)
        return by_q + _dot(by_logits.astype(k.dtype), k)

    first, last = _key_blocks(start, end, blocks.keys)
    by_q = jax.lax.fori_loop(first, last, add_keys, jnp.zeros(q.shape, jnp.float32))
    plt.store(by_q_ref, (by_q * kernel.scale).astype(by_q_ref.dtype), mask=real)


def _by_key_value(
    kernel: Kernel, query: Array, key: Array, value: Array, start: Array, end: Array, *rest: Array
) -> tuple[Array, Array]:
    batch, length, heads, head_dim = query.shape
    num_keys, groups = key.shape[1:3]
    blocks, width = _backward_blocks(query, key, for_query=False), pl.next_power_of_2(head_dim)
    # A program takes some of the heads that share its keys: all of them, but where that makes too few programs.
    parts = _parts(heads // groups, num_keys // blocks.keys * batch * groups)
    some = heads // groups // parts
    first, last = _query_blocks(start, end, num_keys, blocks)
    bound = pl.BlockSpec((None, 1), lambda i, b, p: (b, i))
    rows = pl.BlockSpec((None, length), lambda i, b, p: (b, 0))
    of_heads = pl.BlockSpec((None, length, some, width), lambda i, b, p: (b, 0, p, 0))
    keys = pl.BlockSpec((None, blocks.keys, None, width), lambda i, b, p: (b, i, p // parts, 0))
    of_part = pl.BlockSpec((None, blocks.keys, None, width), lambda i, b, p: (b, i, p, 0))
    per_head = pl.BlockSpec((None, some, length), lambda i, b, p: (b, p, 0))
    found = jax.ShapeDtypeStruct((batch, num_keys, groups * parts, head_dim), key.dtype if parts == 1 else jnp.float32)
    by_key_value = pl.pallas_call(
        functools.partial(_by_key_value_kernel, kernel, blocks, head_dim, some),
        grid=(num_keys // blocks.keys, batch, groups * parts),
        in_specs=[bound, bound, rows, rows, of_heads, keys, keys, of_heads, per_head, per_head],
        out_specs=[of_part, of_part],
        out_shape=[found, found],
        compiler_params=plt.CompilerParams(num_warps=blocks.num_warps, num_stages=blocks.num_stages),
        interpret=kernel.interpret,
        name="flash_attention_backward_key_value",
    )(first, last, start, end, query, key, value, *rest)
    if parts == 1:
        return tuple(by_key_value)
    return tuple(jnp.sum(by.reshape(*key.shape[:3], parts, -1), axis=3).astype(key.dtype) for by in by_key_value)


def _parts(heads: int, programs: int) -> int:
    """Into how many a group of heads is divided: as few as fill the device."""
    divisors = (parts for parts in range(1, heads + 1) if heads % parts == 0)
    return next((parts for parts in divisors if parts * programs >= PROGRAMS), heads)


def _by_key_value_kernel(
    kernel: Kernel,
    blocks: Blocks,
    head_dim: int,
    heads: int,
    first_ref,
    last_ref,
    start_ref,
    end_ref,
    q_ref,
    k_ref,
    v_ref,
    by_out_ref,
    normaliser_ref,
    common_ref,
    by_k_ref,
    by_v_ref,
) -> None:
    real, offset = _real(k_ref, head_dim), pl.program_id(0) * blocks.keys
    k, v = (plt.load(ref, mask=real, other=0.0) for ref in (k_ref, v_ref))

    def add_queries(index: Array, carry: tuple, head: Array) -> tuple:
        by_k, by_v = carry
        queries = pl.ds(index * blocks.queries, blocks.queries)
        q = plt.load(q_ref.at[queries, head, :], mask=real, other=0.0)
        by_out = plt.load(by_out_ref.at[queries, head, :], mask=real, other=0.0)
        seen = _seen(start_ref[queries], end_ref[queries], offset, blocks.keys)
        of_head = normaliser_ref[head, queries], common_ref[head, queries]
        weights, by_logits = _by_logits(kernel, q, k, v, by_out, *of_head, seen)
        by_v += _dot(weights.astype(v.dtype).T, by_out)
        by_k += _dot(by_logits.astype(q.dtype).T, q)
        return by_k, by_v

    def add_head(head: Array, carry: tuple) -> tuple:
        add = functools.partial(add_queries, head=head)
        return jax.lax.fori_loop(first_ref[0], last_ref[0], add, carry)

    nothing = jnp.zeros(k.shape, jnp.float32)
    by_k, by_v = jax.lax.fori_loop(0, heads, add_head, (nothing, nothing))
    plt.store(by_k_ref, (by_k * kernel.scale).astype(by_k_ref.dtype), mask=real)
    plt.store(by_v_ref, by_v.astype(by_v_ref.dtype), mask=real)


def _by_logits(
    kernel: Kernel, q: Array, k: Array, v: Array, by_out: Array, normaliser: Array, common: Array, seen: Array
) -> tuple[Array, Array]:
    """A block's softmax weights, and the gradient by its logits before they were scaled (but for the scale)."""
    logits = _logits(kernel, q, k, LOG2E)
    weights = jnp.where(seen, jnp.exp2(logits - normaliser[:, None]), 0.0)
    by_logits = weights * (_dot(by_out, v.T) - common[:, None])
    if kernel.softcap:
        by_logits *= 1 - (logits / (LOG2E * kernel.softcap)) ** 2
    return weights, by_logits


# --- what they share --------------------------------------------------------------------------------------------------


def _dot(a: Array, b: Array) -> Array:
    """In float32 where the inputs are (the tensor cores' tf32 has three digits)."""
    return plt.dot(a, b, precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None)


def _logits(kernel: Kernel, q: Array, k: Array, unit: float) -> Array:
    """Times `unit`, in one multiplication."""
    if not kernel.softcap:
        return _dot(q, k.T) * (unit * kernel.scale)
    return unit * kernel.softcap * jnp.tanh(_dot(q, k.T) * (kernel.scale / kernel.softcap))


def _seen(start: Array, end: Array, offset: Array, num_keys: int) -> Array:
    key = offset + jnp.arange(num_keys)
    return (key[None, :] >= start[:, None]) & (key[None, :] < end[:, None])


def _real(ref, head_dim: int) -> Array:
    """Triton's arrays have a power of two of columns; those beyond the head are neither read nor written."""
    return (jnp.arange(ref.shape[-1]) < head_dim)[None, :]


def _key_blocks(start: Array, end: Array, block: int) -> tuple[Array, Array]:
    """The range of key blocks that a block of queries reaches; (0, 0) where none sees anything."""
    sees = end > start
    last = jnp.max(jnp.where(sees, end, 0))
    first = jnp.minimum(jnp.min(jnp.where(sees, start, jnp.iinfo(jnp.int32).max)), last)
    return jax.lax.div(first, block), jax.lax.div(last + block - 1, block)


def _query_blocks(
    start: Int[Array, "B T"], end: Int[Array, "B T"], num_keys: int, blocks: Blocks
) -> tuple[Int[Array, "B K"], Int[Array, "B K"]]:
    """For each block of keys the range of query blocks that may see something of it; (0, 0) where none does."""
    batch = start.shape[0]
    start, end = (x.reshape(batch, -1, blocks.queries) for x in (start, end))
    sees = end > start
    low = jnp.min(jnp.where(sees, start, num_keys), axis=2)[:, None]
    high = jnp.max(jnp.where(sees, end, 0), axis=2)[:, None]
    offset = jnp.arange(0, num_keys, blocks.keys)[:, None]
    reach = (low < offset + blocks.keys) & (high > offset)  # [B, key blocks, query blocks]
    index = jnp.arange(reach.shape[2])
    last = jnp.max(jnp.where(reach, index + 1, 0), axis=2)
    first = jnp.minimum(jnp.min(jnp.where(reach, index, reach.shape[2]), axis=2), last)
    return first.astype(jnp.int32), last.astype(jnp.int32)


def _specs(query: Array, key: Array, block: int) -> tuple[pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
    """For a grid of (query block, row, head): a block of a head's queries; all its keys; the block's ranges."""
    share, width = query.shape[2] // key.shape[2], pl.next_power_of_2(query.shape[3])
    return (
        pl.BlockSpec((None, block, None, width), lambda i, b, n: (b, i, n, 0)),
        pl.BlockSpec((None, key.shape[1], None, width), lambda i, b, n: (b, 0, n // share, 0)),
        pl.BlockSpec((None, block), lambda i, b, n: (b, i)),
    )


def _per_head(block: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, block), lambda i, b, n: (b, n, i))


# The fastest of 8 to 20 choices on an H200, for rows of several segments and heads of 64, 128 and 256 in 16 bits, of
# those that fit any card's shared memory; of wide heads there is one more choice, for small cards.


def _forward_blocks(query: Array, key: Array) -> Blocks:
    wide = _is_wide(query)
    keys = _block(key.shape[1], 32 if wide and not _is_large() else 64)
    return Blocks(_block(query.shape[1]), keys, num_warps=4, num_stages=2 if wide else 3)


def _backward_blocks(query: Array, key: Array, for_query: bool) -> Blocks:
    """for_query: for the kernel that gives its gradient, and not that of the keys and values."""
    small = _is_wide(query) and not _is_large()
    # Two sums of a block of wide keys are as much as registers hold.
    keys = 32 if small or (_is_wide(query) and not for_query) else 64
    queries = _block(query.shape[1], 32 if small else 64)
    return Blocks(queries, _block(key.shape[1], keys), num_warps=4, num_stages=2)


def _is_wide(query: Array) -> bool:
    return query.shape[3] * query.dtype.itemsize > 256


def _is_large() -> bool:
    """Whether programs have the 160 KB of shared memory that data centres' cards have, and not 99 KB."""
    card = find_hardware(device_kind())
    return card is not None and card.compute_capability[1] == 0


def _block(length: int, most: int = 64) -> int:
    """Tensor cores want 16 rows at least."""
    return min(most, max(16, pl.next_power_of_2(length)))


def _pad(x: Array, unit: int) -> Array:
    """To a multiple of `unit` positions; zeros, whose ranges are empty."""
    missing = -x.shape[1] % unit
    return jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2)) if missing else x
