"""GPT-2 (Radford et al. 2019). Its matrices are stored as [in, out], and query, key and value as one."""

from jaxfusion.config.model import ModelConfig, TextEmbeddingConfig, TransformerDecoderConfig
from jaxfusion.pretrained import fields
from jaxfusion.pretrained.family import Family
from jaxfusion.pretrained.fields import Json
from jaxfusion.pretrained.table import Row

GPT2 = dict(vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12, n_inner=None)
GPT2 |= dict(layer_norm_epsilon=1e-5, tie_word_embeddings=True)


def _read_config(config: Json) -> ModelConfig:
    fields.refuse_unless(config, "scale_attn_weights", True)
    fields.refuse_unless(config, "scale_attn_by_inverse_layer_idx", False)
    fields.refuse_unless(config, "add_cross_attention", False)
    config = GPT2 | config
    return ModelConfig(
        width=config["n_embd"],
        text_embedding=TextEmbeddingConfig(
            vocab_size=config["vocab_size"], positions="learned", max_positions=config["n_positions"]
        ),
        decoder=TransformerDecoderConfig(
            num_layers=config["n_layer"],
            num_heads=config["n_head"],
            mlp_width=config["n_inner"] or 4 * config["n_embd"],
            mlp=fields.activation(config, "activation_function", "gelu_new"),
            norm_eps=config["layer_norm_epsilon"],
            tie_embeddings=config["tie_word_embeddings"],
        ),
    )


def _table(config: ModelConfig) -> list[Row]:
    theirs, ours = "transformer.h.{layer}", "decoder/layers"
    rows = [
        Row("transformer.wte.weight", "text_embedding/embedding"),
        Row("transformer.wpe.weight", "text_embedding/position_embedding"),
    ]
    norms = {"ln_1": "attention_norm", "ln_2": "mlp_norm"}
    norms = {f"{theirs}.{name}": f"{ours}/{norm}" for name, norm in norms.items()}
    for name, norm in (norms | {"transformer.ln_f": "decoder/final_norm"}).items():
        rows += [Row(f"{name}.weight", f"{norm}/scale"), Row(f"{name}.bias", f"{norm}/bias")]
    kernels, biases = (
        tuple(f"{ours}/attention/{part}/{leaf}" for part in ("query", "key", "value")) for leaf in ("kernel", "bias")
    )
    rows += [
        Row(f"{theirs}.attn.c_attn.weight", kernels, "d (three n h) -> three d n h"),
        Row(f"{theirs}.attn.c_attn.bias", biases, "(three n h) -> three n h"),
        Row(f"{theirs}.attn.c_proj.weight", f"{ours}/attention/out/kernel", "(n h) d -> n h d"),
        Row(f"{theirs}.attn.c_proj.bias", f"{ours}/attention/out/bias"),
        Row(f"{theirs}.mlp.c_fc.weight", f"{ours}/mlp/up/kernel"),
        Row(f"{theirs}.mlp.c_fc.bias", f"{ours}/mlp/up/bias"),
        Row(f"{theirs}.mlp.c_proj.weight", f"{ours}/mlp/down/kernel"),
        Row(f"{theirs}.mlp.c_proj.bias", f"{ours}/mlp/down/bias"),
    ]
    if not config.decoder.tie_embeddings:
        rows.append(Row("lm_head.weight", "output/kernel", "v d -> d v"))
    return rows


FAMILIES = [
    Family(
        "gpt2",
        "language",
        _read_config,
        _table,
        ignored=("*.attn.bias", "*.attn.masked_bias"),  # masks
        aliases=tuple((name, f"transformer.{name}") for name in ("wte.", "wpe.", "h.", "ln_f.")),
    )
]
