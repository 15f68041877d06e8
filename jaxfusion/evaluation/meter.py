"""How fast answers come, and how long it still takes."""

import time
from collections.abc import Mapping
from typing import Any

from jaxfusion.training.progress import Progress, to_go

SECONDS_BETWEEN_DISPLAYS = 0.2


class Meter:
    """Counts the answers of a job as rows, and shows them. before: those that were there when it started.

    Time is taken from the first line on, since compiling goes before it.
    """

    def __init__(self, progress: Progress, before: int, first: str = "compiling") -> None:
        """first: what is shown until there is one."""
        self._progress, self._before = progress, before
        self._records = self._errors = self._tokens = 0
        self._start = self._shown = 0.0
        progress.step(before, first)

    def add(self, row: Mapping[str, Any]) -> None:
        """row: "num_tokens" of an answer, or "error" where there is none."""
        now = time.monotonic()
        if not self._start:
            self._start, self._before = now, self._before + 1
        else:
            self._records += 1
            self._tokens += row.get("num_tokens", 0)
        self._errors += "error" in row
        done = self._before + self._records
        left = self._progress.num_steps - done
        if now - self._shown >= SECONDS_BETWEEN_DISPLAYS or not left:
            self._shown = now
            self._progress.show(done, self._describe(max(now - self._start, 1e-9), left))

    def _describe(self, seconds: float, left: int) -> str:
        parts = [f"{self._errors:,} bad"] if self._errors else []
        if self._records:
            records, tokens = self._records / seconds, self._tokens / seconds
            rates = [f"{records:,.1f} {self._progress.unit}s/s", f"{tokens:,.0f} tokens/s"]
            parts = [*rates, *parts, to_go(left * seconds / self._records)]
        return " · ".join(parts)
