"""DINOv2 without register tokens."""

from jaxfusion.config.model import IMAGENET_MEAN, IMAGENET_STD, ViTConfig
from jaxfusion.pretrained import towers
from jaxfusion.pretrained.family import Family
from jaxfusion.pretrained.fields import Json
from jaxfusion.pretrained.table import Row
from jaxfusion.pretrained.vit import ATTENTION, embeddings

DEFAULTS = dict(
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    mlp_ratio=4,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    image_size=224,
    patch_size=14,
    num_channels=3,
    qkv_bias=True,
    use_swiglu_ffn=False,
)
NAMES = ATTENTION | {"attention_norm": "norm1", "mlp_norm": "norm2", "up": "mlp.fc1", "down": "mlp.fc2"}


def read_vision(config: Json) -> ViTConfig:
    """image_size is that of the table of positions; the processor of most checkpoints makes smaller images."""
    config = DEFAULTS | config
    width, settings = int(config["hidden_size"] * config["mlp_ratio"]), towers.read_vit(config)
    if config["use_swiglu_ffn"]:  # of whose width a third is saved for the gate, in whole eights
        width, settings["mlp"] = (int(width * 2 / 3) + 7) // 8 * 8, "swiglu"
    return ViTConfig(
        **settings,
        qkv_bias=config["qkv_bias"],
        mlp_width=width,
        layer_scale=True,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def vision_table(config: ViTConfig) -> list[Row]:
    """Dinov2Model, but for its mask token."""
    layer, ours = "encoder.layer.{layer}.", towers.LAYERS
    rows = embeddings(config) + towers.norm("layernorm", "vision/final_norm")
    rows += towers.attention(config, layer, NAMES) + towers.norms(layer, NAMES)
    rows += [
        Row(f"{layer}layer_scale1.lambda1", f"{ours}/attention_scale"),
        Row(f"{layer}layer_scale2.lambda1", f"{ours}/mlp_scale"),
    ]
    if config.mlp == "swiglu":
        both = (f"{ours}/mlp/gate", f"{ours}/mlp/up")
        rows += [
            Row(f"{layer}mlp.weights_in.weight", tuple(f"{p}/kernel" for p in both), "(two f) d -> two d f"),
            Row(f"{layer}mlp.weights_in.bias", tuple(f"{p}/bias" for p in both), "(two f) -> two f"),
            *towers.dense(f"{layer}mlp.weights_out", f"{ours}/mlp/down"),
        ]
        return rows
    return rows + towers.mlp(layer, NAMES)


FAMILIES = [
    Family("dinov2", "vision", read_vision, vision_table, ("embeddings.mask_token", "classifier.*"), (("dinov2.", ""),))
]
