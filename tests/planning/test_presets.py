"""The real steps of the large presets, compiled for one H200 that is not there: fused attention and no large arrays."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.plan import plan_preset
from benchmarks.presets import PRESETS, Preset
from jaxfusion.config.model import ModelConfig, ViTConfig
from jaxfusion.planning.step import StepPlan
from jaxfusion.training.cross_entropy import ON_GPU
from tests.planning.cuda import needs_cuda_build


@needs_cuda_build
@pytest.mark.parametrize("name", ["vlm_1b", "vlm_1b_packed", "llava_7b", "llava_7b_packed"])
def test_a_large_step_is_fused_and_fits(name):
    """Its layers in a loop, which compiles in seconds and takes more memory than laid out."""
    preset = PRESETS[name]
    plan = check_step(replace(preset, model=with_layers(preset.model, scan_layers=True)))
    assert plan.fits


@needs_cuda_build
def test_so_is_one_whose_layers_are_laid_out():
    preset = PRESETS["vlm_1b_packed"]
    assert preset.model.decoder.scan_layers is None
    plan = check_step(replace(preset, model=with_layers(preset.model, num_layers=2)))
    layers = plan.program.kernels["flash_attention_forward"]
    assert layers == 2
    # A loop would copy what each layer keeps for its gradients into one array for all.
    kept = (layers, preset.batch_size, preset.row_length - 128)
    assert not any(tuple(dimensions(array)[:3]) == kept for array in plan.program.arrays)


def with_layers(model: ModelConfig, **changes: Any) -> ModelConfig:
    return replace(model, vision=replace(model.vision, **changes), decoder=replace(model.decoder, **changes))


def check_step(preset: Preset) -> StepPlan:
    # A length that no width of the model shares, so that an array of T x T is known as one.
    preset = replace(preset, row_length=preset.row_length - 128)
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
    return plan


def dimensions(array: str) -> list[int]:
    """Of "bf16[8,2048]"."""
    return [int(size) for size in re.findall(r"\d+", array.partition("[")[2])]
