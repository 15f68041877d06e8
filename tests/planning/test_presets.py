"""The real steps of the large presets, compiled for one H200 that is not there: fused attention and no large arrays."""

import math
import re
from dataclasses import replace
from functools import partial

import jax
import pytest

from benchmarks.presets import PRESETS
from benchmarks.synthetic import synthetic_batch
from jaxfusion.config.model import ViTConfig
from jaxfusion.config.run import TrainConfig
from jaxfusion.hardware import HARDWARE
from jaxfusion.models.vlm import build
from jaxfusion.planning import compile_for, read_program
from jaxfusion.planning.run import USABLE
from jaxfusion.training.optimizer import make_optimizer
from jaxfusion.training.state import create_state
from jaxfusion.training.step import train_step
from tests.planning.cuda import needs_cuda_build


@needs_cuda_build
@pytest.mark.parametrize("name", ["vlm_1b", "vlm_1b_packed", "llava_7b", "llava_7b_packed"])
def test_a_large_step_is_fused_and_fits(name):
    # A length that no width of the model shares, so that an array of T x T is known as one.
    preset = replace(PRESETS[name], row_length=PRESETS[name].row_length - 128)
    model, optimizer = build(preset.model), make_optimizer(TrainConfig())
    new_state = partial(create_state, model, optimizer, trainable=preset.trainable)
    batch, state = synthetic_batch(preset), jax.eval_shape(new_state, jax.random.key(0))
    step = partial(train_step, model, optimizer, remat=preset.remat)
    program = read_program(compile_for(step, state, batch, hardware="h200"))

    config = model.config
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
        assert not (vocab in shape and math.prod(shape) >= preset.batch_size * length * vocab), shape
    assert program.total_bytes <= USABLE * HARDWARE["h200"].memory_bytes


def dimensions(array: str) -> list[int]:
    """Of "bf16[8,2048]"."""
    return [int(size) for size in re.findall(r"\d+", array.partition("[")[2])]
