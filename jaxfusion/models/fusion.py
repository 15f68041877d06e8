"""Where visual tokens and text meet: in a position of their own, added, or by gated cross-attention."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxfusion.config.model import AttentionKernel, CrossAttentionFusionConfig
from jaxfusion.models.alike import by_tiles
from jaxfusion.models.attention import Interval
from jaxfusion.models.cross_attention import CrossAttention
from jaxfusion.models.lora import inside
from jaxfusion.models.stack import init_stack, stack_param
from jaxfusion.models.transformer import MLP, Interleaved, make_norm


def place(
    text: Float[Array, "B T D"], visual: Float[Array, "B S D"], visual_index: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """The visual token itself where one stands, the text elsewhere (index -1)."""
    return jnp.where(visual_index[..., None] >= 0, _gather(visual, visual_index), text)


def add(
    text: Float[Array, "B T D"], visual: Float[Array, "B S D"], visual_index: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """H + V: each position's visual token added to its text embedding; the text alone where the index is -1."""
    return text + jnp.where(visual_index[..., None] >= 0, _gather(visual, visual_index), 0)


def _gather(visual: Array, visual_index: Array) -> Array:
    return jnp.take_along_axis(visual, jnp.maximum(visual_index, 0)[..., None], axis=1)


def visible_images(
    segment_ids: Int[Array, "B T"], image_segment_ids: Int[Array, "B M"], tokens_per_image: int
) -> Interval:
    """For each position, the visual tokens of its own segment's images, as an interval of the row's M * K."""
    segment, image = segment_ids[..., None], image_segment_ids[:, None]
    before = jnp.sum((image > 0) & (image < segment), axis=-1)
    own = jnp.sum((image > 0) & (image == segment), axis=-1)
    return Interval(before * tokens_per_image, (before + own) * tokens_per_image)


class GatedCrossAttention(nn.Module):
    """x + tanh(gate) * cross_attention(x, visual), then the same with an MLP (Flamingo, Alayrac et al. 2022).

    Both gates start at zero, so that a language model is untouched when training begins. A position that sees no image
    is never touched: what a text-only sample gets does not depend on the samples beside it.
    """

    num_heads: int
    dtype: jnp.dtype
    implementation: AttentionKernel

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], visual: Float[Array, "B S D"], interval: Interval
    ) -> Float[Array, "B T D"]:
        def gate(name: str) -> Array:
            return jnp.tanh(self.param(name, nn.initializers.zeros, ())).astype(self.dtype)

        attend = CrossAttention(self.num_heads, self.dtype, self.implementation, name="attention")
        mlp = MLP(4 * x.shape[-1], "gelu", self.dtype, name="mlp")

        def go_on(x: Array, attended: Array) -> Array:
            x = x + gate("attention_gate") * attended
            return x + gate("mlp_gate") * mlp(make_norm("layer", 1e-6, self.dtype, "mlp_norm")(x))

        normed = make_norm("layer", 1e-6, self.dtype, "attention_norm")(x)
        seen = by_tiles(go_on, x, attend(normed, visual, interval))
        return jnp.where((interval.end > interval.start)[..., None], seen, x)


class CrossAttentionFusion(nn.Module):
    """Gated cross-attention layers to be interleaved with the Transformer's own."""

    config: CrossAttentionFusionConfig
    num_layers: int  # of the Transformer
    dtype: jnp.dtype
    implementation: AttentionKernel = "auto"

    @nn.compact
    def __call__(self, visual: Float[Array, "B S D"], interval: Interval) -> Interleaved:
        layer = GatedCrossAttention(self.config.num_heads, self.dtype, self.implementation, parent=None)
        path, width = (*self.path, "layers"), visual.shape[-1]

        def init_layers(rng: Array) -> Any:
            one = jnp.zeros((1, 1), jnp.int32)
            x = jnp.zeros((1, 1, width), self.dtype)
            with inside(path):
                return init_stack(layer, rng, self.num_layers // self.config.every, x, x, Interval(one, one + 1))

        def apply(params: Any, x: Array) -> Array:
            with inside(path):
                return layer.apply({"params": params}, x, visual, interval)

        return Interleaved(apply, stack_param(self, "layers", init_layers), self.config.every)
