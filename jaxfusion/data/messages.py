"""What a task makes of a record: a conversation whose messages mix text and images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Image:
    """One image as the vision room takes it: uint8[H, W, 3] pixels, an id, or float[K, D] features.

    time: of a video's frame, in seconds, where the model is to be told: it is written before the frame.
    """

    value: np.ndarray
    time: float | None = None


@dataclass(frozen=True)
class Masked:
    """Text that the model does not get to see and has to fill in."""

    text: str


Part = str | Image | Masked


@dataclass(frozen=True)
class Message:
    role: Literal["user", "assistant", "system"]  # the last where a checkpoint's chat template knows of it
    parts: tuple[Part, ...]
    learned: bool = True  # of an answer: False, where it is an example that is given and carries no loss

    @property
    def images(self) -> list[Image]:
        return [part for part in self.parts if isinstance(part, Image)]

    @property
    def told(self) -> tuple[Part, ...]:
        """The parts, with the times of frames as text before them: "0.5s"."""
        return tuple(
            piece
            for part in self.parts
            for piece in ((f"{part.time:.1f}s", part) if isinstance(part, Image) and part.time is not None else (part,))
        )

    @property
    def text(self) -> str:
        """The message without its images, masked text shown."""
        return "".join(
            part.text if isinstance(part, Masked) else part for part in self.parts if not isinstance(part, Image)
        )


@dataclass(frozen=True)
class Sample:
    """One thing to learn from, or to be asked.

    id:       names the record it came from, for people and error messages.
    group:    what evaluation counts separately, such as the language.
    messages: user and assistant in turn; the last is the assistant's. One alone is a document, which answers nothing.
    label:    the class, where the task is classification.
    answers:  all that people said in the last message's place, where several did: five captions, ten answers. A visit
              learns one of them; evaluation compares with all. The last message then has the one that most gave.
    choices:  the texts that the last question offers, by letter; the answer is a letter.
    record:   its record's place in the split, where it matters which samples share one.
    """

    id: str
    group: str
    messages: tuple[Message, ...]
    label: int | None = None
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    record: int | None = None

    @property
    def prompt(self) -> str:
        return self.messages[-2].text if len(self.messages) > 1 else ""

    @property
    def reference(self) -> str:
        return self.messages[-1].text

    @property
    def references(self) -> tuple[str, ...]:
        """All that are right, one at least, and as often as they were given."""
        return self.answers or (self.reference,)


def ask(*parts: Any) -> Message:
    return Message("user", parts)


def with_examples(messages: Sequence[Message], examples: Iterable[Sequence[Message]]) -> tuple[Message, ...]:
    """A conversation behind others that are solved: their answers are given, and carry no loss."""
    given = (
        replace(message, learned=False) if message.role == "assistant" else message
        for example in examples
        for message in example
    )
    return (*given, *messages)


def answer(*parts: Any) -> Message:
    return Message("assistant", parts)
