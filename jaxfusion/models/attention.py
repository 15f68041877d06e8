"""Attention over intervals: query i sees the keys [start_i, end_i), and nothing else is ever said about visibility.

    causal          i -> [0, i + 1)              packed causal     i -> [first of its segment, i + 1)
    bidirectional   i -> [0, length)             prefix-LM         i -> [first, end of the prompt) or [first, i + 1)
    sliding window  i -> [i + 1 - window, i + 1) padding           i -> [0, 0), which gives zeros
    image spans     a position of an image i -> [first, end of the image)
    decoding        the one new query of a row -> [0, tokens in the cache)

No T x T mask exists in model code. `attention` chooses the kernel.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxfusion.config.model import AttentionKernel
from jaxfusion.models import alike
from jaxfusion.models.rows import on_own_heads, platform

Kind = Literal["causal", "full", "ranges"]

# Fewer queries than this leave a fused kernel's blocks mostly empty, and XLA's T x S logits are small.
MIN_QUERIES = 64
MAX_HEAD_DIM = 256


@struct.dataclass
class Interval:
    """Which keys each query sees.

    start, end: int32[B, T], in key positions; an empty interval gives an output of zeros.
    kind: static. "causal" and "full" promise one segment a row from position 0, padding only after it, so that what a
          padded query sees does not matter; kernels that know no ranges may then be used. "ranges" promises nothing.
    wide: queries that no window narrows; None: there are none.
    """

    start: Int[Array, "B T"]
    end: Int[Array, "B T"]
    kind: Kind = struct.field(pytree_node=False, default="ranges")
    wide: Bool[Array, "B T"] | None = None


def causal(segment_ids: Int[Array, "B T"], packed: bool = True) -> Interval:
    """Each position sees its own segment up to itself. Padding (segment 0) sees nothing."""
    start, _ = _segment_bounds(segment_ids)
    end = jnp.where(segment_ids > 0, jnp.arange(segment_ids.shape[1]) + 1, 0)
    return Interval(start, end, "ranges" if packed else "causal")


def bidirectional(segment_ids: Int[Array, "B T"], packed: bool = True) -> Interval:
    """Each position sees the whole of its own segment."""
    start, end = _segment_bounds(segment_ids)
    return Interval(start, end, "ranges" if packed else "full")


def prefix_lm(segment_ids: Int[Array, "B T"], prompt_mask: Bool[Array, "B T"]) -> Interval:
    """Positions of a segment's prompt see the whole prompt, whatever the window; later ones back to the start.

    prompt_mask: True on a leading run of each segment.
    """
    # A prompt is its segment's own segment, in the sense of the bounds: its ids are made distinct from the answer's.
    _, prompt_end = _segment_bounds(2 * segment_ids + prompt_mask)
    interval, prompt = causal(segment_ids), prompt_mask & (segment_ids > 0)
    return interval.replace(end=jnp.where(prompt, prompt_end, interval.end), wide=prompt)


def bidirectional_images(
    interval: Interval, segment_ids: Int[Array, "B T"], visual_index: Int[Array, "B T"], tokens_per_image: int
) -> Interval:
    """Positions of an image see on to the end of it (Gemma 3): of its run of neighbouring visual tokens.

    visual_index: see `Batch.visual_index`; only of tokens that have positions of their own.
    """
    image = jnp.where((visual_index >= 0) & (segment_ids > 0), visual_index // tokens_per_image + 1, 0)
    _, image_end = _segment_bounds(image)
    return Interval(interval.start, jnp.maximum(interval.end, image_end), wide=interval.wide)


def sliding_window(
    interval: Interval, window: int | Int[Array, ""], position: Int[Array, "B T"] | None = None
) -> Interval:
    """Nothing further back than `window` positions, the query's own counted; 0 is no window.

    position: of the queries, counted as the keys are; None: the queries are the keys' positions.
    """
    if position is None:
        position = jnp.arange(interval.start.shape[1])
    start = jnp.where(window, position + 1 - window, 0)
    if interval.wide is not None:
        start = jnp.where(interval.wide, 0, start)
    return Interval(jnp.maximum(interval.start, start), interval.end)


def _segment_bounds(segment_ids: Int[Array, "B T"]) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """First position, and one past the last, of the run of equal ids around each position; (0, 0) where the id is 0."""
    num_tokens = segment_ids.shape[1]
    position = jnp.arange(num_tokens, dtype=jnp.int32)
    edge = segment_ids[:, 1:] != segment_ids[:, :-1]
    first = jnp.pad(edge, ((0, 0), (1, 0)), constant_values=True)
    last = jnp.pad(edge, ((0, 0), (0, 1)), constant_values=True)
    start = jax.lax.cummax(jnp.where(first, position, 0), axis=1)
    end = jax.lax.cummin(jnp.where(last, position + 1, num_tokens), axis=1, reverse=True)
    real = segment_ids > 0
    return jnp.where(real, start, 0), jnp.where(real, end, 0)


def attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S G H"],
    value: Float[Array, "B S G H"],
    interval: Interval,
    *,
    scale: float = 0.0,
    softcap: float = 0.0,
    implementation: AttentionKernel = "auto",
) -> Float[Array, "B T N H"]:
    """Softmax attention of each query over its interval of keys; softmax in float32.

    N query heads share G key-value heads in groups of N/G (grouped-query attention, Ainslie et al. 2023).
    scale: of the logits; 0 is 1/sqrt(H).
    softcap: bends the scaled logits by cap tanh(x / cap) (Gemma 2); 0 does not.
    implementation: "auto" is what `choose_kernel` says; the others force one. "pallas" runs in an interpreter where
        there is no GPU: slowly, for tests.
    """
    scale = scale or query.shape[-1] ** -0.5
    if alike.is_active():
        return alike.attend(query, key, value, interval.start, interval.end, scale, softcap)
    kernel = choose_kernel(query, key, interval, softcap) if implementation == "auto" else implementation
    if kernel == "cudnn":
        return _cudnn(query, key, value, interval, scale, softcap)
    if kernel == "pallas":
        from jaxfusion.models.flash_attention import flash_attention  # Pallas takes long to import

        flash = partial(flash_attention, scale=scale, softcap=softcap, interpret=platform() != "gpu")
        return on_own_heads(flash, (query, key, value), (interval.start, interval.end))
    return _xla(query, key, value, interval, scale, softcap)


def choose_kernel(
    query: Array, key: Array, interval: Interval, softcap: float = 0.0
) -> Literal["xla", "cudnn", "pallas"]:
    """The one table of kernels; the first row that fits is taken.

    platform  dtype    interval      heads            softcap  queries   kernel
    gpu       16 bits  causal, full  H <= 128, H % 8  none     all keys  cuDNN flash attention
    gpu       16 bits  any           H <= 256         any      >= 64     Pallas, `flash_attention`
    any       any      any           any              any      any       XLA
    """
    head_dim, num_queries = query.shape[-1], query.shape[1]
    if platform() != "gpu" or query.dtype not in (jnp.bfloat16, jnp.float16):
        return "xla"
    plain = interval.kind != "ranges" and not softcap and num_queries == key.shape[1]
    if plain and head_dim <= 128 and head_dim % 8 == 0:
        return "cudnn"
    return "pallas" if head_dim <= MAX_HEAD_DIM and num_queries >= MIN_QUERIES else "xla"


def _cudnn(query: Array, key: Array, value: Array, interval: Interval, scale: float, softcap: float) -> Array:
    if interval.kind == "ranges" or softcap:
        raise ValueError(
            "cuDNN attention takes plain causal or full intervals, and no softcap; use implementation='auto'"
        )
    # Causal needs no lengths: right padding is only ever seen by padding.
    lengths = interval.end[:, 0] if interval.kind == "full" else None
    out = jax.nn.dot_product_attention(
        _even(query),
        _even(key),
        _even(value),
        scale=scale,
        is_causal=interval.kind == "causal",
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return out[:, : query.shape[1]]


def _even(x: Float[Array, "B T N H"]) -> Float[Array, "B S N H"]:
    """With a position of padding where their number is odd: of an odd number JAX refuses cuDNN's gradients."""
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))


def _xla(query: Array, key: Array, value: Array, interval: Interval, scale: float, softcap: float) -> Array:
    num_groups, head_dim = key.shape[2:]
    query = query.reshape(*query.shape[:2], num_groups, -1, head_dim)
    logits = jnp.einsum("btgnh,bsgh->bgnts", query, key, preferred_element_type=jnp.float32) * scale
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    position = jnp.arange(key.shape[1])
    seen = (position >= interval.start[..., None]) & (position < interval.end[..., None])
    seen = seen[:, None, None]
    nothing = jnp.finfo(jnp.float32).min
    logits = jnp.where(seen, logits, nothing)
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - highest)
    # What is T x S is passed over as seldom as can be: the output is divided, not the weights.
    share = jnp.where(highest > nothing, 1 / jnp.sum(weights, axis=-1, keepdims=True), 0)
    out = jnp.einsum("bgnts,bsgh->bgnth", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    out = jnp.transpose((out * share).astype(value.dtype), (0, 3, 1, 2, 4))
    return out.reshape(*out.shape[:2], -1, head_dim)
