"""Llama 2 and 3, Mistral, SmolLM2 and 3, Qwen2, 2.5 and 3: one architecture with small differences.

SmolLM2 calls itself "llama", Qwen2.5 "qwen2".
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from jaxfusion.config.model import ModelConfig, TextEmbeddingConfig, TransformerDecoderConfig
from jaxfusion.pretrained import fields
from jaxfusion.pretrained.family import Family
from jaxfusion.pretrained.fields import Json
from jaxfusion.pretrained.table import Row

ALIASES = tuple((name, f"model.{name}") for name in ("embed_tokens.", "layers.", "norm."))  # saved without its head
IGNORED = ("*.rotary_emb.*",)  # buffers in older files

LLAMA = dict(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=None,
    head_dim=None,
    max_position_embeddings=2048,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    tie_word_embeddings=False,
    attention_bias=False,
    mlp_bias=False,
    sliding_window=None,
)
MISTRAL = LLAMA | dict(
    intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=131072, sliding_window=4096
)
SMOLLM3 = LLAMA | dict(
    vocab_size=128256,
    hidden_size=2048,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=4,
    max_position_embeddings=32768,
    rope_theta=2_000_000.0,
    tie_word_embeddings=True,
)
QWEN2 = LLAMA | dict(
    vocab_size=151936,
    intermediate_size=22016,
    num_key_value_heads=32,
    max_position_embeddings=32768,
    sliding_window=4096,
)
QWEN3 = QWEN2 | dict(head_dim=128)


def language_model(config: Json, layers: TransformerDecoderConfig) -> ModelConfig:
    """The text model of a config.json whose decoder is `layers`."""
    return ModelConfig(
        width=config["hidden_size"],
        text_embedding=TextEmbeddingConfig(
            vocab_size=config["vocab_size"], max_positions=config["max_position_embeddings"]
        ),
        decoder=layers,
    )


def read_layers(config: Json) -> TransformerDecoderConfig:
    """The decoder of a config.json that has its family's defaults in it, without windows."""
    scaling = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = fields.rope(config, config.get(scaling), scaling, config["rope_theta"], config["max_position_embeddings"])
    return TransformerDecoderConfig(
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"] or config["num_attention_heads"],
        head_dim=config["head_dim"] or config["hidden_size"] // config["num_attention_heads"],
        qkv_bias=config["attention_bias"],
        out_bias=config["attention_bias"],
        mlp_width=config["intermediate_size"],
        mlp=fields.activation(config, "hidden_act", "silu", fields.GATES),
        mlp_bias=config["mlp_bias"],
        norm="rms",
        norm_eps=config["rms_norm_eps"],
        ropes=(rope,),
        tie_embeddings=config["tie_word_embeddings"],
    )


def _llama(config: Json) -> ModelConfig:
    config = LLAMA | config
    return language_model(config, read_layers(config))


def _mistral(config: Json) -> ModelConfig:
    config = MISTRAL | config
    return language_model(config, replace(read_layers(config), windows=(config["sliding_window"] or 0,)))


def _smollm3(config: Json) -> ModelConfig:
    config = SMOLLM3 | config
    layers = read_layers(config)
    interval = config.get("no_rope_layer_interval", 4)
    turns = config.get("no_rope_layers") or [(layer + 1) % interval for layer in range(layers.num_layers)]
    rope, none = layers.ropes[0], replace(layers.ropes[0], theta=0.0, scaling="none")
    slides = config.get("use_sliding_window", False)
    kinds = config.get("layer_types") or [
        "sliding_attention" if slides and not turn else "full_attention" for turn in turns
    ]
    windows = fields.windows(kinds, config["sliding_window"])
    ropes = tuple(rope if turn else none for turn in turns)
    return language_model(config, replace(layers, windows=windows, ropes=ropes))


def _qwen(config: Json, defaults: dict[str, Any], **settings: Any) -> ModelConfig:
    config = defaults | config
    layers = read_layers(config)
    window = config["sliding_window"] if config.get("use_sliding_window", False) else None
    first = config.get("max_window_layers", 28)
    kinds = config.get("layer_types") or [
        "sliding_attention" if layer >= first else "full_attention" for layer in range(layers.num_layers)
    ]
    return language_model(config, replace(layers, windows=fields.windows(kinds, window), **settings))


def decoder_table(config: ModelConfig) -> list[Row]:
    """The tensors of a *ForCausalLM whose layers are named as Llama's."""
    decoder, theirs, ours = config.decoder, "model.layers.{layer}", "decoder/layers"
    rows = [
        Row("model.embed_tokens.weight", "text_embedding/embedding"),
        Row("model.norm.weight", "decoder/final_norm/scale"),
        Row(f"{theirs}.input_layernorm.weight", f"{ours}/attention_norm/scale"),
    ]
    if decoder.norm_position == "sandwich":
        names = {
            "post_attention_layernorm": "attention_post_norm",
            "pre_feedforward_layernorm": "mlp_norm",
            "post_feedforward_layernorm": "mlp_post_norm",
        }
    else:
        names = {"post_attention_layernorm": "mlp_norm"}
    rows += [Row(f"{theirs}.{name}.weight", f"{ours}/{norm}/scale") for name, norm in names.items()]
    for name, part in {"q_proj": "query", "k_proj": "key", "v_proj": "value"}.items():
        rows.append(Row(f"{theirs}.self_attn.{name}.weight", f"{ours}/attention/{part}/kernel", "(n h) d -> d n h"))
        if decoder.qkv_bias:
            rows.append(Row(f"{theirs}.self_attn.{name}.bias", f"{ours}/attention/{part}/bias", "(n h) -> n h"))
    rows.append(Row(f"{theirs}.self_attn.o_proj.weight", f"{ours}/attention/out/kernel", "d (n h) -> n h d"))
    if decoder.out_bias:
        rows.append(Row(f"{theirs}.self_attn.o_proj.bias", f"{ours}/attention/out/bias"))
    if decoder.qk_norm:
        rows.append(Row(f"{theirs}.self_attn.q_norm.weight", f"{ours}/attention/query_norm/scale"))
        rows.append(Row(f"{theirs}.self_attn.k_norm.weight", f"{ours}/attention/key_norm/scale"))
    for part in ("gate", "up", "down"):
        rows.append(Row(f"{theirs}.mlp.{part}_proj.weight", f"{ours}/mlp/{part}/kernel", "o i -> i o"))
        if decoder.mlp_bias:
            rows.append(Row(f"{theirs}.mlp.{part}_proj.bias", f"{ours}/mlp/{part}/bias"))
    if not decoder.tie_embeddings:
        rows.append(Row("lm_head.weight", "output/kernel", "v d -> d v"))
    return rows


def _family(model_type: str, read: Callable[[Json], ModelConfig]) -> Family:
    return Family(model_type, "language", read, decoder_table, IGNORED, ALIASES)


FAMILIES = [
    _family("llama", _llama),
    _family("mistral", _mistral),
    _family("smollm3", _smollm3),
    _family("qwen2", partial(_qwen, defaults=QWEN2, qkv_bias=True, out_bias=False)),
    _family("qwen3", partial(_qwen, defaults=QWEN3, qk_norm=True)),
]
