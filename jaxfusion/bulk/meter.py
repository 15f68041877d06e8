"""How fast a bulk job goes, and how long it still has to go."""

import time
from collections.abc import Mapping
from typing import Any

from jaxfusion.training.progress import Progress, to_go

SECONDS_BETWEEN_DISPLAYS = 0.2


class Meter:
    """Counts the lines that a job adds, and shows them. before: records that were done when it started."""

    def __init__(self, progress: Progress, before: int) -> None:
        self._progress, self._before = progress, before
        self._records = self._errors = self._tokens = 0
        self._start = self._shown = time.monotonic()
        progress.step(before, "compiling")

    def add(self, row: Mapping[str, Any]) -> None:
        self._records += 1
        self._errors += "error" in row
        self._tokens += row.get("num_tokens", 0)
        now, done = time.monotonic(), self._before + self._records
        left = self._progress.num_steps - done
        if now - self._shown >= SECONDS_BETWEEN_DISPLAYS or not left:
            self._shown, seconds = now, max(now - self._start, 1e-9)
            parts = [f"{self._records / seconds:,.1f} records/s", f"{self._tokens / seconds:,.0f} tokens/s"]
            parts += [f"{self._errors:,} bad"] if self._errors else []
            self._progress.show(done, " · ".join([*parts, to_go(left * seconds / self._records)]))
