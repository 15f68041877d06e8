"""Transformer blocks, and the stack of them that encoder and decoder share."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxfusion.config.model import AttentionKernel, TransformerConfig
from jaxfusion.models import float8, remat
from jaxfusion.models.alike import PositionWise, by_tiles
from jaxfusion.models.attention import Interval, attention, sliding_window
from jaxfusion.models.kv_cache import KVCache
from jaxfusion.models.lora import inside
from jaxfusion.models.remat import named
from jaxfusion.models.rope import Rotation, rotate, rotation
from jaxfusion.models.stack import Unstacked, grouped, init_stack, is_scanned, run_stack, stack_param, ungrouped


class OffsetRMSNorm(PositionWise, nn.Module):
    """RMS norm whose scale is stored minus one, as in Gemma; computed in float32."""

    epsilon: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        offset = self.param("scale", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        normed = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + self.epsilon)
        return (normed * (1 + offset)).astype(self.dtype)


def make_norm(kind: Literal["layer", "rms", "rms-offset"], eps: float, dtype: DTypeLike, name: str) -> nn.Module:
    """Layer norm (Ba et al. 2016) or RMS norm (Zhang & Sennrich 2019); statistics are taken in float32."""
    norm = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "rms-offset": OffsetRMSNorm}[kind]
    return norm(epsilon=eps, dtype=dtype, name=name)


class SelfAttention(nn.Module):
    """Multi-head or grouped-query self-attention with optional rotary positions and a KV cache."""

    config: TransformerConfig
    dtype: DTypeLike
    implementation: AttentionKernel

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        interval: Interval,
        positions: Int[Array, "B T"] | None = None,
        rotation: Rotation | None = None,
        cache: KVCache | None = None,
        cache_index: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Decoding: the new keys go to cache_index onwards, and the interval counts the cache's positions.

        Prefill: with a cache but no cache_index, the cache is filled from its start and only the new keys are seen.
        """
        config = self.config
        head_dim = config.head_dim or x.shape[-1] // config.num_heads

        num_kv_heads = config.num_kv_heads or config.num_heads

        def project(x: Array, positions: Array | None = None) -> tuple[Array, Array, Array]:
            def heads(count: int, name: str) -> Array:
                return nn.DenseGeneral((count, head_dim), use_bias=config.qkv_bias, dtype=self.dtype, name=name)(x)

            query, key = heads(config.num_heads, "query"), heads(num_kv_heads, "key")
            value = heads(num_kv_heads, "value")
            if config.qk_norm:
                query = make_norm(config.norm, config.norm_eps, self.dtype, "query_norm")(query)
                key = make_norm(config.norm, config.norm_eps, self.dtype, "key_norm")(key)
            if rotation is not None:
                query, key = (rotate(part, positions, rotation) for part in (query, key))
            return query, key, value

        query, key, value = by_tiles(project, x) if rotation is None else by_tiles(project, x, positions)
        if cache is not None:
            prefill = cache_index is None
            new = cache.stored(key, value)
            cache = cache.write(new, jnp.zeros(x.shape[0], jnp.int32) if prefill else cache_index)
            # A prompt's own keys, too, as they will be read: so it is the same whether it is read whole or in parts.
            key, value = (new if prefill else cache).read(self.dtype)
        query, key, value = named(query, "query"), named(key, "key"), named(value, "value")
        mixed = attention(
            query,
            key,
            value,
            interval,
            scale=config.query_scale,
            softcap=config.attention_softcap,
            implementation=self.implementation if cache_index is None else "auto",  # cuDNN's cannot read a cache
        )
        out = nn.DenseGeneral(x.shape[-1], axis=(-2, -1), use_bias=config.out_bias, dtype=self.dtype, name="out")
        return out(named(mixed, "attention")), cache


def quick_gelu(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """The GELU by a sigmoid, as in OpenAI's CLIP (Hendrycks & Gimpel 2016)."""
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": nn.gelu,
    "gelu-exact": partial(nn.gelu, approximate=False),
    "quick-gelu": quick_gelu,
    "relu": nn.relu,
}
GATES = {"swiglu": nn.silu, "geglu": nn.gelu}


class MLP(nn.Module):
    """Two matrices with an activation between them, or three with a gate (SwiGLU and GEGLU, Shazeer 2020)."""

    hidden_width: int
    kind: Literal["gelu", "gelu-exact", "quick-gelu", "relu", "swiglu", "geglu"]
    dtype: DTypeLike
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        def dense(width: int, name: str) -> nn.Module:
            return nn.Dense(width, use_bias=self.use_bias, dtype=self.dtype, name=name)

        hidden = dense(self.hidden_width, "up")(x)
        if self.kind in GATES:
            hidden *= GATES[self.kind](dense(self.hidden_width, "gate")(x))
        else:
            hidden = ACTIVATIONS[self.kind](hidden)
        return dense(x.shape[-1], "down")(hidden)


