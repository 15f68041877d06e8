"""CLIP: the vision tower, alone or out of a checkpoint with a text tower."""

from jaxfusion.config.model import ViTConfig
from jaxfusion.pretrained import siglip, towers
from jaxfusion.pretrained.family import Family
from jaxfusion.pretrained.fields import Json
from jaxfusion.pretrained.table import Row

DEFAULTS = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_channels=3,
    image_size=224,
    patch_size=32,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
)


def read_vision(config: Json) -> ViTConfig:
    """A tower's config.json, or the `vision_config` of a whole model's.

    The visual tokens are CLIPVisionModel's last_hidden_state: its last norm is the pooled class token's alone.
    """
    config = DEFAULTS | config
    return ViTConfig(
        **towers.read_vit(config),
        mlp_width=config["intermediate_size"],
        patch_bias=False,
        pre_norm=True,
        feature_layer=-1,
        mean=towers.OPENAI_MEAN,
        std=towers.OPENAI_STD,
    )


def vision_table(config: ViTConfig) -> list[Row]:
    """CLIPVisionModel, without what stands before its tensors' names."""
    layer = "encoder.layers.{layer}."
    return [
        *towers.patches(config, "embeddings.patch_embedding"),
        Row("embeddings.class_embedding", "vision/class_token"),
        Row("embeddings.position_embedding.weight", "vision/positions"),
        *towers.norm("pre_layrnorm", "vision/pre_norm"),  # the misspelling is theirs
        *towers.attention(config, layer, siglip.LAYER),
        *towers.norms(layer, siglip.LAYER),
        *towers.mlp(layer, siglip.LAYER),
        *towers.norm("post_layernorm", "vision/final_norm"),
    ]


def _whole(config: Json) -> ViTConfig:
    # Old files may hold the tower's settings a second time; then that copy is the one that counts, defaults included.
    settings = config.get("vision_config_dict")
    return read_vision(settings if settings is not None else config.get("vision_config") or {})


IGNORED = ("*.position_ids", "*visual_projection.weight", "*classifier.*")
FAMILIES = [
    Family("clip_vision_model", "vision", read_vision, siglip.alone(vision_table), IGNORED, siglip.ALIASES),
    Family(
        "clip",
        "vision",
        _whole,
        siglip.alone(vision_table),
        (*IGNORED, "text_model.*", "text_projection.weight", "logit_scale"),
    ),
]
