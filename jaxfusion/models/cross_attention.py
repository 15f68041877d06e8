"""Attention from one sequence to another: for gated fusion and the perceiver resampler."""

from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxfusion.config.model import AttentionKernel
from jaxfusion.models.alike import MANY, by_tiles
from jaxfusion.models.attention import Interval, attention
from jaxfusion.models.remat import named


class CrossAttention(nn.Module):
    """Multi-head attention whose queries come from x, keys and values from the context. Norms are the caller's."""

    num_heads: int
    dtype: DTypeLike
    implementation: AttentionKernel = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], context: Float[Array, "B S E"], interval: Interval
    ) -> Float[Array, "B T D"]:
        """interval: int32[B, T], of positions in the context. Raises ValueError where the heads do not divide D."""
        width = x.shape[-1]
        if width % self.num_heads:
            raise ValueError(f"{self.num_heads} attention heads do not divide the width {width}; change num_heads")

        def heads(source: Array, name: str) -> Array:
            return nn.DenseGeneral((self.num_heads, width // self.num_heads), dtype=self.dtype, name=name)(source)

        query = heads(x, "query")
        key, value = by_tiles(lambda context: (heads(context, "key"), heads(context, "value")), context, tile=MANY)
        query, key, value = named(query, "query"), named(key, "key"), named(value, "value")
        mixed = attention(query, key, value, interval, implementation=self.implementation)
        return nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, name="out")(named(mixed, "attention"))
