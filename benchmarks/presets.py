"""The models and batches that benchmarks run, by name."""

from dataclasses import dataclass, replace

from benchmarks.architectures import LLAVA_7B, NANOVLM_222M, PALIGEMMA_3B, TINY_VLM, VLM_1B, Json
from jaxfusion.config.model import (
    AddFusionConfig,
    BiLSTMEncoderConfig,
    LinearProjectorConfig,
    LoraConfig,
    ModelConfig,
    TextEmbeddingConfig,
    TokenClassifierConfig,
)
from jaxfusion.config.presets import PRESETS as SIZES
from jaxfusion.models.float8 import MatMul
from jaxfusion.models.remat import Remat
from jaxfusion.pretrained.families import FAMILIES


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model, what of it trains, and the shape of its batches.

    checkpoint:       config.json of the same model in transformers; None where that has none.
    trainable, remat, matmul: as in `config.train`.
    batch_size:       rows a step, over all devices.
    row_length:       positions in a row, visual tokens included.
    images_per_row:   a multiple of segments_per_row, which share them out.
    segments_per_row: samples in a row. With 1 the batch promises that it is not packed, and kernels that know no
                      ranges may be used.
    shortest:         the shortest row's share of row_length; the others are longer, up to all of it.
    """

    summary: str
    model: ModelConfig
    checkpoint: Json | None = None
    trainable: tuple[str, ...] = ("*",)
    remat: Remat = "none"
    matmul: MatMul = "compute"
    batch_size: int
    row_length: int
    images_per_row: int = 1
    segments_per_row: int = 1
    shortest: float = 0.5

    @property
    def packed(self) -> bool:
        return self.segments_per_row > 1


def _read(checkpoint: Json, dtype: str = "bfloat16") -> ModelConfig:
    return replace(FAMILIES[checkpoint["model_type"]].read_config(checkpoint), dtype=dtype)


def _packed(preset: Preset, *, batch_size: int, row_length: int, segments_per_row: int) -> Preset:
    """Samples of the same kind, several in a row and almost to its end, as many images each as before."""
    return replace(
        preset,
        summary=f"{preset.summary.partition(';')[0]}; packed, {segments_per_row} samples of ragged lengths a row",
        batch_size=batch_size,
        row_length=row_length,
        segments_per_row=segments_per_row,
        images_per_row=segments_per_row,
        shortest=0.97,
    )


_VGG = SIZES["vision"]["vgg-tiny"]
_TINY_BILSTM = ModelConfig(
    width=256,
    text_embedding=TextEmbeddingConfig(vocab_size=315, positions="none"),
    vision=_VGG,
    projector=LinearProjectorConfig(pool="concatenate"),
    fusion=AddFusionConfig(),
    encoder=BiLSTMEncoderConfig(),
    decoder=TokenClassifierConfig(),
)

_NANOVLM_222M = Preset(
    summary="SigLIP-B/16 at 224, 49 tokens an image, and SmolLM2-135M, bf16; rows of 128, an image each",
    model=_read(NANOVLM_222M),
    checkpoint=NANOVLM_222M,
    batch_size=256,
    row_length=128,
)
_VLM_1B = Preset(
    summary="SigLIP-L/16 at 256, 64 tokens an image, and a Llama 3.2 1B, bf16; rows of 2048, eight images each",
    model=_read(VLM_1B),
    checkpoint=VLM_1B,
    batch_size=8,
    row_length=2048,
    images_per_row=8,
    shortest=0.75,
)
_LLAVA_7B = Preset(
    summary="LLaVA 1.5 7B with its tower frozen (its second stage), bf16; rows of 1024, an image each",
    model=_read(LLAVA_7B),
    checkpoint=LLAVA_7B,
    trainable=("text_embedding/*", "projector/*", "decoder/*", "output/*"),
    remat="dots",
    batch_size=8,
    row_length=1024,
    shortest=0.7,
)
_LLAVA_7B_LORA = replace(
    _LLAVA_7B,
    summary="LLaVA 1.5 7B, adapters of rank 16 on every matrix of its text layers alone, bf16; rows of 1024",
    model=replace(_LLAVA_7B.model, lora=(LoraConfig(rank=16, alpha=32.0),)),
    trainable=("*lora_*",),
)
_LLAVA_7B_FULL = replace(
    _LLAVA_7B,
    summary="LLaVA 1.5 7B, nothing frozen, bf16; rows of 1024, an image each",
    trainable=("*",),
    remat="attention",
)
_PALIGEMMA_3B = Preset(
    summary="SigLIP-So400m/14 at 224, 256 tokens an image, and Gemma 2B, prefix-LM, bf16; rows of 512, an image each",
    model=_read(PALIGEMMA_3B),
    checkpoint=PALIGEMMA_3B,
    batch_size=16,
    row_length=512,
    shortest=0.6,
)
_TINY_VLM = Preset(
    summary="a small SigLIP and a four-layer Llama of width 256, float32; rows of 256, an image each",
    model=_read(TINY_VLM, "float32"),
    checkpoint=TINY_VLM,
    batch_size=4,
    row_length=256,
)

PRESETS: dict[str, Preset] = {
    "tiny_bilstm": Preset(
        summary="a small VGG added to the text, a bidirectional LSTM, softmax at every step, float32",
        model=_TINY_BILSTM,
        batch_size=32,
        row_length=48,
        shortest=0.4,
    ),
    "tiny_vlm": _TINY_VLM,
    "tiny_vlm_packed": _packed(_TINY_VLM, batch_size=2, row_length=512, segments_per_row=4),
    "bilstm": Preset(
        summary="the same with two layers of 512 a direction and 8,192 tokens, float32; for a GPU",
        model=replace(
            _TINY_BILSTM,
            width=1024,
            text_embedding=TextEmbeddingConfig(vocab_size=8192, positions="none"),
            encoder=BiLSTMEncoderConfig(num_layers=2),
        ),
        batch_size=128,
        row_length=128,
    ),
    "nanovlm_222m": _NANOVLM_222M,
    "nanovlm_222m_packed": _packed(_NANOVLM_222M, batch_size=32, row_length=1024, segments_per_row=10),
    "vlm_1b": _VLM_1B,
    "vlm_1b_packed": _packed(_VLM_1B, batch_size=8, row_length=2048, segments_per_row=8),
    "llava_7b": _LLAVA_7B,
    "llava_7b_packed": _packed(_LLAVA_7B, batch_size=2, row_length=4096, segments_per_row=5),
    "llava_7b_lora": _LLAVA_7B_LORA,
    "llava_7b_lora_packed": _packed(_LLAVA_7B_LORA, batch_size=2, row_length=4096, segments_per_row=5),
    "llava_7b_full": _LLAVA_7B_FULL,
    "llava_7b_full_packed": _packed(_LLAVA_7B_FULL, batch_size=2, row_length=4096, segments_per_row=5),
    "paligemma_3b": _PALIGEMMA_3B,
    "paligemma_3b_packed": _packed(_PALIGEMMA_3B, batch_size=4, row_length=2048, segments_per_row=5),
}
CPU_PRESETS = tuple(name for name in PRESETS if name.startswith("tiny"))
GPU_PRESETS = tuple(name for name in PRESETS if name not in CPU_PRESETS)
