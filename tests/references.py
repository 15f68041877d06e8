"""What the model code is held against: the same mathematics in float64 NumPy, written to be read, not to be fast."""

from collections.abc import Mapping
from functools import partial
from math import erf
from typing import Any, Literal

import jax
import numpy as np

Array = np.ndarray


# --- who sees whom ----------------------------------------------------------------------------------------------------


def visibility(
    segment_ids: Array,
    rule: Literal["causal", "bidirectional", "prefix-lm"],
    prompt_mask: Array | None = None,
    window: int | None = None,
    image: Array | None = None,
) -> Array:
    """bool[B, T, T]: whether position i sees position j, asked pair by pair of what each case means.

    segment_ids: int[B, T], 0 for padding, which neither sees nor is seen.
    prompt_mask: bool[B, T], for prefix-LM.
    window: nothing further back than this many positions, the position's own counted; but a prompt sees all of itself.
    image: int[B, T], which image each position belongs to, for images that see the whole of themselves; -1 for text.
    """
    num_rows, num_tokens = segment_ids.shape
    seen = np.zeros((num_rows, num_tokens, num_tokens), bool)
    for b in range(num_rows):
        for i in range(num_tokens):
            for j in range(num_tokens):
                same_sample = segment_ids[b, i] != 0 and segment_ids[b, i] == segment_ids[b, j]
                past = j <= i
                prompt = rule == "prefix-lm" and bool(prompt_mask[b, i] and prompt_mask[b, j])
                allowed = {"causal": past, "bidirectional": True, "prefix-lm": past or prompt}[rule]
                same_image = image is not None and image[b, i] >= 0 and image[b, i] == image[b, j]
                near = window is None or i - j < window or prompt
                seen[b, i, j] = same_sample and (allowed or same_image) and near
    return seen


