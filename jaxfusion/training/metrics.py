"""A run's numbers: what a window of steps comes to, and the files they go to (metrics.jsonl and TensorBoard)."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

Row = dict[str, Any]


class Window:
    """The steps since the last row: means of their metrics, and rates over the time that they took."""

    def __init__(self, seconds: float) -> None:
        """seconds: training time of the run so far."""
        self.seconds = seconds
        self._mark: float | None = None
        self._clear()

    def add(self, metrics: Mapping[str, float]) -> None:
        """The metrics of a step that has just ended. The first step's time is its compilation's and is not counted."""
        now = time.perf_counter()
        if self._mark is not None:
            self._elapsed += now - self._mark
            self._tokens += metrics["tokens"]
            self._samples += metrics["samples"]
            self._timed_steps += 1
        self._mark = now
        self._steps.append(metrics)

    def skip(self) -> None:
        """Time since the last step was not training's."""
        self._mark = time.perf_counter()

    def close(self) -> Row:
        """The window's numbers, and a new window. Rates are None where only the first step is in it."""
        self.seconds += self._elapsed
        timed = self._timed_steps > 0
        row = {
            "loss": self._mean("loss"),
            "accuracy": self._mean("accuracy"),
            "gradient_norm": self._mean("gradient_norm"),
            "samples_per_second": self._samples / self._elapsed if timed else None,
            "tokens_per_second": self._tokens / self._elapsed if timed else None,
            "steps_per_second": self._timed_steps / self._elapsed if timed else None,
            "seconds": self.seconds,
        }
        self._clear()
        return row

    def _mean(self, name: str) -> float:
        return sum(step[name] for step in self._steps) / len(self._steps)

    def _clear(self) -> None:
        self._steps: list[Mapping[str, float]] = []
        self._elapsed, self._tokens, self._samples, self._timed_steps = 0.0, 0.0, 0.0, 0


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
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=last_step + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._tensorboard.close()

    @property
    def seconds(self) -> float:
        """Training time up to the last row that has it."""
        return next((row["seconds"] for row in reversed(self.rows) if "seconds" in row), 0.0)

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
