"""What becomes of records that nothing can be learned from: the first ends the run, or so many are left out."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxfusion.errors import RecordError, UserError

BAD_RECORDS = "bad_records.jsonl"


@dataclass(frozen=True)
class BadRecords:
    """The records that were left out.

    limit: of how many may be.
    file:  where they are put down, a line each, by all processes that read; a run that goes on finds them there. None:
           each process knows its own.
    """

    policy: Literal["refuse", "skip"] = "refuse"
    limit: int = 100
    file: Path | None = None
    _own: dict[str, str] = field(default_factory=dict)

    def leave_out(self, error: RecordError) -> None:
        """Raises the error itself where bad records are refused, and UserError where there are too many."""
        if self.policy == "refuse":
            raise UserError(f"{error}; or leave such records out: config.data.bad_records = 'skip'") from error
        if error.where in self._own:
            return
        self._own[error.where] = error.reason
        if self.file is not None and error.where not in self._written():
            line = json.dumps({"record": error.where, "reason": error.reason}, ensure_ascii=False) + "\n"
            descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(descriptor, line.encode(errors="replace"))  # at once, so that no two lines mix
            finally:
                os.close(descriptor)
        if len(self) > self.limit:
            place = f" (all are in {self.file})" if self.file else ""
            raise UserError(
                f"config.data.max_bad_records: more than {self.limit} records are bad{place}, the last {error}; mend "
                "the data, or raise it"
            ) from error

    def __len__(self) -> int:
        """How many different ones there are."""
        return len(self._own.keys() | self._written().keys())

    def _written(self) -> dict[str, str]:
        if self.file is None or not self.file.exists():
            return {}
        found = {}
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                found[row["record"]] = row["reason"]
            except (ValueError, KeyError, TypeError):  # the last line of a run that was killed
                continue
        return found
