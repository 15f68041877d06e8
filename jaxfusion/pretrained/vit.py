"""The Vision Transformer as Google's checkpoints have it."""

from jaxfusion.config.model import ViTConfig
from jaxfusion.pretrained import towers
from jaxfusion.pretrained.family import Family
from jaxfusion.pretrained.fields import Json
from jaxfusion.pretrained.table import Row

DEFAULTS = dict(
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
    image_size=224,
    patch_size=16,
    num_channels=3,
    qkv_bias=True,
)
ATTENTION = {
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
}
NAMES = ATTENTION | {
    "attention_norm": "layernorm_before",
    "mlp_norm": "layernorm_after",
    "up": "intermediate.dense",
    "down": "output.dense",
}


def read_vision(config: Json) -> ViTConfig:
    config = DEFAULTS | config
    return ViTConfig(**towers.read_vit(config), qkv_bias=config["qkv_bias"], mlp_width=config["intermediate_size"])


def embeddings(config: ViTConfig) -> list[Row]:
    """Patches, class token and positions, which DINOv2 names alike."""
    return [
        *towers.patches(config, "embeddings.patch_embeddings.projection"),
        Row("embeddings.cls_token", "vision/class_token", "1 1 d -> d"),
        Row("embeddings.position_embeddings", "vision/positions", "1 k d -> k d"),
    ]


def vision_table(config: ViTConfig) -> list[Row]:
    """ViTModel, but for its pooler."""
    layer = "encoder.layer.{layer}."
    return [
        *embeddings(config),
        *towers.attention(config, layer, NAMES),
        *towers.norms(layer, NAMES),
        *towers.mlp(layer, NAMES),
        *towers.norm("layernorm", "vision/final_norm"),
    ]


FAMILIES = [
    Family(
        "vit",
        "vision",
        read_vision,
        vision_table,
        ("embeddings.mask_token", "pooler.*", "classifier.*", "decoder.*"),
        (("vit.", ""),),
    )
]
