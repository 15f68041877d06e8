"""Where the items of a JSON array lie in its text, also of one that is damaged in places."""

import json
import re
from collections import Counter
from typing import Any

import numpy as np

from jaxfusion.data.sources.index import Index

SPACE = re.compile(r"[ \t\r\n]*")
OPENING = re.compile(r"\{")
DECODE = json.JSONDecoder().raw_decode


class Keys:
    """Of the objects so far."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._number = 0

    def add(self, value: dict[str, Any]) -> None:
        self._counts.update(value.keys())
        self._number += 1

    @property
    def usual(self) -> set[str]:
        """Those that most objects have."""
        return {key for key, count in self._counts.items() if 2 * count > self._number}


def find_items(text: str, start: int) -> list[tuple[int, int]]:
    """The spans of an array's items, from just behind its opening bracket.

    What is not JSON is an item too, up to the next object that looks like those before it (it has the keys that most
    have) and is followed by a comma or the closing bracket: so damage costs the items that it is in.
    """
    spans, keys, at = [], Keys(), _over(text, start)
    while at < len(text) and text[at] != "]":
        end = _end(text, at, keys)
        if end is None:
            end = _next(text, at + 1, keys)
        spans.append((at, end))
        at = _over(text, end)
        if text[at : at + 1] == ",":
            at = _over(text, at + 1)
    return spans


def _over(text: str, at: int) -> int:
    return SPACE.match(text, at).end()


def _end(text: str, at: int, keys: Keys) -> int | None:
    """Where the item ends that begins here; None where none does, or something else follows than may."""
    value, end = _decoded(text, at)
    if end is None or text[_over(text, end)] not in ",]":
        return None
    if isinstance(value, dict):
        keys.add(value)
    return end


def _decoded(text: str, at: int) -> tuple[Any, int | None]:
    """A value and its end, where something follows it."""
    try:
        value, end = DECODE(text, at)
    except (ValueError, RecursionError):
        return None, None
    return (value, end) if _over(text, end) < len(text) else (None, None)


def _next(text: str, at: int, keys: Keys) -> int:
    """Where the next item begins: an object like those before, and not one that such an item holds."""
    for opening in OPENING.finditer(text, at):
        value, end = _decoded(text, opening.start())
        if end is not None and text[_over(text, end)] in ",]" and keys.usual <= value.keys():
            return opening.start()
    return len(text)


def index_of(content: bytes) -> Index | None:
    """Spans in bytes of the items of a file that is an array, and the lines on which they begin; None for another."""
    text = content.decode(errors="surrogateescape")  # each byte that is no UTF-8 is a character, so that all count
    at = _over(text, 1 if text.startswith("\ufeff") else 0)
    if text[at : at + 1] != "[":
        return None
    spans = np.array(find_items(text, at + 1), np.int64).reshape(-1, 2)
    if not text.isascii():
        spans = _in_bytes(text, spans)
    newlines = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n"))
    return {"starts": spans[:, 0], "ends": spans[:, 1], "numbers": np.searchsorted(newlines, spans[:, 0]) + 1}


def _in_bytes(text: str, spans: np.ndarray) -> np.ndarray:
    found, at, size = np.empty(spans.size, np.int64), 0, 0
    for place, end in enumerate(spans.ravel().tolist()):
        size += len(text[at:end].encode(errors="surrogateescape"))
        found[place], at = size, end
    return found.reshape(-1, 2)
