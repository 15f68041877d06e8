"""SigLIP, and SigLIP 2 of fixed resolution: the vision tower, alone or out of a checkpoint with a text tower."""

from collections.abc import Callable

from jaxfusion.config.model import ViTConfig
from jaxfusion.pretrained import towers
from jaxfusion.pretrained.family import Family
from jaxfusion.pretrained.fields import Json
from jaxfusion.pretrained.table import Row, prefixed

DEFAULTS = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_channels=3,
    image_size=224,
    patch_size=16,
    hidden_act="gelu_pytorch_tanh",
    layer_norm_eps=1e-6,
)
LAYER = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "attention_norm": "layer_norm1",
    "mlp_norm": "layer_norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}


def read_vision(config: Json) -> ViTConfig:
    """A tower's config.json, or the `vision_config` of a whole model's."""
    config = DEFAULTS | config
    return ViTConfig(**towers.read_vit(config), mlp_width=config["intermediate_size"], class_token=False)


def vision_table(config: ViTConfig) -> list[Row]:
    """SiglipVisionModel, but for its pooling head, and without what stands before its tensors' names."""
    layer = "encoder.layers.{layer}."
    return [
        *towers.patches(config, "embeddings.patch_embedding"),
        Row("embeddings.position_embedding.weight", "vision/positions"),
        *towers.attention(config, layer, LAYER),
        *towers.norms(layer, LAYER),
        *towers.mlp(layer, LAYER),
        *towers.norm("post_layernorm", "vision/final_norm"),
    ]


def alone(table: Callable[[ViTConfig], list[Row]]) -> Callable[[ViTConfig], list[Row]]:
    """A tower's table under the names that published files have, whether or not a text tower is in them, too."""
    return lambda config: prefixed(table(config), "vision_model.")


ALIASES = (("", "vision_model."),)  # transformers 5 writes a tower alone without it, and reads both; 4 reads it alone
IGNORED = ("*.position_ids", "*head.*", "*classifier.*")
FAMILIES = [
    Family("siglip_vision_model", "vision", read_vision, alone(vision_table), IGNORED, ALIASES),
    Family(
        "siglip",
        "vision",
        lambda config: read_vision(config.get("vision_config") or {}),
        alone(vision_table),
        (*IGNORED, "text_model.*", "logit_scale", "logit_bias"),
    ),
]
