"""PaliGemma and PaliGemma 2 (Beyer et al. 2024, Steiner et al. 2024): SigLIP, one matrix, and Gemma or Gemma 2.

The prompt, images before text, sees itself in both directions. Gemma scales the vectors of its tokens; those of images
come as they are.
"""

from dataclasses import replace

from jaxfusion.config.model import LinearProjectorConfig, ModelConfig
from jaxfusion.pretrained import llava, siglip, towers, whole
from jaxfusion.pretrained.family import Family
from jaxfusion.pretrained.fields import Json
from jaxfusion.pretrained.table import Row, prefixed

# What its processor writes: the images, even before bos, and a line feed behind the text.
CHAT_TEMPLATE = """
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {%- for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ eos_token }}
    {%- else %}
        {%- for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}{{ bos_token }}
        {%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{{ '\\n' }}
    {%- endif %}
{%- endfor %}"""


def _read_config(config: Json) -> ModelConfig:
    # A field of Gemma alone, which here says what PaliGemma does anyway.
    text = {k: v for k, v in (config.get("text_config") or {}).items() if k != "use_bidirectional_attention"}
    model = whole.read_text({"text_config": text}, "gemma", "gemma2")
    model = whole.with_head(model, config.get("tie_word_embeddings", True), model.decoder.logit_softcap)
    return replace(
        model,
        vision=whole.read_part(config, "vision_config", {"siglip_vision_model": siglip.read_vision}),
        projector=LinearProjectorConfig(),
        decoder=replace(model.decoder, prefix_lm=True),
    )


def _table(config: ModelConfig) -> list[Row]:
    return [
        *whole.text_table(config),
        *prefixed(siglip.vision_table(config.vision), whole.CLIP_TOWER),
        *towers.dense("multi_modal_projector.linear", "projector/linear"),
    ]


FAMILIES = [
    Family(
        "paligemma",
        "whole",
        _read_config,
        _table,
        llava.IGNORED,
        whole.ALIASES,
        chat_template=CHAT_TEMPLATE,
    )
]
