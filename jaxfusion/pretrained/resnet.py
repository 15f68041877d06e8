"""ResNet under transformers' names and under torchvision's."""

from jaxfusion.config.model import ResNetConfig
from jaxfusion.pretrained import fields
from jaxfusion.pretrained.family import Family
from jaxfusion.pretrained.fields import Json
from jaxfusion.pretrained.table import Row

DEFAULTS = dict(embedding_size=64, hidden_sizes=(256, 512, 1024, 2048), depths=(3, 4, 6, 3), layer_type="bottleneck")
EXPANSION = {"basic": 1, "bottleneck": 4}


def read_vision(config: Json) -> ResNetConfig:
    """image_size is 224, since config.json has none."""
    config = DEFAULTS | config
    fields.refuse_unless(config, "num_channels", 3)
    fields.refuse_unless(config, "layer_type", *EXPANSION)
    fields.refuse_unless(config, "hidden_act", "relu")
    fields.refuse_unless(config, "downsample_in_first_stage", False)
    fields.refuse_unless(config, "downsample_in_bottleneck", False)
    width, depths, block = config["embedding_size"], tuple(config["depths"]), config["layer_type"]
    doubled = [width * 2**stage * EXPANSION[block] for stage in range(len(depths))]
    if list(config["hidden_sizes"]) != doubled:
        fields.refuse("hidden_sizes", f"{config['hidden_sizes']}: only {doubled}, doubled at each stage, can be read")
    return ResNetConfig(block=block, stage_depths=depths, width=width)


def vision_table(config: ResNetConfig) -> list[Row]:
    """ResNetModel."""
    rows = _conv_norm("embedder.embedder.convolution", "embedder.embedder.normalization", "stem")
    for stage, block, convolutions in _blocks(config):
        theirs, ours = f"encoder.stages.{stage}.layers.{block}", f"stage{stage}_block{block}"
        names = {f"layer{index}": f"layer.{index}" for index in range(convolutions)}
        if _has_shortcut(config, stage, block):
            names["shortcut"] = "shortcut"
        for part, name in names.items():
            name = f"{theirs}.{name}"
            rows += _conv_norm(f"{name}.convolution", f"{name}.normalization", f"{ours}/{part}")
    return rows


def read_torchvision(config: Json) -> ResNetConfig:
    """What `torchvision.describe` says of a file."""
    return ResNetConfig(block=config["block"], stage_depths=tuple(config["stage_depths"]), width=config["width"])


def torchvision_table(config: ResNetConfig) -> list[Row]:
    """torchvision.models.resnet18 and its kin."""
    rows = _conv_norm("conv1", "bn1", "stem")
    for stage, block, convolutions in _blocks(config):
        theirs, ours = f"layer{stage + 1}.{block}", f"stage{stage}_block{block}"
        for index in range(convolutions):
            rows += _conv_norm(f"{theirs}.conv{index + 1}", f"{theirs}.bn{index + 1}", f"{ours}/layer{index}")
        if _has_shortcut(config, stage, block):
            rows += _conv_norm(f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{ours}/shortcut")
    return rows


def _conv_norm(conv: str, norm: str, ours: str) -> list[Row]:
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    kernel = Row(f"{conv}.weight", f"vision/{ours}/conv/kernel", "o i h w -> h w i o")
    return [kernel, *(Row(f"{norm}.{name}", f"vision/{ours}/norm/{part}") for name, part in names.items())]


def _blocks(config: ResNetConfig) -> list[tuple[int, int, int]]:
    """Stage, place in the stage and number of convolutions of every block."""
    convolutions = 3 if config.block == "bottleneck" else 2
    return [(s, b, convolutions) for s, depth in enumerate(config.stage_depths) for b in range(depth)]


def _has_shortcut(config: ResNetConfig, stage: int, block: int) -> bool:
    """Where the stride is two or the channels change."""
    return block == 0 and (stage > 0 or config.block == "bottleneck")


FAMILIES = [
    Family(
        "resnet", "vision", read_vision, vision_table, ("*.num_batches_tracked", "classifier.*"), (("resnet.", ""),)
    ),
    Family("torchvision_resnet", "vision", read_torchvision, torchvision_table, ("*.num_batches_tracked", "fc.*")),
]
