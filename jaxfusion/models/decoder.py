"""The decoder room's classifiers. (The causal decoder is `transformer.TransformerLayers` and an output matrix.)"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxfusion.models.alike import FEW, by_tiles


class Output(nn.Module):
    """Logits in float32 by one matrix without a bias."""

    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.num_classes))
        matrix = kernel.astype(self.dtype)
        return by_tiles(lambda x: jnp.einsum("btd,dv->btv", x, matrix, preferred_element_type=jnp.float32), x, tile=FEW)


def pool_segments(
    x: Float[Array, "B T D"], segment_ids: Int[Array, "B T"], pool: Literal["mean", "last"]
) -> Float[Array, "B T D"]:
    """Each position gets its segment's mean, or its last position's vector. Segment 0 pools the padding."""
    num_segments = x.shape[1] + 1  # a row cannot hold more
    by_segment = jax.vmap(lambda values, ids: jax.ops.segment_sum(values, ids, num_segments))
    if pool == "last":
        following = jnp.pad(segment_ids[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
        x = jnp.where((segment_ids != following)[..., None], x, 0)
    total = by_segment(x.astype(jnp.float32), segment_ids)
    if pool == "mean":
        count = by_segment(jnp.ones_like(segment_ids, jnp.float32), segment_ids)
        total /= jnp.maximum(count, 1)[..., None]
    return jnp.take_along_axis(total, segment_ids[..., None], axis=1).astype(x.dtype)
