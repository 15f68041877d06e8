"""Conversations as people write them down, to messages with places for pictures.

OpenAI's messages:  [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
                     {"role": "assistant", "content": "A cat."}]
LLaVA's, ShareGPT's: [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxfusion.data.messages import Message
from jaxfusion.errors import UserError

# Who says what, by the names that ShareGPT's files have for them.
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}

# Where a picture, or a video, stands in a turn of LLaVA's.
IMAGE = re.compile("<image>|<video>")

Prepare = Callable[[str], str]


@dataclass(frozen=True)
class Place:
    """Where a picture stands in a message. entry: which one; None: the next of the record's own."""

    entry: Any = None


def rows_of(turns: Any) -> Any:
    """Turns that a data set keeps by columns, {"from": [...], "value": [...]}, as TFDS does, one by one; others as they
    are. Raises UserError where columns are not equally long, or not UTF-8."""
    if not isinstance(turns, dict) or not all(
        isinstance(column, list | tuple | np.ndarray) for column in turns.values()
    ):
        return turns
    try:
        columns = {
            name: [value.decode() if isinstance(value, bytes) else value for value in column]
            for name, column in turns.items()
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    except ValueError as error:  # UnicodeDecodeError is one
        raise UserError(f"turns: the columns {', '.join(turns)} are no turns ({error}); correct them") from None


def parse_messages(turns: Any, prepare: Prepare, roles: Collection[str]) -> list[Message]:
    """OpenAI's form. prepare: what becomes of a text before a model reads it.

    Raises UserError, by the field's name, for what is not of this form.
    """
    if not isinstance(turns, list) or not turns:
        raise UserError("messages: a list is wanted; write [{'role': 'user', 'content': ...}]")
    messages = []
    for number, turn in enumerate(turns):
        name = f"messages[{number}]"
        if not isinstance(turn, dict) or turn.get("role") not in roles:
            raise UserError(f"{name}.role: an object with one of {', '.join(roles)} is wanted; correct it")
        messages.append(Message(turn["role"], _parts(turn.get("content"), f"{name}.content", prepare)))
    return messages


def _parts(content: Any, name: str, prepare: Prepare) -> tuple[str | Place, ...]:
    if not isinstance(content, list):
        return (prepare(text_of(content, name)),)
    parts: list[str | Place] = []
    for part in content:
        match part:
            case {"type": "text", "text": text}:
                parts.append(prepare(text_of(text, name)))
            case {"type": "image" | "image_url" | "video"}:
                parts.append(Place(entry_of(part)))
            case _:
                raise UserError(f"{name}: parts are {{'type': 'text', 'text': ...}} or {{'type': 'image'}}; correct it")
    return tuple(parts)


def entry_of(part: dict[str, Any]) -> Any:
    """The picture that a part of a message names; None: it names none."""
    url = part.get("image_url")
    return url.get("url") if isinstance(url, dict) else url or part.get("image")


def parse_conversation(turns: Any, prepare: Prepare) -> list[Message]:
    """LLaVA's and ShareGPT's form; white space beside a picture is left out."""
    if not isinstance(turns, list) or not turns:
        raise UserError("conversations: a list is wanted; write [{'from': 'human', 'value': ...}]")
    messages = []
    for number, turn in enumerate(turns):
        name = f"conversations[{number}]"
        role = SPEAKERS.get(turn.get("from")) if isinstance(turn, dict) and isinstance(turn.get("from"), str) else None
        if role is None:
            raise UserError(f"{name}.from: an object with one of {', '.join(SPEAKERS)} is wanted; correct it")
        first, *others = IMAGE.split(text_of(turn.get("value"), f"{name}.value"))
        texts = [first, *others] if not others else [first.rstrip(), *(text.strip() for text in others)]
        parts: list[str | Place] = []
        for text in texts:
            parts += [prepare(text), Place()] if text else [Place()]
        messages.append(Message(role, tuple(parts[:-1])))
    return messages


def with_pictures_placed(messages: Sequence[Message], own: Sequence[Any]) -> tuple[list[Message], list[Any]]:
    """The record's own pictures put where messages have places for them, or before all that is said by the user.

    Returns the messages, and the picture of each place in order. Raises UserError where there are not as many of both.
    """
    messages = list(messages)
    places = [part for message in messages for part in message.parts if isinstance(part, Place)]
    free = sum(place.entry is None for place in places)
    if free == 0 and own:
        number = next((n for n, message in enumerate(messages) if message.role == "user"), 0)
        asked = messages[number]
        messages[number] = replace(asked, parts=(*map(Place, own), *asked.parts))
        places = [part for message in messages for part in message.parts if isinstance(part, Place)]
    elif free != len(own):
        raise UserError(f"messages: they have places for {free} images and the record has {len(own)}; give as many")
    unplaced = iter(own if free else ())
    return messages, [next(unplaced) if place.entry is None else place.entry for place in places]


def spread(messages: Sequence[Message], number: int) -> list[Message]:
    """The one place that messages have for a video, as places for so many frames; as they are where it is not one."""
    if sum(isinstance(part, Place) for message in messages for part in message.parts) != 1:
        return list(messages)
    return [
        replace(
            message,
            parts=tuple(
                piece for part in message.parts for piece in ([part] * number if isinstance(part, Place) else [part])
            ),
        )
        for message in messages
    ]


def filled(messages: Sequence[Message], pictures: Sequence[Any]) -> tuple[Message, ...]:
    """The messages with pictures, as parts, in their places."""
    waiting = iter(pictures)
    return tuple(
        replace(message, parts=tuple(next(waiting) if isinstance(part, Place) else part for part in message.parts))
        for message in messages
    )


def named_no_more(messages: Sequence[Message]) -> list[Message]:
    """The messages with places for the record's pictures where they named one."""
    return list(filled(messages, [Place()] * sum(isinstance(part, Place) for m in messages for part in m.parts)))


def without_places(messages: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(
        replace(message, parts=tuple(part for part in message.parts if not isinstance(part, Place)))
        for message in messages
    )


def text_of(value: Any, name: str) -> str:
    """Raises UserError, by the field's name, for what is no text that can be written down."""
    if not isinstance(value, str):
        raise UserError(f"{name}: a text is wanted and it is {value!r:.40}; correct it")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON may hold a half of a surrogate pair, which no tokenizer takes
        broken = value[error.start]
        raise UserError(f"{name}: character {error.start} is a lone surrogate, {broken!a}; correct it") from None
    return value
