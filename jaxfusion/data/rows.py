"""Rows of several samples as a Grain data set whose place can be saved and restored."""

from typing import Any

import grain
import numpy as np

from jaxfusion.data.best_fit import Room, fill_row
from jaxfusion.data.tokenise import Segment


class BestFitRows(grain.IterDataset):
    """Lists of segments that fill a row, from a stream of segments of which `num_waiting` are looked at at once.

    Every segment goes into one row, and the stream's first one waiting always into the next: the order stays that of
    the stream up to the waiting ones. What waits is never the same as what came first, so rows are alike from
    beginning to end, where an offline packer ends with its worst.

    Grain's own packers keep `n` whole rows open, give them all out at the first sample that fits in none, and restore
    by reading all of these rows' samples again; they leave more room empty (`benchmarks/packing.py`).
    """

    def __init__(self, segments: grain.MapDataset, reading: grain.ReadOptions, room: Room, num_waiting: int) -> None:
        super().__init__(segments.to_iter_dataset(reading))
        self._segments, self._room, self._num_waiting = segments, room, num_waiting

    def __iter__(self) -> "_RowIterator":
        return _RowIterator(iter(self._parent), self._segments, self._room, self._num_waiting)


class _RowIterator(grain.DatasetIterator):
    """Its state is where the stream is, and the places in it of the segments that wait: these alone are read again."""

    def __init__(self, stream: grain.DatasetIterator, segments: grain.MapDataset, room: Room, num_waiting: int) -> None:
        super().__init__(stream)
        self._segments, self._room, self._num_waiting = segments, room, num_waiting
        self._next_place, self._waiting = 0, {}

    def __next__(self) -> list[Segment]:
        while len(self._waiting) < self._num_waiting and self._next_place < len(self._segments):
            self._waiting[self._next_place] = next(self._parent)
            self._next_place += 1
        if not self._waiting:
            raise StopIteration
        places = list(self._waiting)
        sizes = np.array([segment.size for segment in self._waiting.values()])
        return [self._waiting.pop(places[chosen]) for chosen in fill_row(sizes, self._room)]

    def get_state(self) -> dict[str, Any]:
        return {"stream": self._parent.get_state(), "next_place": self._next_place, "waiting": list(self._waiting)}

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state["stream"])
        self._next_place = state["next_place"]
        self._waiting = {place: self._segments[place] for place in state["waiting"]}
