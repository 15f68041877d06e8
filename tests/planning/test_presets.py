"""The real steps of the large presets, compiled for one H200 that is not there: fused attention and no large arrays."""

import math
import re
from dataclasses import replace

import pytest

from benchmarks.plan import plan_preset
from benchmarks.presets import PRESETS
from jaxfusion.config.model import ViTConfig
from jaxfusion.training.cross_entropy import ON_GPU
from tests.planning.cuda import needs_cuda_build


@needs_cuda_build
@pytest.mark.parametrize("name", ["vlm_1b", "vlm_1b_packed", "llava_7b", "llava_7b_packed"])
def test_a_large_step_is_fused_and_fits(name):
    # A length that no width of the model shares, so that an array of T x T is known as one.
    preset = replace(PRESETS[name], row_length=PRESETS[name].row_length - 128)
    plan = plan_preset(preset, "h200")
    program, config = plan.program, preset.model
    assert isinstance(config.vision, ViTConfig)
    seen = any(glob.startswith("vision") or glob == "*" for glob in preset.trainable)
    towers, layers = config.vision.used_layers, config.decoder.num_layers
    causal, packed = (0, layers) if preset.packed else (layers, 0)
    assert program.kernels["__cudnn$fmhaSoftmax"] == towers + causal
    assert program.kernels["__cudnn$fmhaSoftmaxBackward"] == towers * seen + causal
    for kernel in ("forward", "backward_query", "backward_key_value"):
        assert program.kernels[f"flash_attention_{kernel}"] == packed

    length, vocab = preset.row_length, config.text_embedding.vocab_size
    for shape in map(dimensions, program.arrays):
        assert shape.count(length) < 2, shape
        # With the vocabulary there are the matrix and its like, and a chunk of the logits.
        assert vocab not in shape or config.width in shape or math.prod(shape) <= 2 * ON_GPU.max_logits, shape
    assert plan.fits


def dimensions(array: str) -> list[int]:
    """Of "bf16[8,2048]"."""
    return [int(size) for size in re.findall(r"\d+", array.partition("[")[2])]
