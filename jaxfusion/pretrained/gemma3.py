"""Gemma 3 with its vision (Kamath et al. 2025): SigLIP, whose tokens are pooled, and a text model in which an image
sees the whole of itself."""

from dataclasses import replace
from math import isqrt

from jaxfusion.config.model import ModelConfig, PoolProjectorConfig
from jaxfusion.pretrained import fields, llava, siglip, whole
from jaxfusion.pretrained.family import Family
from jaxfusion.pretrained.fields import Json
from jaxfusion.pretrained.table import Row, prefixed
from jaxfusion.text.template import ImageTokens


def _read_config(config: Json) -> ModelConfig:
    model = whole.with_head(whole.read_text(config, "gemma3_text"), config.get("tie_word_embeddings", True))
    vision = whole.read_part(config, "vision_config", {"siglip_vision_model": siglip.read_vision})
    num_tokens = config.get("mm_tokens_per_image", 256)
    grid, side = isqrt(vision.num_patches), isqrt(num_tokens)
    if not side or side**2 != num_tokens or grid % side:
        fields.refuse("mm_tokens_per_image", f"{grid} x {grid} patches cannot be pooled to {num_tokens} tokens")
    return replace(
        model,
        vision=vision,
        projector=PoolProjectorConfig(factor=grid // side, norm_eps=vision.norm_eps),
        decoder=replace(model.decoder, image_attention="bidirectional"),
    )


def _table(config: ModelConfig) -> list[Row]:
    return [
        *whole.text_table(config),
        *prefixed(siglip.vision_table(config.vision), whole.CLIP_TOWER),
        Row("multi_modal_projector.mm_soft_emb_norm.weight", "projector/norm/scale"),
        Row("multi_modal_projector.mm_input_projection_weight", "projector/linear/kernel"),
    ]


FAMILIES = [
    Family(
        "gemma3",
        "whole",
        _read_config,
        _table,
        llava.IGNORED,
        whole.ALIASES,
        ImageTokens("<image_soft_token>", "<start_of_image>", "\n\n<start_of_image>", "<end_of_image>\n\n"),
    )
]
