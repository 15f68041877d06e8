"""A preset's step compiled for GPUs that are only described: whether it fits, its kernels and collectives."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax

from benchmarks.ours import OPTIMIZER, batch_shape
from benchmarks.presets import Preset
from benchmarks.synthetic import synthetic_batch
from jaxfusion.config.model import BiLSTMEncoderConfig
from jaxfusion.errors import UserError
from jaxfusion.hardware import HARDWARE
from jaxfusion.models.vlm import build
from jaxfusion.planning import compile_for, read_program
from jaxfusion.planning.run import USABLE
from jaxfusion.training.optimizer import make_optimizer
from jaxfusion.training.state import create_state
from jaxfusion.training.step import train_step


def plan(preset: Preset, hardware: str, devices: int = 1) -> dict[str, Any]:
    """Bytes are of one card. Raises UserError for rows that cannot be shared, and where JAX has no CUDA build."""
    if preset.batch_size % devices:
        raise UserError(f"--batch-size: {preset.batch_size} rows cannot be shared evenly by {devices} devices")
    batch, config, card = synthetic_batch(preset), preset.model, HARDWARE[hardware]
    if isinstance(config.encoder, BiLSTMEncoderConfig):  # cuDNN's cannot be compiled without a GPU
        config = replace(config, encoder=replace(config.encoder, implementation="scan"))
    model, optimizer = build(config), make_optimizer(OPTIMIZER)
    create = partial(create_state, model, optimizer, trainable=preset.trainable)
    state = jax.eval_shape(create, jax.random.key(0))
    step = partial(train_step, model, optimizer, remat=preset.remat)
    program = read_program(compile_for(step, state, batch, hardware=hardware, topology=f"1x1x{devices}"))
    found = vars(program) | {"total_bytes": program.total_bytes, "arrays": dict(list(program.arrays.items())[:5])}
    fits = program.total_bytes <= USABLE * card.memory_bytes
    return {"target": card.device_kind, "devices": devices, "fits": fits, "batch": batch_shape(batch), **found}
