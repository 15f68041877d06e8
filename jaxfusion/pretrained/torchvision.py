"""torchvision's weights come as one bare file: what stands in for their config.json, from names and shapes alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxfusion.errors import UserError

Shapes = Mapping[str, Sequence[int]]
RESNET, VGG = MODEL_TYPES = ("torchvision_resnet", "torchvision_vgg")


def describe(file: Path, shapes: Shapes) -> dict[str, Any]:
    """A config.json for a torchvision state dict, which `FAMILIES` reads by its model_type; {} if it is none.

    shapes: of the file's tensors. Raises UserError, which names the file, for a relative of ResNet or VGG that has no
    counterpart here.
    """
    if "conv1.weight" in shapes and "bn1.weight" in shapes and "layer1.0.conv1.weight" in shapes:
        return _resnet(file, shapes)
    if "features.0.weight" in shapes and len(shapes["features.0.weight"]) == 4:
        return _vgg(file, shapes)
    return {}


def _resnet(file: Path, shapes: Shapes) -> dict[str, Any]:
    bottleneck = "layer1.0.conv3.weight" in shapes
    width = shapes["conv1.weight"][0]
    # ResNeXt has groups, and wide ResNets wide bottlenecks.
    inner = shapes.get("layer1.0.conv2.weight", ())
    if tuple(inner[:2]) != (width, width):
        raise UserError(
            f"{file}: layer1.0.conv2.weight: shape {tuple(inner)}: ResNeXt and wide ResNets have no counterpart here; "
            "give weights of a plain ResNet"
        )
    depths = []
    while (depth := _count(shapes, f"layer{len(depths) + 1}.{{}}.conv1.weight", range(1000))) > 0:
        depths.append(depth)
    return {
        "model_type": RESNET,
        "block": "bottleneck" if bottleneck else "basic",
        "stage_depths": depths,
        "width": width,
    }


def _vgg(file: Path, shapes: Shapes) -> dict[str, Any]:
    depths, widths, index = [], [], 0
    while f"features.{index}.weight" in shapes:
        if len(shapes[f"features.{index}.weight"]) != 4:
            break
        depth = _count(shapes, "features.{}.weight", range(index, 1000, 2))
        depths.append(depth)
        widths.append(shapes[f"features.{index}.weight"][0])
        index += 2 * depth + 1
    if sum(depths) != sum(name.startswith("features.") and name.endswith(".weight") for name in shapes):
        raise UserError(
            f"{file}: features: not the layers of a VGG without batch norm; give weights of vgg11, 13, 16 or 19"
        )
    return {"model_type": VGG, "stage_depths": depths, "stage_widths": widths}


def _count(shapes: Shapes, name: str, indices: range) -> int:
    """How many of the names follow one another without a gap."""
    return next((n for n, index in enumerate(indices) if name.format(index) not in shapes), len(indices))
