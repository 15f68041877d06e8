"""The well-known sizes behind the presets' names, and the sizes that the rooms derive from them."""

from typing import get_args

import pytest

from jaxfusion.config.model import (
    Decoder,
    Encoder,
    Fusion,
    LinearProjectorConfig,
    LookupConfig,
    MappingProjectorConfig,
    ModelConfig,
    PerceiverProjectorConfig,
    PixelShuffleProjectorConfig,
    PoolProjectorConfig,
    Projector,
    ResNetConfig,
    VGGConfig,
    Vision,
    ViTConfig,
)
from jaxfusion.config.presets import PRESETS

VISION = ViTConfig(image_size=48, patch_size=8, class_token=False)  # 36 tokens
UNIONS = {"vision": Vision, "projector": Projector, "fusion": Fusion, "encoder": Encoder, "decoder": Decoder}


def test_every_kind_of_every_room_is_a_preset_and_nothing_else_is():
    assert PRESETS.keys() == UNIONS.keys()
    for room, presets in PRESETS.items():
        choices = get_args(UNIONS[room])
        assert {cls.kind for cls in choices} <= presets.keys()
        assert all(preset is None or isinstance(preset, choices) for preset in presets.values())
        assert all(presets[cls.kind] == cls() for cls in choices)


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_resnets_have_as_many_layers_as_their_name_says(depth):
    config = PRESETS["vision"][f"resnet-{depth}"]
    layers_per_block = {"basic": 2, "bottleneck": 3}[config.block]
    assert 1 + layers_per_block * sum(config.stage_depths) + 1 == depth  # the stem and the classifier count


@pytest.mark.parametrize("depth", [16, 19])
def test_vggs_have_as_many_layers_as_their_name_says(depth):
    assert sum(PRESETS["vision"][f"vgg-{depth}"].stage_depths) + 3 == depth  # three fully connected ones count


@pytest.mark.parametrize(
    "name, num_tokens, feature_width",
    [
        ("resnet-18", 7 * 7, 512),
        ("resnet-34", 7 * 7, 512),
        ("resnet-50", 7 * 7, 2048),
        ("resnet-101", 7 * 7, 2048),
        ("vgg-16", 7 * 7, 512),
        ("vgg-19", 7 * 7, 512),
        ("vit-base-16", 14 * 14 + 1, 768),
        ("vit-large-16", 14 * 14 + 1, 1024),
        ("lookup", 1, 128),
        ("features", 1, 512),
    ],
)
def test_visual_tokens_and_their_width(name, num_tokens, feature_width):
    config = PRESETS["vision"][name]
    assert (config.num_tokens, config.feature_width) == (num_tokens, feature_width)


@pytest.mark.parametrize(
    "config, num_tokens, feature_width",
    [
        (ResNetConfig(image_size=48, stem="small", width=16), 6 * 6, 128),  # the small stem takes every pixel
        (ResNetConfig(image_size=225), 8 * 8, 512),  # a stride of two rounds up: 225, 113, 57, 29, 15, 8
        (VGGConfig(image_size=50, stage_depths=(1, 1), stage_widths=(8, 24)), 12 * 12, 24),  # a pool rounds down
        (ViTConfig(image_size=48, patch_size=8, width=96, class_token=False), 6 * 6, 96),
    ],
)
def test_visual_tokens_of_other_sizes(config, num_tokens, feature_width):
    assert (config.num_tokens, config.feature_width) == (num_tokens, feature_width)


@pytest.mark.parametrize(
    "projector, num_tokens",
    [
        ("linear", 36),
        (LinearProjectorConfig(pool="mean"), 1),
        (LinearProjectorConfig(pool="concatenate"), 1),
        ("mlp", 36),
        (PixelShuffleProjectorConfig(factor=2), 9),
        (PixelShuffleProjectorConfig(factor=3), 4),
        (PoolProjectorConfig(factor=3), 4),
        (PerceiverProjectorConfig(num_queries=5), 5),
        (MappingProjectorConfig(prefix_length=7), 7),
    ],
)
def test_tokens_per_image_are_counted_after_the_projector(projector, num_tokens):
    projector = PRESETS["projector"][projector] if isinstance(projector, str) else projector
    assert ModelConfig(vision=VISION, projector=projector).tokens_per_image == num_tokens


def test_without_vision_there_are_no_visual_tokens():
    assert ModelConfig().tokens_per_image == 0
    assert ModelConfig(vision=LookupConfig()).tokens_per_image == 1
