"""What the Vision Transformers' families have in common: the shape of their config.json and of their tables."""

from collections.abc import Mapping

from jaxfusion.config.model import ViTConfig
from jaxfusion.pretrained import fields
from jaxfusion.pretrained.fields import Json
from jaxfusion.pretrained.table import Row

LAYERS = "vision/layers"

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def side(config: Json, field: str) -> int:
    """An image's or patch's side, which config.json may give twice. Raises UserError where the two differ."""
    value = config[field]
    if not isinstance(value, int):
        if not isinstance(value, list | tuple) or len(set(value)) != 1:
            fields.refuse(field, f"{value} is not square; only square images and patches can be read")
        value = value[0]
    return value


def read_vit(config: Json) -> dict[str, object]:
    """The fields of a ViTConfig that all the families' config.json have, defaults already in it."""
    fields.refuse_unless(config, "num_channels", 3)
    return dict(
        image_size=side(config, "image_size"),
        patch_size=side(config, "patch_size"),
        width=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp=fields.activation(config, "hidden_act", "gelu"),
        norm_eps=config["layer_norm_eps"],
    )


def dense(name: str, path: str, pattern: str = "o i -> i o", bias: bool = True, bias_pattern: str = "") -> list[Row]:
    """A matrix and its bias."""
    rows = [Row(f"{name}.weight", f"{path}/kernel", pattern)]
    return [*rows, Row(f"{name}.bias", f"{path}/bias", bias_pattern)] if bias else rows


def norm(name: str, path: str) -> list[Row]:
    """A norm's scale and bias."""
    return [Row(f"{name}.weight", f"{path}/scale"), Row(f"{name}.bias", f"{path}/bias")]


def patches(config: ViTConfig, name: str) -> list[Row]:
    """Theirs is a convolution."""
    sizes = {"p": config.patch_size, "q": config.patch_size}
    rows = [Row(f"{name}.weight", "vision/patches/kernel", "d c p q -> (p q c) d", sizes)]
    return [*rows, Row(f"{name}.bias", "vision/patches/bias")] if config.patch_bias else rows


def attention(config: ViTConfig, layer: str, names: Mapping[str, str]) -> list[Row]:
    """Four matrices. layer: what all their names begin with. names: the rest, of query, key, value and out."""
    rows = []
    for part in ("query", "key", "value"):
        path = f"{LAYERS}/attention/{part}"
        rows += dense(layer + names[part], path, "(n h) d -> d n h", config.qkv_bias, "(n h) -> n h")
    return rows + dense(layer + names["out"], f"{LAYERS}/attention/out", "d (n h) -> n h d")


def norms(layer: str, names: Mapping[str, str]) -> list[Row]:
    """A layer's two norms. names: theirs of attention_norm and mlp_norm."""
    return [row for part in ("attention_norm", "mlp_norm") for row in norm(layer + names[part], f"{LAYERS}/{part}")]


def mlp(layer: str, names: Mapping[str, str]) -> list[Row]:
    """An MLP of two matrices. names: theirs of up and down."""
    return [row for part in ("up", "down") for row in dense(layer + names[part], f"{LAYERS}/mlp/{part}")]
