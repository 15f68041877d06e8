"""Training that is timed with its reading, in turns with another one of the same process."""

import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfusion.batch import Batch
from jaxfusion.config.run import ParallelConfig, TrainConfig
from jaxfusion.models.vlm import Model, Params
from jaxfusion.parallel import make_parallel
from jaxfusion.training.distillation import Distillation, FromTopK
from jaxfusion.training.optimizer import make_optimizer
from jaxfusion.training.prefetch import Prefetch
from jaxfusion.training.state import TrainState, create_state
from jaxfusion.training.step import make_step


class Training:
    """A model in training, compiled and warm. A context manager that stops the reading."""

    def __init__(
        self,
        model: Model,
        settings: TrainConfig,
        iterator: Iterator[Batch],
        rows: int,
        params: Params | None = None,
        teacher: tuple[Distillation | FromTopK, Params | None] = (None, None),
    ) -> None:
        """params: to begin with, in place of fresh ones. teacher: to learn from, and its parameters, where it needs
        them."""
        self.samples, self._seen, self._losses = 0, [], []
        parallel = make_parallel(ParallelConfig())
        parallel.check_batch_size("--rows", rows)
        new_state, self._step = _compiled(model, settings, teacher[0])
        self._batches = Prefetch(iterator, parallel.put_batch)
        (batch, _), _ = self._batches.take()

        def first(state: TrainState) -> TrainState:
            return parallel.put_state(state.replace(teacher=jax.tree.map(jnp.copy, teacher[1])))  # which is donated

        jax.block_until_ready(self._step(first(new_state(params=params)), batch))
        self._state = first(new_state(params=params))

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *_: object) -> None:
        self._batches.__exit__()

    def run(self, steps: int) -> float:
        """Trains so many steps; returns samples a second."""
        start, before, unread = time.perf_counter(), self.samples, []
        for _ in range(steps):
            (batch, _), _ = self._batches.take()
            self._state, metrics = self._step(self._state, batch)
            unread.append(metrics)
        for metrics in jax.device_get(unread):
            self.samples += int(metrics["samples"])
            self._seen.append(self.samples)
            self._losses.append(float(metrics["loss"]))
        return (self.samples - before) / (time.perf_counter() - start)

    def curve(self, points: int) -> np.ndarray:
        """The mean loss over each part of the samples that were seen."""
        part = np.minimum(np.array(self._seen) * points // (self.samples + 1), points - 1)
        return np.array([np.mean(np.array(self._losses)[part == place]) for place in range(points)])


@cache
def _compiled(
    model: Model, settings: TrainConfig, distillation: Distillation | FromTopK | None
) -> tuple[Callable[..., TrainState], Callable[..., Any]]:
    """What makes a new state, and the step; shared by the sides whose batches have the same shape."""
    optimizer = make_optimizer(settings)
    kept = {"trainable": settings.trainable, "frozen_dtype": settings.frozen_dtype}
    new_state = jax.jit(partial(create_state, model, optimizer, jax.random.key(0), **kept))
    step = make_parallel(ParallelConfig()).compile(make_step(model, optimizer, settings, distillation), donate=True)
    return new_state, step
