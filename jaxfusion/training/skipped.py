"""Updates that a step left out because its loss or gradient was not finite: counted, told of, and not for ever."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxfusion.errors import UserError
from jaxfusion.files import write_json
from jaxfusion.training.broken import Tell, reason_of

SKIPPED = "skipped_updates.json"

# Of a run of skipped updates so many steps are read again for their samples' names, and so many names are in the line.
MAX_STEPS, MAX_NAMES = 8, 8

Names = Callable[[dict[str, Any]], Sequence[str]]  # an iterator's state to the names of the samples in the batch after


class SkippedUpdates:
    """Notes each step's metrics in turn; those of skipped updates end the run after too many in a row."""

    def __init__(self, workdir: Path, most: int, names: Names | None, tell: Tell) -> None:
        """most: that may be skipped in a row. names: None where the data have none."""
        self._workdir, self._most, self._names, self._tell = workdir, most, names, tell
        self._in_a_row = 0
        self._first: list[tuple[int, dict[str, Any]]] = []

    def note(self, step: int, numbers: Mapping[str, float], before: dict[str, Any], saved: int | None) -> None:
        """before: the iterator's state before the step's batch. saved: the newest checkpoint's step.

        Raises UserError, which names the samples, where the update is one too many.
        """
        if not numbers["skipped_updates"]:
            self._in_a_row = 0
            self._first.clear()
            return
        what = f"the loss is {numbers['loss']} and the gradient's norm {numbers['gradient_norm']}"
        if not self._in_a_row and self._most:
            self._tell(f"at step {step} {what}: its update is left out")
        self._in_a_row += 1
        if len(self._first) < MAX_STEPS:
            self._first.append((step, before))
        if self._in_a_row <= self._most:
            return
        kept = "no checkpoint was saved yet" if saved is None else f"the checkpoint of step {saved} is kept"
        before_it = f" and so it was {self._most} times before" if self._most else ""
        raise UserError(
            f"config.train.learning_rate: at step {step} {what}{before_it}; {self._suspects()}"
            f"lower the rate, or lengthen the warm-up, in a new workdir ({kept})"
        )

    def _suspects(self) -> str:
        """The samples of the first batches, which are read again for that; all of them go to a file."""
        if self._names is None:
            return ""
        try:
            found = [{"step": step, "samples": list(self._names(before))} for step, before in self._first]
            write_json(self._workdir / SKIPPED, found)
        except Exception as error:  # whatever reading again raises: what has to be told is something else
            return f"the samples could not be read again ({reason_of(error)}); "
        names = found[0]["samples"]
        more = ", ..." if len(names) > MAX_NAMES else ""
        return (
            f"look at samples {', '.join(names[:MAX_NAMES])}{more} of step {found[0]['step']} ({SKIPPED} has all), or "
        )
