"""From a record's fields to the conversation that is asked.

{"image": "a.jpg", "prompt": "What is this?"}       image or images: paths, bytes, or Parquet's {"bytes", "path"}
{"images": ["a.jpg"], "messages": [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Which breed?"}]}
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxfusion.bulk.inputs import Fields
from jaxfusion.data.messages import Image, Message
from jaxfusion.errors import UserError

ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Place:
    """Where a picture stands in a message. entry: which one; None: the next of the record's own."""

    entry: Any = None


def conversation(
    fields: Fields,
    folder: Path,
    prompt: str,
    prepare: Callable[[str], str],
    see: Callable[[Sequence[str | Path | bytes]], Sequence[np.ndarray]],
) -> tuple[Message, ...]:
    """The user's and the assistant's messages in turn, the last one the user's.

    The record's pictures stand where messages have places for them, or before all that is said.

    folder:  what paths are relative to.
    prompt:  where the record has none.
    prepare: what becomes of a text before a model reads it. see: what becomes of pictures.
    Raises UserError, by the field's name, for what is not of this form.
    """
    if fields.get("messages") is None:
        text = fields.get("prompt")
        messages = [Message("user", (prepare(prompt if text is None else _text(text, "prompt")),))]
    elif fields.get("prompt") is not None:
        raise UserError("prompt: the record has messages as well; leave one of them out")
    else:
        messages = _messages(fields["messages"], prepare)
    own = [*_entries(fields.get("image")), *_entries(fields.get("images"))]
    places = [part for message in messages for part in message.parts if isinstance(part, Place)]
    free = sum(place.entry is None for place in places)
    if free == 0:
        first = messages[0]
        messages[0] = replace(first, parts=(*map(Place, own), *first.parts))
        places = [*map(Place, own), *places]
    elif free != len(own):
        raise UserError(f"messages: they have places for {free} images and the record has {len(own)}; give as many")
    unplaced = iter(own if free else ())
    entries = [next(unplaced) if place.entry is None else place.entry for place in places]
    seen = iter(see([_found(entry, folder) for entry in entries]))
    return tuple(
        replace(message, parts=tuple(Image(next(seen)) if isinstance(part, Place) else part for part in message.parts))
        for message in messages
    )


def _messages(turns: Any, prepare: Callable[[str], str]) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise UserError("messages: a list is wanted; write [{'role': 'user', 'content': ...}]")
    messages = []
    for number, turn in enumerate(turns):
        name = f"messages[{number}]"
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            raise UserError(f"{name}.role: an object with one of {', '.join(ROLES)} is wanted; correct it")
        messages.append(Message(turn["role"], _parts(turn.get("content"), f"{name}.content", prepare)))
    if messages[-1].role != "user":
        raise UserError("messages: the last one is not the user's, so there is nothing to answer; leave it out")
    return messages


def _parts(content: Any, name: str, prepare: Callable[[str], str]) -> tuple[str | Place, ...]:
    if not isinstance(content, list):
        return (prepare(_text(content, name)),)
    parts: list[str | Place] = []
    for part in content:
        match part:
            case {"type": "text", "text": text}:
                parts.append(prepare(_text(text, name)))
            case {"type": "image"}:
                parts.append(Place(part.get("image")))
            case _:
                raise UserError(f"{name}: parts are {{'type': 'text', 'text': ...}} or {{'type': 'image'}}; correct it")
    return tuple(parts)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{name}: a text is wanted and it is {value!r:.40}; correct it")
    return value


def _entries(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _found(entry: Any, folder: Path) -> Path | bytes:
    if isinstance(entry, dict):  # as image columns of Parquet files are
        entry = entry.get("path") if entry.get("bytes") is None else entry["bytes"]
    if isinstance(entry, bytes):
        return entry
    if isinstance(entry, str):
        return folder / entry
    raise UserError(f"image: a path is wanted and it is {entry!r:.40}; correct it")