class Block(nn.Module):
    """Attention, then the MLP: each a residual branch, normed where the config's norm_position says."""

    config: TransformerConfig
    dtype: DTypeLike
    implementation: AttentionKernel = "auto"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        interval: Interval,
        positions: Int[Array, "B T"] | None = None,
        rotation: Rotation | None = None,
        cache: KVCache | None = None,
        cache_index: Int[Array, " B"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        config = self.config

        def norm(x: Array, name: str) -> Array:
            return make_norm(config.norm, config.norm_eps, self.dtype, name)(x)

        def read(x: Array, name: str) -> Array:
            return x if config.norm_position == "post" else norm(x, f"{name}_norm")

        def add(x: Array, branch: Array, name: str) -> Array:
            if config.norm_position == "sandwich":
                branch = norm(branch, f"{name}_post_norm")
            if config.layer_scale:
                branch *= self.param(f"{name}_scale", nn.initializers.ones, branch.shape[-1:]).astype(self.dtype)
            x = x + nn.Dropout(config.dropout, deterministic=deterministic)(branch)
            return norm(x, f"{name}_norm") if config.norm_position == "post" else x

        attend = SelfAttention(config, self.dtype, self.implementation, name="attention")
        mlp = MLP(config.mlp_width or 4 * x.shape[-1], config.mlp, self.dtype, config.mlp_bias, name="mlp")

        def go_on(x: Array, branch: Array) -> Array:
            x = add(x, branch, "attention")
            return add(x, mlp(read(x, "mlp")), "mlp")

        branch, cache = attend(read(x, "attention"), interval, positions, rotation, cache, cache_index)
        return by_tiles(go_on, x, branch), cache


class Interleaved(NamedTuple):
    """Layers put between those of a stack: `apply(params[g], x)` runs before every `every`-th layer."""

    apply: Callable[[Any, Array], Array]
    params: Any
    every: int


class TransformerLayers(nn.Module):
    """The blocks of an encoder or decoder and the norm after the last, on parameters stacked over layers."""

    config: TransformerConfig
    rotary: bool
    implementation: AttentionKernel
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        interval: Interval,
        positions: Int[Array, "B T"],
        *,
        interleaved: Interleaved | None = None,
        cache: KVCache | Unstacked | None = None,
        cache_index: Int[Array, " B"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B T D"], KVCache | Unstacked | None]:
        """cache: float[L, B, S, G, H], or one of each layer where the parameters are `Unstacked` too, see
        `SelfAttention`; returned with the new keys and values in it."""
        config, width = self.config, x.shape[-1]
        block, path = Block(config, self.dtype, self.implementation, parent=None), (*self.path, "layers")

        def init_layers(rng: Array) -> Any:
            one = jnp.zeros((1, 1), jnp.int32)
            dummy = jnp.zeros((1, 1, width), self.dtype)
            # No parameter depends on the kernel, and XLA's takes the dummy's interval and size.
            xla = block.clone(implementation="xla")
            with inside(path):
                return init_stack(xla, rng, config.num_layers, dummy, Interval(one, one + 1))

        # What all layers share stays out of the scan: a plain causal interval then keeps its kernel.
        column = None if cache_index is None else cache_index[:, None] + jnp.arange(x.shape[1])
        window, windows = _shared_or_stacked(config.layer_windows)
        rotations = [rotation(rope, config.head_dim or width // config.num_heads) for rope in config.layer_ropes]
        shared_rotation, rotations = _shared_or_stacked(rotations if self.rotary else [None])
        if window:
            interval = sliding_window(interval, window, column)

        def apply_block(params: Any, x: Array, xs: tuple) -> tuple[Array, KVCache | None]:
            layer_cache, key, layer_window, layer_rotation = xs
            rngs = None if key is None else {"dropout": key}
            seen = interval if layer_window is None else sliding_window(interval, layer_window, column)
            turn = shared_rotation if layer_rotation is None else layer_rotation
            args = (x, seen, positions, turn, layer_cache, cache_index, deterministic)
            with inside(path):
                return block.apply({"params": params}, *args, rngs=rngs)

        params = stack_param(self, "layers", init_layers)
        has_dropout = config.dropout > 0 and not deterministic
        keys = jax.random.split(self.make_rng("dropout"), config.num_layers) if has_dropout else None
        xs = (cache, keys, windows, rotations)
        if interleaved is None:
            x, cache = run_stack(apply_block, params, x, xs, scan=config.scan_layers)
        else:
            x, cache = _run_interleaved(apply_block, params, x, xs, interleaved, config.scan_layers)
        if config.norm_position == "post":
            return x, cache
        return make_norm(config.norm, config.norm_eps, self.dtype, "final_norm")(x), cache


def _shared_or_stacked(layers: Sequence[Any]) -> tuple[Any, Any]:
    """(what all layers have, None), or (None, the layers' different constants on a leading axis)."""
    first, *others = layers
    if all(jax.tree.all(jax.tree.map(np.array_equal, first, other)) for other in others):
        return first, None
    return None, jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def _run_interleaved(
    apply: Callable, params: Any, x: Array, xs: Any, interleaved: Interleaved, scan: bool | None
) -> tuple[Array, Any]:
    def apply_group(params: Any, x: Array, xs: Any) -> tuple[Array, Any]:
        between, layers = params
        return run_stack(apply, layers, apply_between(between, x), xs, scan=scan)

    scan = is_scanned(scan)
    apply_between = remat.layer(float8.layer(interleaved.apply), in_scan=scan)
    layers, xs = grouped(params, interleaved.every), tuple(grouped(part, interleaved.every) for part in xs)
    if isinstance(layers, Unstacked):
        between = interleaved.params
        between = between if isinstance(between, Unstacked) else Unstacked.of(between)
        both = Unstacked(tuple(zip(between.layers, layers.layers, strict=True)))
    else:
        both = (interleaved.params, layers)
    x, outputs = run_stack(apply_group, both, x, xs, scan=scan, grouped=True)
    return x, ungrouped(outputs)
