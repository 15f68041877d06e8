"""The vision room: images (or what stands for them) to visual tokens.

Each network takes `Batch.images` and gives float[B, M, K, D]: K = config.num_tokens tokens of D = config.feature_width
for each of a row's M images, in the computation's dtype. Parameters are float32.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from jaxfusion.batch import HostOrDevice
from jaxfusion.config.model import (
    AttentionKernel,
    FeaturesConfig,
    LookupConfig,
    Network,
    ResNetConfig,
    VGGConfig,
    Vision,
    ViTConfig,
)
from jaxfusion.models.vision.lookup import Features, Lookup, given_features
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


def holds_features(images: Shaped[HostOrDevice, "B M ..."], config: Vision) -> bool:
    """Whether a network's own tokens, computed beforehand, stand in the batch in place of pictures."""
    return isinstance(config, Network) and images.ndim == 4 and jnp.issubdtype(images.dtype, jnp.floating)


def look(room: nn.Module, images: Shaped[HostOrDevice, "B M ..."]) -> Float[Array, "B M K D"]:
    """What the vision room makes of images; what a network made of them beforehand is passed on as it is."""
    if holds_features(images, room.config):
        return given_features(images, room.config, room.dtype)
    return room(images)
