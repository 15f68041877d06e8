"""From the vision's tokens to the language model's: float[B, M, K, E] to float[B, M, K', D].

K' is the config's num_tokens(K), D the model's width.
"""

import math

import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxfusion.config.model import (
    AttentionKernel,
    LinearProjectorConfig,
    MappingProjectorConfig,
    MLPProjectorConfig,
    PerceiverProjectorConfig,
    PixelShuffleProjectorConfig,
    PoolProjectorConfig,
    Projector,
    TransformerConfig,
)
from jaxfusion.models.attention import Interval
from jaxfusion.models.cross_attention import CrossAttention
from jaxfusion.models.transformer import ACTIVATIONS, MLP, TransformerLayers, make_norm


def make_projector(
    config: Projector, width: int, dtype: DTypeLike, implementation: AttentionKernel = "auto"
) -> nn.Module:
    """The module that a projector config names: [B, M, K, E] -> [B, M, K', width], computed in `dtype`.

    implementation: of the attention, where the projector has any.
    """
    match config:
        case LinearProjectorConfig():
            return LinearProjector(config, width, dtype)
        case MLPProjectorConfig():
            return MLPProjector(config, width, dtype)
        case PixelShuffleProjectorConfig():
            return PixelShuffleProjector(config, width, dtype)
        case PoolProjectorConfig():
            return PoolProjector(config, width, dtype)
        case PerceiverProjectorConfig():
            return PerceiverResampler(config, width, dtype, implementation)
        case MappingProjectorConfig():
            return MappingNetwork(config, width, dtype, implementation)


class LinearProjector(nn.Module):
    """One matrix over each token, over their mean, or over all of them side by side, which may give several."""

    config: LinearProjectorConfig
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B M K E"]) -> Float[Array, "B M N D"]:
        match self.config.pool:
            case "mean":
                x = reduce(x, "b m k e -> b m 1 e", "mean")
            case "concatenate":
                x = rearrange(x, "b m k e -> b m 1 (k e)")
        x = nn.Dense(self.config.prefix_length * self.width, dtype=self.dtype, name="linear")(x)
        return rearrange(x, "b m k (n d) -> b m (k n) d", n=self.config.prefix_length)


class MLPProjector(nn.Module):
    """Two matrices with an activation between them, over each token."""

    config: MLPProjectorConfig
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B M K E"]) -> Float[Array, "B M K D"]:
        config = self.config
        up = nn.Dense(config.hidden_width or self.width, use_bias=config.bias, dtype=self.dtype, name="up")
        down = nn.Dense(self.width, use_bias=config.bias, dtype=self.dtype, name="down")
        return down(ACTIVATIONS[config.activation](up(x)))


class PixelShuffleProjector(nn.Module):
    """One matrix over each factor x factor square of neighbouring tokens, laid side by side row by row."""

    config: PixelShuffleProjectorConfig
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B M K E"]) -> Float[Array, "B M N D"]:
        """Raises ValueError where the tokens are no square grid or the factor does not divide its side."""
        squares = _squares(x, self.config)
        joined = rearrange(squares, "b m h p w q e -> b m (h w) (p q e)")
        return nn.Dense(self.width, use_bias=self.config.bias, dtype=self.dtype, name="linear")(joined)


class PoolProjector(nn.Module):
    """The mean of each factor x factor square of neighbouring tokens, normed, then one matrix."""

    config: PoolProjectorConfig
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B M K E"]) -> Float[Array, "B M N D"]:
        """Raises ValueError as `PixelShuffleProjector` does."""
        pooled = reduce(_squares(x, self.config), "b m h p w q e -> b m (h w) e", "mean")
        normed = make_norm("rms-offset", self.config.norm_eps, self.dtype, "norm")(pooled)
        return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name="linear")(normed)


