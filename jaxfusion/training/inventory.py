"""What a run trains, what it keeps frozen, and what its step does to save memory, in one line."""

from math import prod

import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxfusion.config.run import TrainConfig
from jaxfusion.models.int8 import is_int8
from jaxfusion.models.vlm import Model, Params, init
from jaxfusion.training.distillation import Distillation, FromTopK
from jaxfusion.training.progress import scaled
from jaxfusion.training.trainable import split


def describe_run(params: Params, settings: TrainConfig) -> str:
    """params: all of them, as a run keeps them; shapes are enough. A kernel in 8 bits counts without its scales, whose
    bytes count.

    147,000 parameters train (float32, 588 kB), 85,798,656 are frozen (bfloat16, 172 MB); remat 'none', a step takes its
    64 rows in 1 part
    """
    learned, frozen = split(params, settings.trainable)
    parts = "1 part" if settings.accumulate == 1 else f"{settings.accumulate} parts"
    rest = _describe(frozen, "are frozen") if frozen else "none are frozen"
    return (
        f"{_describe(learned, 'parameters train')}, {rest}; "
        f"remat {settings.remat!r}, a step takes its {settings.batch_size} rows in {parts}"
    )


def describe_teacher(distillation: Distillation | FromTopK, student: Model) -> str:
    """What a run learns from, beside the targets, and what that takes.

    the teacher: 379,232 parameters are frozen (float32, 1.52 MB); temperature 2, its weight 0.5
    """
    counts = f"temperature {distillation.temperature:g}, its weight {distillation.weight:g}"
    if isinstance(distillation, FromTopK):
        return f"the teacher: its {distillation.k} largest probabilities, as they were prepared; {counts}"
    teacher = distillation.teacher
    dtype = jnp.dtype(teacher.config.dtype)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype),
        jax.eval_shape(lambda rng: init(teacher, rng), jax.random.key(0)),
    )
    if distillation.features:
        counts += f", its hidden states' {distillation.features:g}"
    if shape := distillation.map_shape(student):
        counts += f" (by a map of {shape[0]:,} x {shape[1]:,} that trains, {scaled(4 * prod(shape))}B)"
    return f"the teacher: {_describe(shapes, 'parameters are frozen')}; {counts}"


def _describe(params: Params, what: str) -> str:
    leaves = traverse_util.flatten_dict(params).values()
    count = sum(prod(leaf.shape) for leaf in leaves)
    dtypes = sorted({str(leaf.values.dtype if is_int8(leaf) else leaf.dtype) for leaf in leaves})
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    return f"{count:,} {what} ({' and '.join(dtypes)}, {scaled(size)}B)"
