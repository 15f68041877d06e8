"""Samples that were read and may be asked for again, the latest ones, of so many bytes."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

from jaxfusion.data.messages import Sample

# Of a sample beside its pictures and its text.
OVERHEAD = 1_000
# Of a character, at most.
CHARACTER = 4


class Kept:
    """As `read`, a source's first sample at a place; those are kept up to `most` bytes. Threads may share it."""

    def __init__(self, read: Callable[[Sequence[Any], int], Sample | None], most: int) -> None:
        self._read, self._most = read, most
        self._found: OrderedDict[int, Sample | None] = OrderedDict()
        self._lock = Lock()
        self.num_bytes = 0

    def __call__(self, source: Sequence[Any], place: int) -> Sample | None:
        """source: the same one always."""
        with self._lock:
            if place in self._found:
                self._found.move_to_end(place)
                return self._found[place]
        sample = self._read(source, place)
        with self._lock:
            if place not in self._found:  # another thread may have read it meanwhile
                self._found[place] = sample
                self.num_bytes += size_of(sample)
            while self.num_bytes > self._most:
                self.num_bytes -= size_of(self._found.popitem(last=False)[1])
        return sample


def size_of(sample: Sample | None) -> int:
    """Bytes in memory, about."""
    messages = () if sample is None else sample.messages
    pictures = sum(image.value.nbytes for message in messages for image in message.images)
    return OVERHEAD + pictures + CHARACTER * sum(len(message.text) for message in messages)
