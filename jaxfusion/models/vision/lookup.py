"""Vision without pixels: an embedding table over image ids, and features that were computed beforehand."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from jaxfusion.batch import HostOrDevice
from jaxfusion.config.model import FeaturesConfig, LookupConfig


class Lookup(nn.Module):
    """One learned vector for each image id."""

    config: LookupConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Shaped[HostOrDevice, "B M ..."]) -> Float[Array, "B M 1 D"]:
        """images: int[B, M], each below config.num_images."""
        if images.ndim != 2 or not jnp.issubdtype(images.dtype, jnp.integer):
            raise ValueError(
                f"images are {images.dtype}{list(images.shape)}, but lookup reads integer ids [B, M]; "
                "give each image's id, or choose another vision"
            )
        table = nn.Embed(self.config.num_images, self.config.width, dtype=self.dtype, name="table")
        return table(jnp.asarray(images))[:, :, None]


class Features(nn.Module):
    """The batch's features themselves. It has no parameters."""

    config: FeaturesConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Shaped[HostOrDevice, "B M ..."]) -> Float[Array, "B M K D"]:
        """images: float[B, M, K, D]."""
        wanted = (self.config.num_tokens, self.config.feature_width)
        if images.ndim != 4 or images.shape[2:] != wanted or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images are {images.dtype}{list(images.shape)}, but features reads float [B, M, {wanted[0]}, "
                f"{wanted[1]}]; set vision.num_tokens and vision.feature_width to what the features have"
            )
        return jnp.asarray(images, self.dtype)
