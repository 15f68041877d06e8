"""Pre-norm Transformer blocks, and the stack of them that encoder and decoder share."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxfusion.config.model import TransformerConfig
from jaxfusion.models.attention import Interval, attention
from jaxfusion.models.stack import init_stack, run_stack


@struct.dataclass
class KVCache:
    """Keys and values of the S positions a row may have: float[B, S, G, H] each."""

    key: Float[Array, "*L B S G H"]
    value: Float[Array, "*L B S G H"]

    def write(self, key: Array, value: Array, index: Int[Array, " B"]) -> "KVCache":
        """Puts T new keys and values of each row b at positions index[b] onwards."""

        def put(cache: Array, new: Array) -> Array:
            update = jax.vmap(lambda row, part, at: jax.lax.dynamic_update_slice_in_dim(row, part, at, axis=0))
            return update(cache, new.astype(cache.dtype), index)

        return KVCache(put(self.key, key), put(self.value, value))


def rotate(x: Float[Array, "B T N H"], positions: Int[Array, "B T"], theta: float) -> Float[Array, "B T N H"]:
    """Rotary position embedding (Su et al. 2021), the two halves of the head rotated against each other, in float32."""
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None] * frequency
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def make_norm(kind: Literal["layer", "rms"], eps: float, dtype: DTypeLike, name: str) -> nn.Module:
    """Layer norm (Ba et al. 2016) or RMS norm (Zhang & Sennrich 2019); statistics are taken in float32."""
    norm = nn.LayerNorm if kind == "layer" else nn.RMSNorm
    return norm(epsilon=eps, dtype=dtype, name=name)


class SelfAttention(nn.Module):
    """Multi-head or grouped-query self-attention with optional rotary positions and a KV cache."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float | None
    use_bias: bool
    implementation: Literal["auto", "xla", "cudnn"]
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        interval: Interval,
        positions: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
        cache_index: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Decoding: the new keys go to cache_index onwards, and the interval counts the cache's positions.

        Prefill: with a cache but no cache_index, the cache is filled from its start and only the new keys are seen.
        """

        def heads(count: int, name: str) -> Array:
            return nn.DenseGeneral((count, self.head_dim), use_bias=self.use_bias, dtype=self.dtype, name=name)(x)

        query, key, value = (
            heads(self.num_heads, "query"),
            heads(self.num_kv_heads, "key"),
            heads(self.num_kv_heads, "value"),
        )
        if self.rope_theta is not None:
            query, key = (rotate(part, positions, self.rope_theta) for part in (query, key))
        if cache is not None:
            prefill = cache_index is None
            cache = cache.write(key, value, jnp.zeros(x.shape[0], jnp.int32) if prefill else cache_index)
            if not prefill:
                key, value = cache.key, cache.value
        implementation = self.implementation if cache_index is None else "auto"  # cuDNN's cannot read a cache
        mixed = attention(query, key, value, interval, implementation=implementation)
        out = nn.DenseGeneral(x.shape[-1], axis=(-2, -1), use_bias=self.use_bias, dtype=self.dtype, name="out")
        return out(mixed), cache


class MLP(nn.Module):
    """Two matrices with a GELU between them, or the gated SwiGLU (Shazeer 2020), which has no biases."""

    hidden_width: int
    kind: Literal["gelu", "swiglu"]
    dtype: DTypeLike
    approximate_gelu: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        bias = self.kind == "gelu"
        hidden = nn.Dense(self.hidden_width, use_bias=bias, dtype=self.dtype, name="up")(x)
        if self.kind == "swiglu":
            hidden *= nn.silu(nn.Dense(self.hidden_width, use_bias=False, dtype=self.dtype, name="gate")(x))
        else:
            hidden = nn.gelu(hidden, approximate=self.approximate_gelu)
        return nn.Dense(x.shape[-1], use_bias=bias, dtype=self.dtype, name="down")(hidden)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    num_heads: int
    mlp_width: int
    dtype: DTypeLike
    num_kv_heads: int | None = None
    head_dim: int | None = None
    mlp: Literal["gelu", "swiglu"] = "gelu"
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-6
    rope_theta: float | None = None
    approximate_gelu: bool = True
    dropout: float = 0.0
    implementation: Literal["auto", "xla", "cudnn"] = "auto"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        interval: Interval,
        positions: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
        cache_index: Int[Array, " B"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        def dropout(branch: Array) -> Array:
            return nn.Dropout(self.dropout, deterministic=deterministic)(branch)

        attend = SelfAttention(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads or self.num_heads,
            head_dim=self.head_dim or x.shape[-1] // self.num_heads,
            rope_theta=self.rope_theta,
            use_bias=self.norm == "layer",
            implementation=self.implementation,
            dtype=self.dtype,
            name="attention",
        )
        normed = make_norm(self.norm, self.norm_eps, self.dtype, "attention_norm")(x)
        branch, cache = attend(normed, interval, positions, cache, cache_index)
        x = x + dropout(branch)
        mlp = MLP(self.mlp_width, self.mlp, self.dtype, self.approximate_gelu, name="mlp")
        branch = mlp(make_norm(self.norm, self.norm_eps, self.dtype, "mlp_norm")(x))
        return x + dropout(branch), cache


class Interleaved(NamedTuple):
    """Layers put between those of a stack: `apply(params[g], x)` runs before every `every`-th layer."""

    apply: Callable[[Any, Array], Array]
    params: Any
    every: int


class TransformerLayers(nn.Module):
    """The blocks of an encoder or decoder and the norm after the last, on parameters stacked over layers."""

    config: TransformerConfig
    rotary: bool
    implementation: Literal["auto", "xla", "cudnn"]
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        interval: Interval,
        positions: Int[Array, "B T"],
        *,
        interleaved: Interleaved | None = None,
        cache: KVCache | None = None,
        cache_index: Int[Array, " B"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """cache: float[L, B, S, G, H], see `SelfAttention`; returned with the new keys and values in it."""
        config, width = self.config, x.shape[-1]
        block = Block(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads or None,
            head_dim=config.head_dim or None,
            mlp_width=config.mlp_width or 4 * width,
            mlp=config.mlp,
            norm=config.norm,
            rope_theta=config.rope_theta if self.rotary else None,
            dropout=config.dropout,
            implementation=self.implementation,
            dtype=self.dtype,
            parent=None,
        )

        def init_layers(rng: Array) -> Any:
            one = jnp.zeros((1, 1), jnp.int32)
            dummy = jnp.zeros((1, 1, width), self.dtype)
            # No parameter depends on the kernel, and XLA's takes the dummy's interval and size.
            return init_stack(
                block.clone(implementation="xla"), rng, config.num_layers, dummy, Interval(one, one + 1), one
            )

        def apply_block(params: Any, x: Array, xs: tuple) -> tuple[Array, KVCache | None]:
            layer_cache, key = xs
            rngs = None if key is None else {"dropout": key}
            args = (x, interval, positions, layer_cache, cache_index, deterministic)
            return block.apply({"params": params}, *args, rngs=rngs)

        params = self.param("layers", init_layers)
        has_dropout = config.dropout > 0 and not deterministic
        xs = (cache, jax.random.split(self.make_rng("dropout"), config.num_layers) if has_dropout else None)
        if interleaved is None:
            x, cache = run_stack(apply_block, params, x, xs, scan=config.scan_layers)
        else:
            x, cache = _run_interleaved(apply_block, params, x, xs, interleaved, config.scan_layers)
        return make_norm(config.norm, 1e-6, self.dtype, "final_norm")(x), cache


def _run_interleaved(
    apply: Callable, params: Any, x: Array, xs: Any, interleaved: Interleaved, scan: bool
) -> tuple[Array, Any]:
    def grouped(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.reshape(-1, interleaved.every, *leaf.shape[1:]), tree)

    def apply_group(params: Any, x: Array, xs: Any) -> tuple[Array, Any]:
        between, layers = params
        return run_stack(apply, layers, interleaved.apply(between, x), xs, scan=scan)

    x, outputs = run_stack(apply_group, (interleaved.params, grouped(params)), x, grouped(xs), scan=scan)
    return x, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), outputs)
