"""JSON objects, a line each (.jsonl) or in one array (.json): `json`, in any form that a task reads.

Conversations as LLaVA and ShareGPT write them, or as OpenAI's messages; captions, questions, texts with a label.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxfusion.data.sources.files import Reading
from jaxfusion.data.sources.index import Index, indexed
from jaxfusion.data.sources.joined import Finish, Record
from jaxfusion.data.sources.json_array import index_of
from jaxfusion.data.sources.lines import Lines
from jaxfusion.errors import RecordError

SUFFIXES = (".jsonl", ".json")


class ObjectLines(Sequence):
    """A file of lines, each an object."""

    def __init__(self, path: Path, finish: Finish) -> None:
        self._lines, self._finish = Lines(path), finish

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, place: int) -> Record:
        where = self._lines.where(place)
        return self._finish(parse_object(self._lines[place], where), where)


class ObjectArray(Sequence):
    """A file that is one array of objects, or an object around one."""

    def __init__(self, path: Path, finish: Finish, index: Index) -> None:
        self.path, self._finish, self._reading = path, finish, Reading(path)
        self._starts, self._ends, self._numbers = index["starts"], index["ends"], index["numbers"]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, place: int) -> Record:
        where = f"{self.path}:{self._numbers[place]} (record {place})"
        start = int(self._starts[place])
        content = self._reading.read(start, int(self._ends[place]) - start, where)
        return self._finish(parse_object(content, where), where)


def open_objects(path: Path, finish: Finish, fields: tuple[str, ...] = ()) -> Sequence[Record]:
    """fields: names of records' fields. Raises OSError where the file cannot be read."""
    if path.suffix.lower() == ".json":
        index = indexed(path, f"array {fields}", lambda: index_of(path.read_bytes(), fields) or {})
        if index:
            return ObjectArray(path, finish, index)
    return ObjectLines(path, finish)


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """Raises RecordError where the text is not an object in JSON."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RecordError(where, f"not JSON ({error}); correct it") from None
    if not isinstance(value, dict):
        raise RecordError(where, "a JSON object is wanted; write {...}")
    return value
