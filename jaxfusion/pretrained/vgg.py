"""VGG under torchvision's names."""

from jaxfusion.config.model import VGGConfig
from jaxfusion.pretrained.family import Family
from jaxfusion.pretrained.fields import Json
from jaxfusion.pretrained.table import Row


def read_torchvision(config: Json) -> VGGConfig:
    """What `torchvision.describe` says of a file."""
    return VGGConfig(stage_depths=tuple(config["stage_depths"]), stage_widths=tuple(config["stage_widths"]))


def torchvision_table(config: VGGConfig) -> list[Row]:
    """torchvision.models.vgg16 and its kin without batch norm, but for their classifier."""
    rows, index = [], 0
    for stage, depth in enumerate(config.stage_depths):
        for layer in range(depth):
            path = f"vision/stage{stage}_layer{layer}/conv"
            rows += [
                Row(f"features.{index}.weight", f"{path}/kernel", "o i h w -> h w i o"),
                Row(f"features.{index}.bias", f"{path}/bias"),
            ]
            index += 2  # each convolution has a ReLU behind it
        index += 1  # a stage ends in a pooling layer
    return rows


FAMILIES = [Family("torchvision_vgg", "vision", read_torchvision, torchvision_table, ("classifier.*",))]
