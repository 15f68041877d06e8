"""Compilations, counted as they happen, and what in a batch made another one necessary."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import jax

from jaxfusion.batch import Batch

EVENT = "/jax/core/compile/backend_compile_duration"  # programs read from the persistent cache have it too

WARM_STEPS = 3  # after which nothing new should come


@contextmanager
def counted_compilations() -> Iterator[Callable[[], int]]:
    """Gives a function that tells how many programs this thread has compiled since."""
    thread, count = threading.get_ident(), 0

    def listen(event: str, *_: Any, **__: Any) -> None:
        nonlocal count
        count += event == EVENT and threading.get_ident() == thread

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: count
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


class Recompilations:
    """How often the step was compiled, and one warning for a run in which that does not end."""

    def __init__(self) -> None:
        self.count = 0
        self._steps, self._warned = 0, False
        self._shapes: dict[str, str] = {}

    def note(self, step: int, batch: Batch, compiled: bool) -> str | None:
        """After each step; returns the warning where it is due: a line that names what the batch has anew."""
        before, self._shapes = self._shapes, shapes_of(batch)
        self._steps += 1
        self.count += compiled
        if not compiled or self._steps <= WARM_STEPS or self._warned:
            return None
        self._warned = True
        changes = [f"{name} {before[name]} -> {now}" for name, now in self._shapes.items() if before[name] != now]
        return (
            f"step {step} had to be compiled again: {', '.join(changes) or 'its batch is of the same shapes'}; "
            "every new shape costs a compilation, so give all batches the same"
        )


def shapes_of(batch: Batch) -> dict[str, str]:
    """For each field all that a compilation depends on: type and shape, or the value of a static one."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    if batch.told is not None:
        values |= {"told": batch.told.log_probs}  # whose shape tells of the others'
    return {
        name: f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else str(value)
        for name, value in values.items()
    }
