"""Gemma, Gemma 2 and the text model of Gemma 3: Llama's tensors and more norms, under other rules."""

from dataclasses import replace

from jaxfusion.config.model import ModelConfig, TransformerDecoderConfig
from jaxfusion.pretrained import fields, llama
from jaxfusion.pretrained.family import Family
from jaxfusion.pretrained.fields import Json

GEMMA = llama.LLAMA | dict(
    vocab_size=256000,
    hidden_size=3072,
    intermediate_size=24576,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=16,
    head_dim=256,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)
GEMMA2 = GEMMA | dict(
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    hidden_activation=None,
    query_pre_attn_scalar=256,
    sliding_window=4096,
    layer_types=None,
    final_logit_softcapping=30.0,
    attn_logit_softcapping=50.0,
)
GEMMA3 = GEMMA2 | dict(
    vocab_size=262208,
    max_position_embeddings=131072,
    final_logit_softcapping=None,
    rope_theta=1_000_000.0,
    rope_local_base_freq=10_000.0,
    sliding_window_pattern=6,
)


def _read_layers(config: Json) -> TransformerDecoderConfig:
    fields.refuse_unless(config, "use_bidirectional_attention", None, False)
    return replace(llama.read_layers(config), norm="rms-offset")


def _scaled(config: Json, layers: TransformerDecoderConfig) -> ModelConfig:
    model = llama.language_model(config, layers)
    return replace(model, text_embedding=replace(model.text_embedding, scale=model.width**0.5))


def _gemma(config: Json) -> ModelConfig:
    config = GEMMA | config
    if config.get("hidden_act") in (None, "gelu"):  # what the first files say, and never was
        config["hidden_act"] = "gelu_pytorch_tanh"
    return _scaled(config, _read_layers(config))


def _gemma2(config: Json) -> ModelConfig:
    config = GEMMA2 | config
    kinds = config["layer_types"] or _sliding_but_every(2, config["num_hidden_layers"])
    return _scaled(config, _sandwich(config, kinds))


def _gemma3(config: Json) -> ModelConfig:
    """Layers with a window have rotary positions of their own."""
    fields.refuse_unless(config, "attn_logit_softcapping", None)
    config = GEMMA3 | config | dict(attn_logit_softcapping=None)
    kinds = config["layer_types"] or _sliding_but_every(config["sliding_window_pattern"], config["num_hidden_layers"])
    nested, max_positions = config.get("rope_parameters") or {}, config["max_position_embeddings"]
    local = nested.get("sliding_attention")
    full = (nested.get("full_attention") or {}) | (config.get("rope_scaling") or {})
    ropes = {
        "full_attention": fields.rope(
            config, full, "rope_parameters.full_attention", config["rope_theta"], max_positions
        ),
        "sliding_attention": fields.rope(
            config, local, "rope_parameters.sliding_attention", config["rope_local_base_freq"], max_positions
        ),
    }
    layers = _sandwich(config | dict(rope_parameters=None, rope_scaling=None), kinds)
    return _scaled(config, replace(layers, qk_norm=True, ropes=tuple(ropes[kind] for kind in kinds)))


def _sandwich(config: Json, kinds: list[str]) -> TransformerDecoderConfig:
    """What Gemma 2 and 3 have in common."""
    layers = _read_layers(config | dict(hidden_act=config["hidden_activation"] or "gelu_pytorch_tanh"))
    return replace(
        layers,
        norm_position="sandwich",
        query_scale=config["query_pre_attn_scalar"] ** -0.5,
        attention_softcap=config["attn_logit_softcapping"] or 0.0,
        windows=fields.windows(kinds, config["sliding_window"]),
        logit_softcap=config["final_logit_softcapping"] or 0.0,
    )


def _sliding_but_every(interval: int, num_layers: int) -> list[str]:
    return ["sliding_attention" if (layer + 1) % interval else "full_attention" for layer in range(num_layers)]


FAMILIES = [
    Family(model_type, "language", read_config, llama.decoder_table, llama.IGNORED, llama.ALIASES)
    for model_type, read_config in {"gemma": _gemma, "gemma2": _gemma2, "gemma3_text": _gemma3}.items()
]
