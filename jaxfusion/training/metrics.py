"""A run's numbers: what a window of steps comes to, and the files they go to (metrics.jsonl and TensorBoard)."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxfusion.errors import UserError
from jaxfusion.training.broken import Tell, tell_stderr
from jaxfusion.training.meters import Meters
from jaxfusion.training.tensorboard import TensorBoard

Row = dict[str, Any]

# Of a step's metrics, where it made an update; the others are sums.
MEANS = ("loss", "accuracy", "gradient_norm", "divergence", "feature_distance")


class Window:
    """The steps since the last row: means of their metrics, and what the meters read over the time that they took."""

    def __init__(self, seconds: float, meters: Meters) -> None:
        """seconds: training time of the run so far."""
        self.seconds, self.meters = seconds, meters
        self._mark: float | None = None
        self._clear()

    def add(self, metrics: Mapping[str, float], waited: float = 0.0) -> None:
        """The metrics of a step that has just ended. The first step's time is its compilation's and is not counted.

        waited: seconds for which the devices had nothing to do before it, for want of its batch.
        """
        now = time.perf_counter()
        if self._mark is not None:
            self._elapsed += now - self._mark
            self._waited += waited
            self._timed.append(metrics)
        self._mark = now
        self._steps.append(metrics)

    def skip(self) -> None:
        """Time since the last step was not training's."""
        self._mark = time.perf_counter()

    def close(self) -> Row:
        """The window's numbers, and a new window. Where only the first step is in it, there are no rates and shares.

        Means are None where all updates were skipped.
        """
        self.seconds += self._elapsed
        made = [step for step in self._steps if not step["skipped_updates"]]
        names = [name for name in MEANS if name in self._steps[0]]
        row: Row = {name: _sum(name, made) / len(made) if made else None for name in names}
        row["skipped_updates"] = int(_sum("skipped_updates", self._steps))
        if self._timed:
            sizes = {name: _sum(name, self._timed) for name in self._timed[0] if name not in MEANS}
            row |= self.meters.read(sizes, len(self._timed), self._elapsed, self._waited)
        row["seconds"] = self.seconds
        self._clear()
        return row

    def _clear(self) -> None:
        self._steps: list[Mapping[str, float]] = []
        self._timed: list[Mapping[str, float]] = []
        self._elapsed, self._waited = 0.0, 0.0


def _sum(name: str, steps: Sequence[Mapping[str, float]]) -> float:
    return sum(step[name] for step in steps)


class MetricsLog:
    """metrics.jsonl, one JSON object a line, and the same numbers for TensorBoard. A context manager.

    What cannot be written to metrics.jsonl is told of once, and comes as soon as it can be. TensorBoard then ends.
    """

    def __init__(self, workdir: Path, last_step: int, tell: Tell = tell_stderr) -> None:
        """last_step: where training goes on from; rows of later steps are dropped, since those steps come again.

        Raises UserError where nothing can be written to begin with.
        """
        path = workdir / "metrics.jsonl"
        self.rows = [row for row in read_metrics(workdir) if row["step"] <= last_step]
        rewritten = path.with_suffix(".tmp")
        self._tell, self._unwritten, self._failed = tell, b"", False
        try:
            rewritten.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
            os.replace(rewritten, path)
            self._file = path.open("ab", buffering=0)  # at once, so that a kill loses none
            self._tensorboard: TensorBoard | None = TensorBoard(workdir / "tensorboard", last_step + 1)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); make room, or the directory writable"
            ) from error

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._append(b"")
        self._file.close()
        if self._tensorboard is not None:
            with suppress(OSError):
                self._tensorboard.close()

    @property
    def seconds(self) -> float:
        """Training time up to the last row that has it."""
        return next((row["seconds"] for row in reversed(self.rows) if "seconds" in row), 0.0)

    @property
    def skipped_updates(self) -> int:
        return sum(row.get("skipped_updates", 0) for row in self.rows)

    def write(self, step: int, numbers: Mapping[str, float | None]) -> None:
        row = {"step": step, **numbers}
        self.rows.append(row)
        self._append(json.dumps(row).encode() + b"\n")
        if self._tensorboard is not None:
            try:
                self._tensorboard.add(step, numbers)
            except OSError as error:  # half an event may be written, after which TensorBoard reads no more
                self._tell(f"TensorBoard's file cannot be written ({error.strerror}); it ends at step {step}")
                self._tensorboard = None

    def _append(self, text: bytes) -> None:
        self._unwritten += text
        try:
            while self._unwritten:  # the system may take a part
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            if not self._failed:
                self._tell(f"{self._file.name} cannot be written ({error.strerror}); its rows wait")
            self._failed = True
        else:
            self._failed = False


def read_metrics(workdir: Path) -> list[Row]:
    """The rows of metrics.jsonl, without a last line that a kill cut short; none if there is no file."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]
