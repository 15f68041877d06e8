"""config.json of whole models: the published files, which leave out defaults, and what has no counterpart."""

import json
from copy import deepcopy

import jinja2
import pytest
import transformers

from jaxfusion.config.model import (
    LinearProjectorConfig,
    MLPProjectorConfig,
    PixelShuffleProjectorConfig,
    PoolProjectorConfig,
    RopeConfig,
)
from jaxfusion.errors import UserError
from jaxfusion.pretrained.families import FAMILIES

SIGLIP = dict(hidden_size=1152, intermediate_size=4304, model_type="siglip_vision_model", num_attention_heads=16)
SIGLIP |= dict(num_hidden_layers=27, patch_size=14)
LLAVA = dict(
    model_type="llava",
    image_token_index=32000,
    text_config=dict(model_type="llama", max_position_embeddings=4096, rms_norm_eps=1e-05, vocab_size=32064),
    vision_config=dict(
        hidden_size=1024,
        image_size=336,
        intermediate_size=4096,
        model_type="clip_vision_model",
        num_attention_heads=16,
        num_hidden_layers=24,
        patch_size=14,
        projection_dim=768,
        vocab_size=32000,
    ),
    vision_feature_layer=-2,
    vision_feature_select_strategy="default",
)
PALIGEMMA = dict(
    model_type="paligemma",
    projection_dim=2048,
    text_config=dict(
        hidden_size=2048,
        intermediate_size=16384,
        model_type="gemma",
        num_attention_heads=8,
        num_hidden_layers=18,
        num_key_value_heads=1,
        vocab_size=257216,
    ),
    vision_config=SIGLIP | dict(image_size=448, projection_dim=2048, vision_use_head=False),
)
PALIGEMMA2 = PALIGEMMA | dict(
    text_config=dict(model_type="gemma2", hidden_size=2304, vocab_size=257216, sliding_window=4096),
    vision_config=SIGLIP,
)
GEMMA3 = dict(
    model_type="gemma3",
    mm_tokens_per_image=256,
    text_config=dict(
        hidden_size=2560,
        intermediate_size=10240,
        model_type="gemma3_text",
        num_hidden_layers=34,
        rope_scaling=dict(factor=8.0, rope_type="linear"),
        sliding_window=1024,
    ),
    vision_config=SIGLIP | dict(image_size=896, vision_use_head=False),
)
IDEFICS3 = dict(
    model_type="idefics3",
    image_token_id=128257,
    scale_factor=2,
    text_config=dict(model_type="llama", hidden_size=4096, num_key_value_heads=8, rope_theta=5e5, vocab_size=128259),
    vision_config=dict(
        model_type="idefics3",
        hidden_size=1152,
        image_size=364,
        intermediate_size=4304,
        num_hidden_layers=27,
        patch_size=14,
    ),
)
SMOLVLM = dict(
    model_type="smolvlm",
    scale_factor=4,
    text_config=dict(model_type="llama", hidden_size=576, num_attention_heads=9, num_key_value_heads=3),
    vision_config=dict(
        model_type="smolvlm_vision", hidden_size=768, image_size=512, num_attention_heads=12, patch_size=16
    ),
)


@pytest.mark.parametrize(
    ("config", "tokens_per_image", "width", "projector"),
    [
        (LLAVA, 576, 4096, MLPProjectorConfig()),
        (PALIGEMMA, 1024, 2048, LinearProjectorConfig()),
        (PALIGEMMA2, 256, 2304, LinearProjectorConfig()),
        (GEMMA3, 256, 2560, PoolProjectorConfig(factor=4)),
        (IDEFICS3, 169, 4096, PixelShuffleProjectorConfig(bias=False)),
        (SMOLVLM, 64, 576, PixelShuffleProjectorConfig(factor=4, bias=False)),
    ],
    ids=["LLaVA 1.5", "PaliGemma", "PaliGemma 2", "Gemma 3", "Idefics3", "SmolVLM"],
)
def test_published_files(config, tokens_per_image, width, projector):
    model = FAMILIES[config["model_type"]].read_config(config)
    assert (model.tokens_per_image, model.width, model.projector) == (tokens_per_image, width, projector)
    tied = config["model_type"] in ("paligemma", "gemma3")
    assert model.decoder.tie_embeddings == tied
    # All the rest is as transformers fills it in.
    theirs = transformers.AutoConfig.for_model(**deepcopy(config))
    everything = json.loads(theirs.to_json_string(use_diff=False))
    assert model == FAMILIES[config["model_type"]].read_config(everything)


