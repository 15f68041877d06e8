"""A run's numbers: what a window of steps comes to, and the files they go to (metrics.jsonl and TensorBoard)."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxfusion.training.meters import Meters

Row = dict[str, Any]

MEANS = (
    "loss",
    "accuracy",
    "gradient_norm",
    "divergence",
    "feature_distance",
)  # of a step's metrics, where it made an update; the others are sums


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


def _summary_writer() -> type:
    """tensorboardX's, which would import torch where that is installed: seconds at every start for nothing."""
    unloaded = "torch" not in sys.modules
    if unloaded:
        sys.modules["torch"] = None  # an import of it fails now, and tensorboardX goes on without
    try:
        from tensorboardX import SummaryWriter
    finally:
        if unloaded:
            del sys.modules["torch"]
    return SummaryWriter


class MetricsLog:
    """metrics.jsonl, one JSON object a line, and the same numbers for TensorBoard. A context manager."""

    def __init__(self, workdir: Path, last_step: int) -> None:
        """last_step: where training goes on from; rows of later steps are dropped, since those steps come again."""
        path = workdir / "metrics.jsonl"
        self.rows = [row for row in read_metrics(workdir) if row["step"] <= last_step]
        rewritten = path.with_suffix(".tmp")
        rewritten.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        os.replace(rewritten, path)
        self._file = path.open("a", buffering=1)  # line by line, so that a kill loses none
        self._tensorboard = _summary_writer()(str(workdir / "tensorboard"), purge_step=last_step + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
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
        self._file.write(json.dumps(row) + "\n")
        for name, value in numbers.items():
            if value is not None:
                self._tensorboard.add_scalar(name, value, step)


def read_metrics(workdir: Path) -> list[Row]:
    """The rows of metrics.jsonl, without a last line that a kill cut short; none if there is no file."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]
