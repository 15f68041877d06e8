"""Idefics3 and SmolVLM (Laurençon et al. 2024, Marafioti et al. 2025): a SigLIP whose tokens are shuffled to fewer and
wider ones, and a language model. An image is one tile, of the tower's size.

Transformers finds each patch's position by its fraction of the picture, in float32, which on some grids misses by one
(those of 25, 29, 31 or 40 patches a side are the smallest); no checkpoint that is known has such a grid.
"""

from dataclasses import replace

from jaxfusion.config.model import ModelConfig, PixelShuffleProjectorConfig, ViTConfig
from jaxfusion.pretrained import siglip, towers, whole
from jaxfusion.pretrained.family import Family
from jaxfusion.pretrained.fields import Json
from jaxfusion.pretrained.table import Row, prefixed
from jaxfusion.text.template import ImageTokens

VISION = dict(hidden_size=1152, num_attention_heads=16, patch_size=32)  # beside SigLIP's own defaults


def _read_vision(config: Json) -> ViTConfig:
    return siglip.read_vision(VISION | config)


def _read_config(config: Json) -> ModelConfig:
    text = whole.read_text(config, *whole.LANGUAGES)
    names = ("idefics3_vision", "idefics3", "smolvlm_vision", "smolvlm")  # the tower's, in files of all ages
    return replace(
        whole.with_head(text, config.get("tie_word_embeddings", False)),
        vision=whole.read_part(config, "vision_config", dict.fromkeys(names, _read_vision)),
        projector=PixelShuffleProjectorConfig(factor=config.get("scale_factor", 2), bias=False),
    )


def _table(config: ModelConfig) -> list[Row]:
    return [
        *whole.text_table(config, "model.text_model.", ""),
        *prefixed(siglip.vision_table(config.vision), "model.vision_model."),
        *towers.dense("model.connector.modality_projection.proj", "projector/linear", bias=False),
    ]


IGNORED = ("*.rotary_emb.*", "*.position_ids")
IMAGE = ImageTokens("<image>", "<image>", "<fake_token_around_image><global-img>", "<fake_token_around_image>")
FAMILIES = [Family(name, "whole", _read_config, _table, IGNORED, image=IMAGE) for name in ("idefics3", "smolvlm")]
