"""A trace of a few steps of a run, taken once it is warm."""

from pathlib import Path

import jax

WARM_STEPS, TRACED_STEPS = 9, 5


class Trace:
    """A context manager; nothing is traced where the directory is None.

    The steps are the tenth to the fourteenth of a run that goes from `first` to `last`, or its last five.
    """

    def __init__(self, directory: Path | None, first: int, last: int) -> None:
        self.directory = directory
        self.begin = max(first, min(first + WARM_STEPS, last - TRACED_STEPS + 1))
        self.end = min(self.begin + TRACED_STEPS - 1, last)
        self._running = False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self.stop()

    def start_before(self, step: int) -> None:
        if self.directory is not None and step == self.begin:
            jax.profiler.start_trace(str(self.directory))
            self._running = True

    def is_over_after(self, step: int) -> bool:
        return self._running and step == self.end

    def stop(self) -> str:
        """Writes the trace of all that has run on the devices; returns how to look at it."""
        jax.profiler.stop_trace()
        self._running = False
        return (
            f"traced steps {self.begin} to {self.end} in {self.directory}; "
            f"look at them with: pip install xprof && xprof --logdir {self.directory}"
        )
