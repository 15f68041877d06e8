"""Vision without pixels: an embedding table over image ids, and features that were computed beforehand."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from jaxfusion.batch import HostOrDevice
from jaxfusion.config.model import FeaturesConfig, LookupConfig, Network


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
        return given_features(images, self.config, self.dtype)


def given_features(
    images: Shaped[HostOrDevice, "B M ..."], config: FeaturesConfig | Network, dtype: DTypeLike
) -> Float[Array, "B M K D"]:
    """Features that were computed beforehand, in `dtype`. Raises ValueError for others than the config's."""
    wanted = (config.num_tokens, config.feature_width)
    if images.ndim != 4 or images.shape[2:] != wanted or not jnp.issubdtype(images.dtype, jnp.floating):
        mend = "set vision.num_tokens and vision.feature_width to what the features have"
        if not isinstance(config, FeaturesConfig):
            side = config.image_size
            mend = f"give what this {config.kind} makes of pictures, or pictures as [B, M, {side}, {side}, 3]"
        raise ValueError(
            f"images are {images.dtype}{list(images.shape)}, but features reads float [B, M, {wanted[0]}, "
            f"{wanted[1]}]; {mend}"
        )
    return jnp.asarray(images, dtype)
