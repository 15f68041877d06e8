"""The models and batches that benchmarks run, by name."""

from dataclasses import dataclass, replace

from jaxfusion.config.model import (
    AddFusionConfig,
    BiLSTMEncoderConfig,
    LinearProjectorConfig,
    ModelConfig,
    PixelShuffleProjectorConfig,
    RopeConfig,
    TextEmbeddingConfig,
    TokenClassifierConfig,
    TransformerDecoderConfig,
)
from jaxfusion.config.presets import PRESETS as SIZES


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model and the shape of its batches.

    batch_size:       rows a step, over all devices.
    row_length:       positions in a row, visual tokens included.
    images_per_row:   a multiple of segments_per_row, which share them out.
    segments_per_row: samples in a row. With 1 the batch promises that it is not packed, and kernels that know no
                      ranges may be used.
    shortest:         the shortest row's share of row_length; the others are longer, up to all of it.
    """

    summary: str
    model: ModelConfig
    batch_size: int
    row_length: int
    images_per_row: int = 1
    segments_per_row: int = 1
    shortest: float = 0.5


_VISION = SIZES["vision"]

# The width and depth of GPT-2 (Radford et al. 2019); its 50,257 tokens are rounded up to a multiple of 64.
_VIT_BASE_GPT = ModelConfig(
    width=768,
    text_embedding=TextEmbeddingConfig(vocab_size=50304, positions="learned", max_positions=512),
    vision=replace(_VISION["vit-base-16"], class_token=False),
    decoder=TransformerDecoderConfig(num_layers=12, num_heads=12),
    dtype="bfloat16",
)

# The text model has the shape of Llama 3.2 1B (Meta 2024).
_ONE_BILLION = ModelConfig(
    width=2048,
    text_embedding=TextEmbeddingConfig(vocab_size=128256, positions="rotary", max_positions=2048),
    vision=replace(_VISION["vit-large-16"], class_token=False),
    projector=PixelShuffleProjectorConfig(factor=2),
    decoder=TransformerDecoderConfig(
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        qkv_bias=False,
        out_bias=False,
        mlp_width=8192,
        mlp="swiglu",
        mlp_bias=False,
        norm="rms",
        ropes=(RopeConfig(theta=500_000.0),),
    ),
    dtype="bfloat16",
)

PRESETS: dict[str, Preset] = {
    "quickstart": Preset(
        summary="configs/quickstart.py: a small VGG and a two-layer decoder, float32",
        model=ModelConfig(
            width=96,
            # as many tokens as its tokenizer learns
            text_embedding=TextEmbeddingConfig(vocab_size=315, positions="learned", max_positions=128),
            vision=_VISION["vgg-tiny"],
            projector=PixelShuffleProjectorConfig(factor=3),
            decoder=TransformerDecoderConfig(num_layers=2, scan_layers=False),
        ),
        batch_size=32,
        row_length=48,
        shortest=0.4,
    ),
    "bilstm": Preset(
        summary="a small VGG added to the text, a bidirectional LSTM, softmax at every step, float32",
        model=ModelConfig(
            width=256,
            text_embedding=TextEmbeddingConfig(vocab_size=315, positions="none"),
            vision=_VISION["vgg-tiny"],
            projector=LinearProjectorConfig(pool="concatenate"),
            fusion=AddFusionConfig(),
            encoder=BiLSTMEncoderConfig(),
            decoder=TokenClassifierConfig(),
        ),
        batch_size=32,
        row_length=48,
        shortest=0.4,
    ),
    "vit-base-gpt": Preset(
        summary="ViT-B/16 at 224 and a 12-layer decoder of width 768, bf16, rows of 512, one image each",
        model=_VIT_BASE_GPT,
        batch_size=64,
        row_length=512,
    ),
    "1b": Preset(
        summary="ViT-L/16 at 224 and a 1.2-billion-parameter decoder, bf16, rows of 2048, eight images each",
        model=_ONE_BILLION,
        batch_size=8,
        row_length=2048,
        images_per_row=8,
        shortest=0.75,
    ),
}