def _squares(
    x: Float[Array, "B M K E"], config: PixelShuffleProjectorConfig | PoolProjectorConfig
) -> Float[Array, "B M h p w q E"]:
    """The grid of tokens in squares of p x q = factor x factor."""
    num_tokens, factor = x.shape[2], config.factor
    side = math.isqrt(num_tokens)
    if side * side != num_tokens:
        raise ValueError(
            f"{config.kind} needs a square grid of visual tokens, but an image has {num_tokens}; "
            "set vision.keep_class_token to False or choose another projector"
        )
    if side % factor:
        raise ValueError(
            f"{config.kind}'s factor {factor} does not divide the {side} x {side} grid of visual tokens; "
            "change projector.factor or vision.image_size"
        )
    return rearrange(x, "b m (h p w q) e -> b m h p w q e", w=side // factor, p=factor, q=factor)


class PerceiverLayer(nn.Module):
    """Latents attend to the image's tokens and themselves, then pass an MLP; both are residual and pre-norm."""

    num_heads: int
    dtype: DTypeLike
    implementation: AttentionKernel

    @nn.compact
    def __call__(
        self, latents: Float[Array, "N Q D"], tokens: Float[Array, "N K D"], everything: Interval
    ) -> Float[Array, "N Q D"]:
        def norm(x: Array, name: str) -> Array:
            return make_norm("layer", 1e-6, self.dtype, name)(x)

        normed = norm(latents, "latent_norm")
        context = jnp.concatenate([norm(tokens, "token_norm"), normed], axis=1)
        attend = CrossAttention(self.num_heads, self.dtype, self.implementation, name="attention")
        latents = latents + attend(normed, context, everything)
        return latents + MLP(4 * latents.shape[-1], "gelu", self.dtype, name="mlp")(norm(latents, "mlp_norm"))


class PerceiverResampler(nn.Module):
    """Flamingo's resampler (Alayrac et al. 2022, figure 5); the tokens are first brought to the model's width."""

    config: PerceiverProjectorConfig
    width: int
    dtype: DTypeLike
    implementation: AttentionKernel

    @nn.compact
    def __call__(self, x: Float[Array, "B M K E"]) -> Float[Array, "B M Q D"]:
        num_images, config = x.shape[1], self.config
        tokens = nn.Dense(self.width, dtype=self.dtype, name="input")(rearrange(x, "b m k e -> (b m) k e"))
        latents = self.param("latents", nn.initializers.normal(0.02), (config.num_queries, self.width))
        latents = repeat(latents.astype(self.dtype), "q d -> n q d", n=len(tokens))
        start = jnp.zeros(latents.shape[:2], jnp.int32)
        everything = Interval(start, start + tokens.shape[1] + config.num_queries)
        for index in range(config.num_layers):
            layer = PerceiverLayer(config.num_heads, self.dtype, self.implementation, name=f"layer{index}")
            latents = layer(latents, tokens, everything)
        latents = make_norm("layer", 1e-6, self.dtype, "final_norm")(latents)
        return rearrange(latents, "(b m) q d -> b m q d", m=num_images)


class MappingNetwork(nn.Module):
    """A Transformer over the image's tokens and learned constants, read at the constants (ClipCap, Mokady et al.
    2021)."""

    config: MappingProjectorConfig
    width: int
    dtype: DTypeLike
    implementation: AttentionKernel

    @nn.compact
    def __call__(self, x: Float[Array, "B M K E"]) -> Float[Array, "B M P D"]:
        num_images, config = x.shape[1], self.config
        tokens = nn.Dense(self.width, dtype=self.dtype, name="input")(rearrange(x, "b m k e -> (b m) k e"))
        prefix = self.param("prefix", nn.initializers.normal(0.02), (config.prefix_length, self.width))
        prefix = repeat(prefix.astype(self.dtype), "p d -> n p d", n=len(tokens))
        joined = jnp.concatenate([tokens, prefix], axis=1)
        start = jnp.zeros(joined.shape[:2], jnp.int32)
        everything = Interval(start, start + joined.shape[1], "full")
        layers = TransformerConfig(num_layers=config.num_layers, num_heads=config.num_heads)
        transformer = TransformerLayers(layers, False, self.implementation, self.dtype, name="transformer")
        mixed, _ = transformer(joined, everything, start)
        return rearrange(mixed[:, -config.prefix_length :], "(b m) p d -> b m p d", m=num_images)
