"""From the batch's images to what a network reads: checked, folded to one axis, normalised on the device."""

import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from jaxfusion.batch import HostOrDevice
from jaxfusion.config.model import Network


def fold_images(images: Shaped[HostOrDevice, "B M ..."], config: Network, dtype: DTypeLike) -> Float[Array, "BM H W 3"]:
    """All images on one axis, in `dtype`: integers as (x / 255 - mean) / std, floats as they are.

    Raises ValueError where H or W is not the config's image_size.
    """
    size = config.image_size
    if images.ndim != 5 or images.shape[2:] != (size, size, 3):
        raise ValueError(
            f"images have the shape {tuple(images.shape)}, but {config.kind} reads [B, M, {size}, {size}, 3]; "
            "resize the images or set vision.image_size"
        )
    images = rearrange(images, "b m h w c -> (b m) h w c")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        images = (jnp.asarray(images, jnp.float32) / 255 - jnp.array(config.mean)) / jnp.array(config.std)
    return jnp.asarray(images, dtype)


def unfold_tokens(features: Float[Array, "BM h w D"], num_images: int) -> Float[Array, "B M K D"]:
    """A feature map's cells as tokens, row by row; `num_images` is M."""
    return rearrange(features, "(b m) h w d -> b m (h w) d", m=num_images)