def test_each_family_reads_images_and_prompts_in_its_way():
    llava, paligemma, gemma3 = (FAMILIES[c["model_type"]].read_config(c) for c in (LLAVA, PALIGEMMA2, GEMMA3))
    assert (llava.vision.feature_layer, llava.vision.keep_class_token) == (-2, False)
    assert paligemma.decoder.prefix_lm and paligemma.decoder.logit_softcap == 30
    assert paligemma.text_embedding.scale == 2304**0.5 and paligemma.vision.feature_layer == 0
    assert gemma3.decoder.image_attention == "bidirectional" and not gemma3.decoder.prefix_lm
    assert gemma3.decoder.layer_windows[:6] == (1024,) * 5 + (0,)
    assert gemma3.decoder.layer_ropes[5] == RopeConfig(theta=1e6, scaling="linear", factor=8.0)


def test_layers_counted_from_the_front_are_the_same():
    read = FAMILIES["llava"].read_config
    assert read(LLAVA | dict(vision_feature_layer=23)) == read(LLAVA | dict(vision_feature_layer=[-2])) == read(LLAVA)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LLAVA | dict(text_config=None), "text_config: it is missing; copy"),
        (LLAVA | dict(vision_config={}), "vision_config: it is missing; copy"),
        (PALIGEMMA | dict(text_config={}), "text_config: it is missing; copy"),
        (GEMMA3 | dict(vision_config=None), "vision_config: it is missing; copy"),
        (IDEFICS3 | dict(text_config=None), "text_config: it is missing; copy"),
        (LLAVA | dict(vision_feature_layer=[-2, -5]), r"vision_feature_layer: \[-2, -5\].*only one"),
        (LLAVA | dict(vision_config=SIGLIP), "vision_feature_select_strategy: 'default'.*'full'"),
        (LLAVA | dict(vision_feature_select_strategy="first"), "vision_feature_select_strategy: 'first'"),
        (LLAVA | dict(projector_hidden_act="silu"), "projector_hidden_act.*'silu'"),
        (LLAVA | dict(text_config=dict(model_type="gpt2")), "text_config.model_type: 'gpt2'.*known are llama"),
        (LLAVA | dict(vision_config=dict(model_type="resnet")), "vision_config.model_type: 'resnet'.*clip_vision"),
        (LLAVA | dict(text_config=dict(hidden_act="tanh")), "text_config.hidden_act.*'tanh'"),
        (PALIGEMMA | dict(text_config=dict(model_type="llama")), "text_config.model_type: 'llama'.*gemma"),
        (GEMMA3 | dict(mm_tokens_per_image=100), "mm_tokens_per_image: 64 x 64 .* 100"),
        (GEMMA3 | dict(mm_tokens_per_image=200), "mm_tokens_per_image: 64 x 64 .* 200"),
        (IDEFICS3 | dict(vision_config=dict(image_size=[364, 392])), "vision_config.image_size.*square"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_its_field(config, message):
    with pytest.raises(UserError, match=f"config.json: {message}"):
        FAMILIES[config["model_type"]].read_config(config)


def test_paligemma_writes_images_first_then_bos_text_and_a_line_feed():
    content = [
        {"type": "text", "text": "what is"},
        {"type": "image"},
        {"type": "image"},
        {"type": "text", "text": " this"},
    ]
    said = [{"role": "user", "content": content}, {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}]
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(FAMILIES["paligemma"].chat_template)
    text = template.render(messages=said[:1], bos_token="<bos>", eos_token="<eos>")
    assert text == "<image><image><bos>what is this\n"
    assert template.render(messages=said, bos_token="<bos>", eos_token="<eos>") == text + "a cat<eos>"
