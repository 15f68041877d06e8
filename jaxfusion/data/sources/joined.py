"""Several files, or a choice of places, as one sequence of records."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxfusion.errors import UserError

Record = dict[str, Any]

# What becomes of the fields that a file has, and the name of their origin.
Finish = Callable[[dict[str, Any], str], Record]


class Blocks(NamedTuple):
    """Pieces of a source that it reads as a whole: where each begins, and how many of them it can hold at once."""

    starts: Int[np.ndarray, " b"]
    window: int


class Joined(Sequence):
    """The records of several sequences, one after the other.

    labels: names of the classes, where the first of them knows any.
    blocks: None where any record is as near as any other; see `jaxfusion.data.order`.
    """

    def __init__(self, parts: Sequence[Sequence[Record]]) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self.labels: tuple[str, ...] = getattr(parts[0], "labels", ()) if parts else ()

    @property
    def blocks(self) -> Blocks | None:
        own = [getattr(part, "blocks", None) for part in self.parts]
        if not own or any(blocks is None for blocks in own):
            return None
        offsets = self._ends - [len(part) for part in self.parts]
        starts = [blocks.starts + offset for blocks, offset in zip(own, offsets, strict=True)]
        return Blocks(np.concatenate(starts), min(blocks.window for blocks in own))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, place: int) -> Record:
        if not 0 <= place < len(self):
            raise IndexError(place)
        number = int(np.searchsorted(self._ends, place, side="right"))
        part = self.parts[number]
        return part[int(place - self._ends[number] + len(part))]


class Chosen(Sequence):
    """The records at some places of a sequence, in increasing order."""

    def __init__(self, source: Sequence[Record], places: Int[np.ndarray, " n"]) -> None:
        self.source, self.places = source, places
        self.labels: tuple[str, ...] = getattr(source, "labels", ())

    @property
    def blocks(self) -> Blocks | None:
        blocks = getattr(self.source, "blocks", None)
        if blocks is None:
            return None
        starts = np.unique(np.searchsorted(self.places, blocks.starts))
        return Blocks(starts[starts < len(self)], blocks.window)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> Record:
        return self.source[int(self.places[place])]


class Renamed(Sequence):
    """Records with further names for some fields, see `with_names`."""

    def __init__(self, source: Sequence[Record], names: dict[str, str]) -> None:
        self.source, self.names = source, names

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: int) -> Record:
        return with_names(self.source[place], self.names)


def with_names(record: Record, names: Mapping[str, str]) -> Record:
    """The record with further names for some fields. names: to where each field is, a path through what holds it."""
    found = {name: _at(record, path.split(".")) for name, path in names.items()}
    return record | {name: value for name, value in found.items() if value is not None}


def names_of(fields: Sequence[str], setting: str) -> dict[str, str]:
    """Of "caption=meta.title" and the like: names, and the paths to what they are for. Raises UserError for others."""
    names = {}
    for field in fields:
        name, equals, path = field.partition("=")
        if not (name and equals and path):
            raise UserError(f"{setting}: {field!r} is not of the form 'caption=text'; correct it")
        names[name] = path
    return names


def _at(value: Any, path: Sequence[str]) -> Any:
    """What is at a path of keys; of a list, what is there in each of its items."""
    for place, key in enumerate(path):
        if isinstance(value, list | tuple | np.ndarray):
            return [_at(item, path[place:]) for item in value]
        if not hasattr(value, "keys") or key not in value:
            return None
        value = value[key]
    return value
