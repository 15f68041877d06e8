"""config.json of language families: older files read as newer ones do, and what has no counterpart is refused."""

import json

import pytest
import transformers

from jaxfusion.config.model import RopeConfig
from jaxfusion.errors import UserError
from jaxfusion.pretrained.families import FAMILIES

LANGUAGE = [name for name, family in FAMILIES.items() if family.room in ("language", "encoder")]
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=512)


@pytest.mark.parametrize("model_type", LANGUAGE)
def test_an_empty_file_means_the_same_as_one_with_every_default(model_type):
    family = FAMILIES[model_type]
    everything = json.loads(transformers.AutoConfig.for_model(model_type).to_json_string(use_diff=False))
    assert family.read_config({}) == family.read_config(everything)


@pytest.mark.parametrize(
    "model_type, older, newer",
    [
        ("llama", dict(rope_theta=5e5), dict(rope_parameters=dict(rope_type="default", rope_theta=5e5))),
        (
            "llama",
            dict(rope_theta=5e5, rope_scaling=dict(rope_type="llama3", **LLAMA3)),
            dict(rope_parameters=dict(rope_type="llama3", rope_theta=5e5, **LLAMA3)),
        ),
        (
            "llama",
            dict(rope_theta=1e4, rope_scaling=dict(type="linear", factor=4.0)),
            dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=4.0)),
        ),
        (
            "qwen2",
            dict(
                rope_theta=1e6,
                rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=32768),
                max_window_layers=28,
                use_sliding_window=False,
                sliding_window=131072,
            ),
            dict(
                rope_parameters=dict(
                    rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=32768
                ),
                layer_types=["full_attention"] * 32,
            ),
        ),
        (
            "gemma2",
            dict(hidden_act="gelu_pytorch_tanh", rope_theta=1e4, num_hidden_layers=2),
            dict(layer_types=["sliding_attention", "full_attention"], num_hidden_layers=2),
        ),
        (
            "gemma3_text",
            dict(
                num_hidden_layers=4,
                sliding_window_pattern=3,
                rope_theta=2e6,
                rope_local_base_freq=2e4,
                rope_scaling=dict(rope_type="linear", factor=8.0),
            ),
            dict(
                num_hidden_layers=4,
                layer_types=[f"{kind}_attention" for kind in ("sliding", "sliding", "full", "sliding")],
                rope_parameters=dict(
                    full_attention=dict(rope_type="linear", factor=8.0, rope_theta=2e6),
                    sliding_attention=dict(rope_type="default", rope_theta=2e4),
                ),
            ),
        ),
        ("gemma", dict(hidden_act="gelu", hidden_activation=None), dict(hidden_act="gelu_pytorch_tanh")),
        ("bert", dict(position_embedding_type="absolute", gradient_checkpointing=False), dict()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_older_files_read_as_newer_ones(model_type, older, newer):
    read = FAMILIES[model_type].read_config
    assert read(older) == read(newer)
    if older.keys() & {"rope_theta", "rope_scaling"} and model_type not in ("gemma2",):
        assert read(older) != read({key: value for key, value in older.items() if not key.startswith("rope")})


def test_smollm3_layers_without_rope():
    layers = FAMILIES["smollm3"].read_config(dict(num_hidden_layers=8)).decoder
    rope, none = RopeConfig(theta=2e6), RopeConfig(theta=0.0)
    assert layers.ropes == (rope, rope, rope, none) * 2
    assert not any(layers.windows)


def test_gemma3_layers():
    config = FAMILIES["gemma3_text"].read_config(dict(num_hidden_layers=7))
    assert config.decoder.windows == (4096,) * 5 + (0, 4096)
    assert [rope.theta for rope in config.decoder.ropes] == [1e4] * 5 + [1e6, 1e4]
    assert config.text_embedding.scale == 2304**0.5


@pytest.mark.parametrize(
    "model_type, config, field",
    [
        ("llama", dict(rope_scaling=dict(type="dynamic", factor=2.0)), "rope_scaling.rope_type"),
        ("qwen3", dict(rope_parameters=dict(rope_type="longrope", factor=2.0)), "rope_parameters.rope_type"),
        ("llama", dict(partial_rotary_factor=0.5), "partial_rotary_factor"),
        ("mistral", dict(hidden_act="relu"), "hidden_act"),
        ("qwen2", dict(num_hidden_layers=1, layer_types=["linear_attention"]), "layer_types"),
        ("gemma2", dict(use_bidirectional_attention=True), "use_bidirectional_attention"),
        ("gemma3_text", dict(attn_logit_softcapping=50.0), "attn_logit_softcapping"),
        (
            "gemma3_text",
            dict(rope_parameters=dict(full_attention=dict(rope_type="dynamic"))),
            "rope_parameters.full_attention.rope_type",
        ),
        ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx"),
        ("gpt2", dict(activation_function="mish"), "activation_function"),
        ("bert", dict(is_decoder=True), "is_decoder"),
        ("bert", dict(position_embedding_type="relative_key"), "position_embedding_type"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_expressed_is_refused_by_its_field(model_type, config, field):
    with pytest.raises(UserError, match=rf"^config\.json: {field}: ") as caught:
        FAMILIES[model_type].read_config(config)
    assert "\n" not in str(caught.value)
