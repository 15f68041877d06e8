"""What a run says of itself before it trains."""

import jax
import pytest

from jaxfusion.config.model import ModelConfig, TextEmbeddingConfig, TransformerDecoderConfig
from jaxfusion.config.run import TrainConfig
from jaxfusion.models.vlm import build, init
from jaxfusion.training.frozen import store
from jaxfusion.training.inventory import describe_run

MODEL = build(
    ModelConfig(
        width=8,
        text_embedding=TextEmbeddingConfig(vocab_size=7),
        decoder=TransformerDecoderConfig(num_layers=1, num_heads=2),
        dtype="bfloat16",
    )
)
EMBEDDING = 7 * 8
# query, key, value, output; up and down; two norms and the last one
KERNELS, BIASES, NORMS = 4 * 64 + 2 * 256, 4 * 8 + 32 + 8, 3 * 16
OUTPUTS = 4 * 8 + 32 + 8  # a scale each in 8 bits


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"trainable": ("*",), "accumulate": 2, "remat": "dots"},
            f"{EMBEDDING + KERNELS + BIASES + NORMS:,} parameters train (float32, 3.78 kB), none are frozen; "
            "remat 'dots', a step takes its 64 rows in 2 parts",
        ),
        (
            {"trainable": ("text_embedding/*",)},
            f"{EMBEDDING} parameters train (float32, 224 B), {KERNELS + BIASES + NORMS} are frozen (bfloat16, "
            "1.78 kB); remat 'none', a step takes its 64 rows in 1 part",
        ),
        (
            {"trainable": ("text_embedding/*",), "frozen_dtype": "int8"},
            f"{EMBEDDING} parameters train (float32, 224 B), {KERNELS + BIASES + NORMS} are frozen (bfloat16 and int8, "
            f"{(KERNELS + 4 * OUTPUTS + 2 * (BIASES + NORMS)) / 1e3:.3g} kB); "
            "remat 'none', a step takes its 64 rows in 1 part",
        ),
    ],
)
def test_parameters_are_counted_by_what_becomes_of_them(settings, line):
    settings = TrainConfig(**settings)
    params = jax.eval_shape(
        lambda rng: store(MODEL, init(MODEL, rng), settings.trainable, settings.frozen_dtype), jax.random.key(0)
    )
    assert describe_run(params, settings) == line
