"""Where the items of a JSON array lie in its text, also of one that is damaged in places."""

import json
import re
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np

from jaxfusion.data.sources.index import Index

SPACE = re.compile(r"[ \t\r\n]*")
OPENING = re.compile(r"\{")
END = re.compile(r"\][ \t\r\n]*\Z")
# Of an array in a text that is JSON: items are stepped over, so the first one is its own.
CLOSING = re.compile(r"\]")
# Of a file, that tell whether it is one of lines.
FIRST_LINES = 5
# Behind a field's name.
LANGUAGE = re.compile(r"_[a-z]{2}\Z")
# A record's own lists of objects, whatever these have.
TURNS = ("messages", "conversations")
DECODE = json.JSONDecoder().raw_decode


def find_items(
    text: str, start: int, keys: Collection[str] | None = None, behind: re.Pattern = END
) -> list[tuple[int, int]]:
    """The spans of an array's items, from just behind its opening bracket.

    What is not JSON is an item too, up to the next object that has the keys and is followed by a comma or the closing
    bracket: so damage costs the items that it is in.

    keys:   that items have, and objects within items have not; None: those of most of the text.
    behind: what the closing bracket of this array, and of none within, is the beginning of.
    """
    spans, at = [], _over(text, start)
    while at < len(text) and not behind.match(text, at):
        _, end = _decoded(text, at)
        if end is None:
            keys = _usual_keys(text, start) if keys is None else keys
            end = _next(text, at + 1, keys)
        spans.append((at, end))
        at = _over(text, end)
        if text[at : at + 1] == ",":
            at = _over(text, at + 1)
    return spans


def _over(text: str, at: int) -> int:
    return SPACE.match(text, at).end()


def _decoded(text: str, at: int) -> tuple[Any, int | None]:
    """The item that begins here and its end; None where none does, or something else follows than may."""
    try:
        value, end = DECODE(text, at)
    except (ValueError, RecursionError):
        return None, None
    behind = _over(text, end)
    return (value, end) if text[behind : behind + 1] in (",", "]") else (None, None)


def _next(text: str, at: int, keys: Collection[str]) -> int:
    for opening in OPENING.finditer(text, at):
        value, end = _decoded(text, opening.start())
        if end is not None and value.keys() >= set(keys):
            return opening.start()
    return len(text)


def _usual_keys(text: str, at: int) -> set[str]:
    """Of the objects that make up most of the text, which are not those within others."""
    weights, total = Counter(), 0
    while (at := text.find("{", at)) >= 0:
        value, end = _decoded(text, at)
        if end is None:
            at += 1
            continue
        weights.update(dict.fromkeys(value, end - at))
        total += end - at
        at = end
    return {key for key, weight in weights.items() if 2 * weight > total}


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _only_object(text: str, at: int) -> dict[str, Any]:
    """What a text holds from here on, where that is one object and nothing else."""
    try:
        value, end = DECODE(text, at)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) and _over(text, end) == len(text) else {}


def _list_within(value: dict[str, Any], fields: tuple[str, ...]) -> str | None:
    """The name of an object's list of records: the only one of objects, or the only one whose objects have fields of a
    record. None where the object has such fields itself, beside a list of that name."""
    lists = {k: v for k, v in value.items() if isinstance(v, list) and v and all(isinstance(item, dict) for item in v)}
    of_records = [k for k, v in lists.items() if k not in TURNS and any(_is_field(name, fields) for name in v[0])]
    if any(_is_field(key, fields) and key not in of_records for key in value):
        return None
    names = of_records or list(lists)
    return names[0] if len(names) == 1 else None


def _is_field(key: str, fields: tuple[str, ...]) -> bool:
    """Whether a key is one of the names, or more of it, or in a language: captions, caption_en, captions_en."""
    name = LANGUAGE.sub("", key)
    return any(found in fields for found in (key, name, name.removesuffix("s")))


def _behind_bracket(text: str, at: int, wanted: str) -> int:
    """Where the first item of an object's list is. at: of the object, all of which is JSON. wanted: the list's name."""
    at = _over(text, at + 1)
    while True:
        key, at = DECODE(text, at)
        at = _over(text, _over(text, at) + 1)  # the colon
        if key == wanted:
            return at + 1
        _, at = DECODE(text, at)
        at = _over(text, _over(text, at) + 1)  # the comma


def index_of(content: bytes, fields: tuple[str, ...] = ()) -> Index | None:
    """Spans in bytes of the items of a file that is an array, or an object around one, and the lines on which they
    begin; None for a file of lines that are an object each.

    fields: names of records' fields: an object with any of them is a record, and no object around some.
    Raises ValueError for a single object over several lines with no list in it that could be the one.
    """
    text = content.decode(errors="surrogateescape")  # each byte that is no UTF-8 is a character, so that all count
    at = _over(text, 1 if text.startswith("\ufeff") else 0)
    behind, only = END, {}
    if text[at : at + 1] == "[":
        at += 1
    elif name := _list_within(only := _only_object(text, at), fields):
        at, behind = _behind_bracket(text, at, name), CLOSING
    elif any(_is_object(line) for line in text[at:].split("\n", FIRST_LINES)[:FIRST_LINES]):
        return None
    elif only:
        raise ValueError(f"an array is wanted, and it is an object with {', '.join(map(repr, only))}")
    else:  # an array whose first bytes are damaged
        at = max(text.find("{"), 0)
    spans = np.array(find_items(text, at, behind=behind), np.int64).reshape(-1, 2)
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
