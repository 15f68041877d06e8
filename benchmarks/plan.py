"""A preset's step compiled for GPUs that are only described: whether it fits, its kernels and collectives."""

from typing import Any

from benchmarks.ours import batch_shape, train_settings
from benchmarks.presets import Preset
from benchmarks.synthetic import synthetic_batch
from jaxfusion.errors import UserError
from jaxfusion.planning.step import StepPlan, plan_step
from jaxfusion.planning.summary import to_json

LARGEST_ARRAYS = 5


def plan_preset(preset: Preset, hardware: str, devices: int = 1) -> StepPlan:
    """Raises UserError for rows that cannot be shared, and where JAX has no CUDA build."""
    if preset.batch_size % devices:
        raise UserError(f"--batch-size: {preset.batch_size} rows cannot be shared evenly by {devices} devices")
    return plan_step(preset.model, train_settings(preset), synthetic_batch(preset), hardware, topology=f"1x1x{devices}")


def facts_of(preset: Preset, plan: StepPlan) -> dict[str, Any]:
    """Bytes are of one card."""
    largest = dict(list(plan.program.arrays.items())[:LARGEST_ARRAYS])
    return to_json(plan) | {"batch": batch_shape(synthetic_batch(preset)), "arrays": largest}
