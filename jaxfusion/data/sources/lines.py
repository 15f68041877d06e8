"""A file of lines, read at any of them: what JSONL and plain text have in common."""

from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxfusion.data.sources.files import Reading
from jaxfusion.data.sources.index import Index, indexed

NEW_LINE = 10


class Lines(Sequence):
    """The lines of a file that are not blank, as bytes."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where the file cannot be read."""
        self.path, self._reading = path, Reading(path)
        index = indexed(path, "lines", lambda: _look_through(path))
        self._starts, self._ends, self._numbers = index["starts"], index["ends"], index["numbers"]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, place: int) -> bytes:
        """Raises RecordError where the file cannot be read any more."""
        start = int(self._starts[place])
        return self._reading.read(start, int(self._ends[place]) - start, self.where(place))

    def number(self, place: int) -> int:
        """The line's number in the file, counted from 1, blank lines included."""
        return int(self._numbers[place])

    def where(self, place: int) -> str:
        return f"{self.path}:{self.number(place)}"


def _look_through(path: Path) -> Index:
    starts, ends, numbers, start = array("q"), array("q"), array("q"), 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                starts.append(start)
                ends.append(start + len(line) - (line[-1] == NEW_LINE))
                numbers.append(number)
            start += len(line)
    return {name: np.asarray(found) for name, found in (("starts", starts), ("ends", ends), ("numbers", numbers))}
