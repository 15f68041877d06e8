"""Which checkpoint is the best by a held-out metric: it stays on the disk, and best.json names it."""

import contextlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxfusion.errors import UserError
from jaxfusion.files import write_json

BEST = "best.json"
LESS_IS_BETTER = ("loss", "perplexity")  # how names of metrics end of which the smallest is the best


class Best:
    """The best step so far, as one of Orbax's preservation policies."""

    def __init__(self, workdir: Path, metric: str) -> None:
        self._path, self.metric = workdir / BEST, metric
        self.step: int | None = None
        self._value = math.nan

    def resume(self, rows: Iterable[Mapping[str, Any]], saved: Collection[int]) -> None:
        """Takes the best of the rows of metrics.jsonl whose step is on the disk."""
        for row in rows:
            if row["step"] in saved:
                self._take(row["step"], row.get(self.metric))

    def note(self, step: int, numbers: Mapping[str, float], *, must_have: bool) -> bool:
        """Whether an evaluation is the best so far, which is then written down.

        must_have: raises UserError where the metric is none of its numbers.
        """
        if must_have and self.metric not in numbers:
            raise UserError(
                f"config.train.keep_best: an evaluation does not give {self.metric!r}; it gives {', '.join(numbers)}"
            )
        if not self._take(step, numbers.get(self.metric)):
            return False
        with contextlib.suppress(OSError):  # it is for people; a run that goes on looks at metrics.jsonl
            write_json(self._path, {"metric": self.metric, "value": self._value, "step": step})
        return True

    def _take(self, step: int, value: float | None) -> bool:
        if value is None or not math.isfinite(value):
            return False
        sign = -1 if self.metric.endswith(LESS_IS_BETTER) else 1
        if self.step is not None and sign * value <= sign * self._value:
            return False
        self.step, self._value = step, value
        return True

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """What Orbax asks a policy, of objects that have a step."""
        return [checkpoint.step == self.step for checkpoint in checkpoints]
