"""The Vision Transformer (Dosovitskiy et al. 2021), with the variations of CLIP, SigLIP and DINOv2."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from jaxfusion.batch import HostOrDevice
from jaxfusion.config.model import AttentionKernel, TransformerConfig, ViTConfig
from jaxfusion.models.attention import Interval
from jaxfusion.models.lora import inside
from jaxfusion.models.stack import init_stack, run_stack, stack_param
from jaxfusion.models.transformer import Block, make_norm
from jaxfusion.models.vision.images import fold_images
from jaxfusion.models.vision.positions import resize_grid


class ViT(nn.Module):
    """Patches, an optional class token before them, learned positions, Transformer blocks and a last layer norm."""

    config: ViTConfig
    dtype: DTypeLike
    implementation: AttentionKernel = "auto"

    @nn.compact
    def __call__(self, images: Shaped[HostOrDevice, "B M ..."]) -> Float[Array, "B M K D"]:
        config = self.config
        x = self._embed(fold_images(images, config, self.dtype))
        if config.pre_norm:
            x = make_norm("layer", config.norm_eps, self.dtype, "pre_norm")(x)
        x = self._run_layers(x)
        normed = make_norm("layer", config.norm_eps, self.dtype, "final_norm")(x)
        if config.feature_layer == 0:  # else the norm only has parameters, and the compiler drops it
            x = normed
        if config.class_token and not config.keep_class_token:
            x = x[:, 1:]
        return rearrange(x, "(b m) k d -> b m k d", m=images.shape[1])

    def _embed(self, images: Float[Array, "BM H W 3"]) -> Float[Array, "BM K D"]:
        config, size = self.config, self.config.patch_size
        side = config.image_size // size * size  # what is left of a last, partial patch is not read
        patches = rearrange(images[:, :side, :side], "n (h p) (w q) c -> n (h w) (p q c)", p=size, q=size)
        # A matrix product, not a convolution; torch's kernel is "d c p q -> (p q c) d" of this one.
        x = nn.Dense(config.width, use_bias=config.patch_bias, dtype=self.dtype, name="patches")(patches)
        normal = nn.initializers.normal(0.02)
        if config.class_token:
            token = self.param("class_token", normal, (config.width,)).astype(self.dtype)
            x = jnp.concatenate([repeat(token, "d -> n 1 d", n=len(x)), x], axis=1)
        cells = ((config.position_size or config.image_size) // size) ** 2
        positions = self.param("positions", normal, (cells + config.class_token, config.width))
        first, grid = positions[: config.class_token], positions[config.class_token :]
        positions = jnp.concatenate([first, resize_grid(grid, config.image_size // size)])
        return x + positions.astype(self.dtype)

    def _run_layers(self, x: Float[Array, "BM K D"]) -> Float[Array, "BM K D"]:
        config = self.config
        layer = TransformerConfig(
            num_heads=config.num_heads,
            qkv_bias=config.qkv_bias,
            mlp_width=config.mlp_width,
            mlp=config.mlp,
            norm_eps=config.norm_eps,
            layer_scale=config.layer_scale,
        )
        block, path = Block(layer, self.dtype, self.implementation, parent=None), (*self.path, "layers")

        def init_layers(rng: Array) -> Any:
            one = jnp.ones((1, 1), jnp.int32)
            dummy = jnp.zeros((1, 1, config.width), self.dtype)
            # No parameter depends on the kernel, and XLA's takes the dummy's interval and size.
            xla = block.clone(implementation="xla")
            with inside(path):
                return init_stack(xla, rng, config.num_layers, dummy, Interval(one - one, one))

        def apply_block(params: Any, x: Array, _: None) -> tuple[Array, None]:
            with inside(path):
                return block.apply({"params": params}, x, everything)

        start = jnp.zeros(x.shape[:2], jnp.int32)
        everything = Interval(start, start + x.shape[1], "full")
        layers = stack_param(self, "layers", init_layers)
        if config.used_layers < config.num_layers:
            layers = jax.tree.map(lambda leaf: leaf[: config.used_layers], layers)
        return run_stack(apply_block, layers, x, scan=config.scan_layers)[0]
