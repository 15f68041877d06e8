"""Residual networks (He et al. 2016), the v1.5 variant of torchvision and transformers: the stride of a bottleneck is
in its 3x3 convolution."""

from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from jaxfusion.batch import HostOrDevice
from jaxfusion.config.model import ResNetConfig
from jaxfusion.models.vision.convolution import ConvNorm, max_pool
from jaxfusion.models.vision.images import fold_images, unfold_tokens


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 around a bottleneck of a quarter of the width; then x is added."""

    config: ResNetConfig
    features: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w D"]:
        def conv(features: int, kernel_size: int, stride: int, name: str) -> ConvNorm:
            return ConvNorm(features, kernel_size, self.config.norm, self.dtype, stride, name=name)

        if self.config.block == "bottleneck":
            inner = self.features // 4
            layers = [(inner, 1, 1), (inner, 3, self.stride), (self.features, 1, 1)]
        else:
            layers = [(self.features, 3, self.stride), (self.features, 3, 1)]
        branch = x
        for index, layer in enumerate(layers):
            branch = conv(*layer, f"layer{index}")(branch if index == 0 else nn.relu(branch))
        if x.shape[-1] != self.features or self.stride != 1:
            x = conv(self.features, 1, self.stride, "shortcut")(x)
        return nn.relu(x + branch)


class ResNet(nn.Module):
    """The last feature map's cells are the tokens, row by row."""

    config: ResNetConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Shaped[HostOrDevice, "B M ..."]) -> Float[Array, "B M K D"]:
        config = self.config
        kernel_size, stride = (7, 2) if config.stem == "imagenet" else (3, 1)
        x = fold_images(images, config, self.dtype)
        x = nn.relu(ConvNorm(config.width, kernel_size, config.norm, self.dtype, stride, name="stem")(x))
        if config.stem == "imagenet":
            x = max_pool(x, window=3, padding=1)
        expansion = 4 if config.block == "bottleneck" else 1
        for stage, depth in enumerate(config.stage_depths):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                features = config.width * 2**stage * expansion
                x = ResidualBlock(config, features, stride, self.dtype, name=f"stage{stage}_block{block}")(x)
        return unfold_tokens(x, images.shape[1])
