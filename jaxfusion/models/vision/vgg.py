"""The convolutional part of VGG (Simonyan & Zisserman 2015), in torchvision's layout."""

from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from jaxfusion.batch import HostOrDevice
from jaxfusion.config.model import VGGConfig
from jaxfusion.models.vision.convolution import ConvNorm, max_pool
from jaxfusion.models.vision.images import fold_images, unfold_tokens


class VGG(nn.Module):
    """Stages of 3x3 convolutions with ReLU, each ended by a 2x2 max pool; the last one's cells are the tokens."""

    config: VGGConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Shaped[HostOrDevice, "B M ..."]) -> Float[Array, "B M K D"]:
        config = self.config
        x = fold_images(images, config, self.dtype)
        for stage, (depth, width) in enumerate(zip(config.stage_depths, config.stage_widths, strict=True)):
            for layer in range(depth):
                x = nn.relu(ConvNorm(width, 3, config.norm, self.dtype, name=f"stage{stage}_layer{layer}")(x))
            x = max_pool(x, window=2)
        return unfold_tokens(x, images.shape[1])
