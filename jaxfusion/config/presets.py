"""Names that a config may write where a room's settings are wanted: the room's kinds and a few well-known sizes."""

from dataclasses import replace
from typing import Any, get_args

from jaxfusion.config.model import (
    HALF,
    Decoder,
    Encoder,
    Fusion,
    Projector,
    ResNetConfig,
    VGGConfig,
    Vision,
    ViTConfig,
)


def _kinds(union: Any) -> dict[str, Any]:
    return {cls.kind: cls() for cls in get_args(union)}


_SMALL_PICTURES = dict(image_size=48, norm="group", mean=HALF, std=HALF)
_VIT_TINY = ViTConfig(
    image_size=48, patch_size=8, width=96, num_layers=4, num_heads=4, mlp_width=384, class_token=False
)

PRESETS: dict[str, dict[str, Any]] = {
    "vision": {
        **_kinds(Vision),
        "none": None,
        "resnet-tiny": ResNetConfig(stage_depths=(1, 1, 1, 1), width=16, stem="small", **_SMALL_PICTURES),
        "resnet-18": ResNetConfig(),
        "resnet-34": ResNetConfig(stage_depths=(3, 4, 6, 3)),
        "resnet-50": ResNetConfig(stage_depths=(3, 4, 6, 3), block="bottleneck"),
        "resnet-101": ResNetConfig(stage_depths=(3, 4, 23, 3), block="bottleneck"),
        "vgg-tiny": VGGConfig(stage_depths=(1, 1, 1), stage_widths=(32, 64, 64), **_SMALL_PICTURES),
        "vgg-16": VGGConfig(),
        "vgg-19": VGGConfig(stage_depths=(2, 2, 4, 4, 4)),
        "vit-tiny": _VIT_TINY,
        "vit-tiny-class-token": replace(_VIT_TINY, class_token=True),
        "vit-base-16": ViTConfig(),
        "vit-large-16": ViTConfig(width=1024, num_layers=24, num_heads=16, mlp_width=4096),
    },
    "projector": _kinds(Projector),
    "fusion": _kinds(Fusion),
    "encoder": {**_kinds(Encoder), "none": None},
    "decoder": _kinds(Decoder),
}
