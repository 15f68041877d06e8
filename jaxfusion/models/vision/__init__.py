"""The vision room: images (or what stands for them) to visual tokens.

Each network takes `Batch.images` and gives float[B, M, K, D]: K = config.num_tokens tokens of D = config.feature_width
for each of a row's M images, in the computation's dtype. Parameters are float32.
"""

from flax import linen as nn
from jax.typing import DTypeLike

from jaxfusion.config.model import (
    AttentionKernel,
    FeaturesConfig,
    LookupConfig,
    ResNetConfig,
    VGGConfig,
    Vision,
    ViTConfig,
)
from jaxfusion.models.vision.lookup import Features, Lookup
from jaxfusion.models.vision.resnet import ResNet
from jaxfusion.models.vision.vgg import VGG
from jaxfusion.models.vision.vit import ViT


def make_vision(config: Vision, dtype: DTypeLike, implementation: AttentionKernel = "auto") -> nn.Module:
    """The module that a vision config names; its `__call__(images)` gives float[B, M, K, D].

    images: uint8[B, M, H, W, 3], normalised here with the config's mean and std, or float that already is; int[B, M]
    ids for the lookup table; float[B, M, K, D] for precomputed features. Another shape or type raises ValueError.
    implementation: of the attention, where the network has any.
    """
    match config:
        case ResNetConfig():
            return ResNet(config, dtype)
        case VGGConfig():
            return VGG(config, dtype)
        case ViTConfig():
            return ViT(config, dtype, implementation)
        case LookupConfig():
            return Lookup(config, dtype)
        case FeaturesConfig():
            return Features(config, dtype)
