"""LLaVA 1.5 (Liu et al. 2024): a Vision Transformer, an MLP of two layers, and any language model."""

from dataclasses import replace

from jaxfusion.config.model import MLPProjectorConfig, ModelConfig, ViTConfig
from jaxfusion.pretrained import clip, dinov2, fields, siglip, towers, vit, whole
from jaxfusion.pretrained.family import Family
from jaxfusion.pretrained.fields import Json
from jaxfusion.pretrained.table import Row, prefixed

VISIONS = {
    "clip_vision_model": clip.read_vision,
    "siglip_vision_model": siglip.read_vision,
    "dinov2": dinov2.read_vision,
    "vit": vit.read_vision,
}


def _read_config(config: Json) -> ModelConfig:
    text = whole.read_text(config, *whole.LANGUAGES)
    projector = MLPProjectorConfig(
        activation=fields.activation(config, "projector_hidden_act", "gelu"),
        bias=config.get("multimodal_projector_bias", True),
    )
    vision = _read_vision(config)
    return replace(
        whole.with_head(text, config.get("tie_word_embeddings", False) or text.decoder.tie_embeddings),
        vision=vision,
        projector=projector,
    )


def _read_vision(config: Json) -> ViTConfig:
    vision = whole.read_part(config, "vision_config", VISIONS)
    layer = config.get("vision_feature_layer", -2)
    if isinstance(layer, list | tuple):
        if len(layer) != 1:
            fields.refuse("vision_feature_layer", f"{layer}: several layers side by side cannot be read; only one can")
        layer = layer[0]
    strategy = config.get("vision_feature_select_strategy", "default")
    fields.refuse_unless(config, "vision_feature_select_strategy", "default", "full")
    if strategy == "default" and not vision.class_token:
        fields.refuse(
            "vision_feature_select_strategy",
            "'default' leaves out the first token, and in this tower that is a patch; only 'full' can be read with it",
        )
    # Theirs counts from the embeddings, which are layer 0, or from the end.
    layer = layer if layer < 0 else layer - vision.num_layers - 1
    return replace(vision, feature_layer=layer, keep_class_token=strategy == "full")


def _vision_table(config: ViTConfig) -> list[Row]:
    """Of the tower's family, which is known by what it alone has."""
    if config.layer_scale:
        return prefixed(dinov2.vision_table(config), whole.TOWER)
    if config.pre_norm:
        return prefixed(clip.vision_table(config), whole.CLIP_TOWER)
    if config.class_token:
        return prefixed(vit.vision_table(config), whole.TOWER)
    return prefixed(siglip.vision_table(config), whole.CLIP_TOWER)


def _table(config: ModelConfig) -> list[Row]:
    bias = config.projector.bias
    return [
        *whole.text_table(config),
        *_vision_table(config.vision),
        *towers.dense("multi_modal_projector.linear_1", "projector/up", bias=bias),
        *towers.dense("multi_modal_projector.linear_2", "projector/down", bias=bias),
    ]


IGNORED = (
    "*.rotary_emb.*",
    "*.position_ids",
    "vision_tower.*head.*",
    "vision_tower.*pooler.*",
    "vision_tower.*embeddings.mask_token",
)
FAMILIES = [Family("llava", "whole", _read_config, _table, IGNORED, whole.ALIASES)]