def random_packing(rng: np.random.Generator, num_rows: int, num_tokens: int) -> tuple[Array, Array, Array]:
    """Rows of segments of random lengths with random gaps of padding between and behind them.

    Returns segment_ids, positions (from 0 in each segment) and prompt_mask (a leading run of each segment, often
    nothing or all of it). The first row is one full segment and, of three or more, the last is all padding.
    """
    segment_ids, positions = np.zeros((2, num_rows, num_tokens), np.int32)
    prompt_mask = np.zeros((num_rows, num_tokens), bool)
    for b in range(num_rows if num_rows < 3 else num_rows - 1):
        at, segment = 0, 0
        while at < num_tokens:
            length = num_tokens if b == 0 else min(int(rng.integers(1, max(2, num_tokens // 2))), num_tokens - at)
            segment += 1
            segment_ids[b, at : at + length] = segment
            positions[b, at : at + length] = np.arange(length)
            prompt_mask[b, at : at + int(rng.choice([0, length, rng.integers(0, length + 1)]))] = True
            at += length + int(rng.choice([0, 0, 1, 3]))
    return segment_ids, positions, prompt_mask


# --- attention --------------------------------------------------------------------------------------------------------


def attention_weights(
    query: Array, key: Array, seen: Array, scale: float | None = None, softcap: float | None = None
) -> Array:
    """Softmax over the seen keys of each query: [B, N, T, S]; a query that sees nothing gives zeros."""
    query, key = query.astype(np.float64), key.astype(np.float64)
    num_rows, num_queries, num_heads, head_dim = query.shape
    weights = np.zeros((num_rows, num_heads, num_queries, key.shape[1]))
    for b, n, t in np.ndindex(num_rows, num_heads, num_queries):
        visible = np.flatnonzero(seen[b, t])
        if len(visible):
            scores = key[b, visible, kv_head(n, num_heads, key.shape[2])] @ query[b, t, n]
            scores = scores * scale if scale else scores / np.sqrt(head_dim)
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            scores = np.exp(scores - scores.max())
            weights[b, n, t, visible] = scores / scores.sum()
    return weights


def kv_head(head: int, num_heads: int, num_kv_heads: int) -> int:
    """Neighbouring query heads share a key-value head."""
    return head // (num_heads // num_kv_heads)


def attention(
    query: Array, key: Array, value: Array, seen: Array, scale: float | None = None, softcap: float | None = None
) -> Array:
    """query: [B, T, N, H]; key, value: [B, S, G, H]; seen: bool[B, T, S]. Returns float64[B, T, N, H]."""
    weights = attention_weights(query, key, seen, scale, softcap)
    out = np.zeros(query.shape)
    for n in range(query.shape[2]):
        out[:, :, n] = weights[:, n] @ value[:, :, kv_head(n, query.shape[2], key.shape[2])].astype(np.float64)
    return out


def attention_gradients(
    query: Array,
    key: Array,
    value: Array,
    seen: Array,
    cotangent: Array,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[Array, ...]:
    """Gradients of sum(cotangent * attention(...)) in query, key and value, by the softmax's own derivative."""
    weights, scale = attention_weights(query, key, seen, scale, softcap), scale or query.shape[-1] ** -0.5
    num_heads = query.shape[2]
    d_query, d_key, d_value = (np.zeros(x.shape) for x in (query, key, value))
    for b, n in np.ndindex(query.shape[0], num_heads):
        g = kv_head(n, num_heads, key.shape[2])
        p, out_bar = weights[b, n], cotangent[b, :, n].astype(np.float64)
        d_value[b, :, g] += p.T @ out_bar
        p_bar = out_bar @ value[b, :, g].astype(np.float64).T
        score_bar = p * (p_bar - (p_bar * p).sum(axis=1, keepdims=True)) * scale
        if softcap:
            score_bar /= np.cosh(scale * query[b, :, n].astype(np.float64) @ key[b, :, g].T / softcap) ** 2
        d_query[b, :, n] += score_bar @ key[b, :, g]
        d_key[b, :, g] += score_bar.T @ query[b, :, n]
    return d_query, d_key, d_value


# --- the parts of a Transformer ---------------------------------------------------------------------------------------


def rotate(x: Array, positions: Array, theta: float) -> Array:
    """Rotary embedding as complex numbers: pair k, x[k] + i x[k + H/2], times exp(i position theta^(-2k/H))."""
    half = x.shape[-1] // 2
    z = x[..., :half].astype(np.float64) + 1j * x[..., half:].astype(np.float64)
    angle = positions[:, :, None, None] * theta ** (-2 * np.arange(half) / x.shape[-1])
    z = z * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], axis=-1)


def layer_norm(x: Array, params: Mapping[str, Any], eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    return normed * params["scale"] + params["bias"]


def rms_norm(x: Array, params: Mapping[str, Any], eps: float, offset: float = 0.0) -> Array:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * (params["scale"] + offset)


NORMS = {"layer": layer_norm, "rms": rms_norm, "rms-offset": partial(rms_norm, offset=1.0)}


def gelu(x: Array, approximate: bool) -> Array:
    """x times the normal distribution's probability below x, or its usual approximation by tanh."""
    if approximate:
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def dense(x: Array, params: Mapping[str, Any]) -> Array:
    return np.tensordot(x, params["kernel"], axes=1) + params.get("bias", 0.0)


ACTIVATIONS = {
    "gelu": partial(gelu, approximate=True),
    "gelu-exact": partial(gelu, approximate=False),
    "quick-gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "relu": lambda x: np.maximum(x, 0),
}
GATES = {"swiglu": silu, "geglu": partial(gelu, approximate=True)}


def mlp(x: Array, params: Mapping[str, Any], kind: str) -> Array:
    hidden = dense(x, params["up"])
    if kind in GATES:
        return dense(hidden * GATES[kind](dense(x, params["gate"])), params["down"])
    return dense(ACTIVATIONS[kind](hidden), params["down"])


def block(
    params: Mapping[str, Any],
    x: Array,
    seen: Array,
    positions: Array | None = None,
    *,
    norm: str = "layer",
    norm_position: str = "pre",
    mlp_kind: str = "gelu",
    rope_theta: float | None = None,
    eps: float = 1e-6,
    scale: float | None = None,
    softcap: float | None = None,
) -> Array:
    """Attention, then the MLP, on float64 parameters; queries and keys are normed where there are parameters for it."""

    def normed(x: Array, layer: Mapping[str, Any]) -> Array:
        return NORMS[norm](x, layer, eps)

    def attend(x: Array) -> Array:
        layer = params["attention"]
        query, key, value = (dense(x, layer[name]) for name in ("query", "key", "value"))
        if "query_norm" in layer:
            query, key = normed(query, layer["query_norm"]), normed(key, layer["key_norm"])
        if rope_theta is not None:
            query, key = rotate(query, positions, rope_theta), rotate(key, positions, rope_theta)
        mixed = attention(query, key, value, seen, scale, softcap)
        return np.tensordot(mixed, layer["out"]["kernel"], axes=2) + layer["out"].get("bias", 0.0)

    for name, branch in (("attention", attend), ("mlp", lambda x: mlp(x, params["mlp"], mlp_kind))):
        match norm_position:
            case "pre":
                x = x + branch(normed(x, params[f"{name}_norm"]))
            case "post":
                x = normed(x + branch(x), params[f"{name}_norm"])
            case "sandwich":
                x = x + normed(branch(normed(x, params[f"{name}_norm"])), params[f"{name}_post_norm"])
    return x


def random_params(params: Any, rng: np.random.Generator) -> Any:
    """float32 parameters of the same shapes, where biases and scales count too."""
    return jax.tree.map(lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32), params)


def in_float64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
