"""BERT (Devlin et al. 2019) as a text embedding and an encoder; every position has the first token type."""

from jaxfusion.config.model import (
    ModelConfig,
    TextEmbeddingConfig,
    TokenClassifierConfig,
    TransformerEncoderConfig,
)
from jaxfusion.pretrained import fields
from jaxfusion.pretrained.family import Family
from jaxfusion.pretrained.fields import Json
from jaxfusion.pretrained.table import Row

BERT = dict(vocab_size=30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
BERT |= dict(max_position_embeddings=512, type_vocab_size=2, layer_norm_eps=1e-12)


def _read_config(config: Json) -> ModelConfig:
    fields.refuse_unless(config, "is_decoder", False)
    fields.refuse_unless(config, "add_cross_attention", False)
    fields.refuse_unless(config, "position_embedding_type", "absolute", None)
    config = BERT | config
    return ModelConfig(
        width=config["hidden_size"],
        text_embedding=TextEmbeddingConfig(
            vocab_size=config["vocab_size"],
            positions="learned",
            max_positions=config["max_position_embeddings"],
            token_types=config["type_vocab_size"],
            norm=True,
            norm_eps=config["layer_norm_eps"],
        ),
        encoder=TransformerEncoderConfig(
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            mlp_width=config["intermediate_size"],
            mlp=fields.activation(config, "hidden_act", "gelu"),
            norm_position="post",
            norm_eps=config["layer_norm_eps"],
        ),
        decoder=TokenClassifierConfig(),
    )


def _table(config: ModelConfig) -> list[Row]:
    """Of a BertModel; its pooler is not ours."""
    theirs, ours = "encoder.layer.{layer}", "encoder/layers"
    rows = [
        Row("embeddings.word_embeddings.weight", "text_embedding/embedding"),
        Row("embeddings.position_embeddings.weight", "text_embedding/position_embedding"),
        Row("embeddings.token_type_embeddings.weight", "text_embedding/token_type_embedding"),
    ]
    norms = {
        "embeddings.LayerNorm": "text_embedding/norm",
        f"{theirs}.attention.output.LayerNorm": f"{ours}/attention_norm",
        f"{theirs}.output.LayerNorm": f"{ours}/mlp_norm",
    }
    for name, norm in norms.items():
        rows += [Row(f"{name}.weight", f"{norm}/scale"), Row(f"{name}.bias", f"{norm}/bias")]
    for part in ("query", "key", "value"):
        name, path = f"{theirs}.attention.self.{part}", f"{ours}/attention/{part}"
        rows += [
            Row(f"{name}.weight", f"{path}/kernel", "(n h) d -> d n h"),
            Row(f"{name}.bias", f"{path}/bias", "(n h) -> n h"),
        ]
    rows.append(Row(f"{theirs}.attention.output.dense.weight", f"{ours}/attention/out/kernel", "d (n h) -> n h d"))
    rows.append(Row(f"{theirs}.attention.output.dense.bias", f"{ours}/attention/out/bias"))
    for name, part in {"intermediate": "up", "output": "down"}.items():
        rows.append(Row(f"{theirs}.{name}.dense.weight", f"{ours}/mlp/{part}/kernel", "o i -> i o"))
        rows.append(Row(f"{theirs}.{name}.dense.bias", f"{ours}/mlp/{part}/bias"))
    return rows


FAMILIES = [
    Family(
        "bert",
        "encoder",
        _read_config,
        _table,
        ignored=("pooler.*", "cls.*", "classifier.*", "qa_outputs.*", "embeddings.position_ids"),
        aliases=(("bert.", ""),),
    )
]
