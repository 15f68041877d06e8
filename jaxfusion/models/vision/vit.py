"""The Vision Transformer (Dosovitskiy et al. 2021)."""

from typing import Any, Literal

import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from jaxfusion.batch import HostOrDevice
from jaxfusion.config.model import ViTConfig
from jaxfusion.models.attention import Interval
from jaxfusion.models.stack import init_stack, run_stack
from jaxfusion.models.transformer import Block, make_norm
from jaxfusion.models.vision.images import fold_images


class ViT(nn.Module):
    """Patches, an optional class token before them, learned positions, Transformer blocks and a last layer norm."""

    config: ViTConfig
    dtype: DTypeLike
    implementation: Literal["auto", "xla", "cudnn"] = "auto"

    @nn.compact
    def __call__(self, images: Shaped[HostOrDevice, "B M ..."]) -> Float[Array, "B M K D"]:
        config = self.config
        x = self._embed(fold_images(images, config, self.dtype))
        block = Block(
            num_heads=config.num_heads,
            mlp_width=config.mlp_width,
            norm_eps=config.norm_eps,
            approximate_gelu=False,
            implementation=self.implementation,
            dtype=self.dtype,
            parent=None,
        )

        def init_layers(rng: Array) -> Any:
            one = jnp.ones((1, 1), jnp.int32)
            dummy = jnp.zeros((1, 1, config.width), self.dtype)
            # No parameter depends on the kernel, and XLA's takes the dummy's interval and size.
            xla = block.clone(implementation="xla")
            return init_stack(xla, rng, config.num_layers, dummy, Interval(one - one, one))

        start = jnp.zeros(x.shape[:2], jnp.int32)
        everything = Interval(start, start + config.num_tokens, "full")
        layers = self.param("layers", init_layers)
        x, _ = run_stack(
            lambda params, x, _: block.apply({"params": params}, x, everything), layers, x, scan=config.scan_layers
        )
        x = make_norm("layer", config.norm_eps, self.dtype, "final_norm")(x)
        return rearrange(x, "(b m) k d -> b m k d", m=images.shape[1])

    def _embed(self, images: Float[Array, "BM H W 3"]) -> Float[Array, "BM K D"]:
        config, size = self.config, self.config.patch_size
        side = config.image_size // size * size  # what is left of a last, partial patch is not read
        patches = rearrange(images[:, :side, :side], "n (h p) (w q) c -> n (h w) (p q c)", p=size, q=size)
        # A matrix product, not a convolution; torch's kernel is "d c p q -> (p q c) d" of this one.
        x = nn.Dense(config.width, dtype=self.dtype, name="patches")(patches)
        normal = nn.initializers.normal(0.02)
        if config.class_token:
            token = self.param("class_token", normal, (config.width,)).astype(self.dtype)
            x = jnp.concatenate([repeat(token, "d -> n 1 d", n=len(x)), x], axis=1)
        return x + self.param("positions", normal, (config.num_tokens, config.width)).astype(self.dtype)
