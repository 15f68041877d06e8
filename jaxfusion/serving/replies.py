"""What was said, in the shapes of OpenAI's two kinds of completions."""

import secrets
import time
from collections.abc import Sequence
from typing import Any, Protocol

from jaxfusion.serving.answers import Said
from jaxfusion.serving.echo import Echo
from jaxfusion.serving.protocol import (
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    Reply,
    TextChoice,
    TextCompletion,
    TextLogprobs,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from jaxfusion.serving.text import Piece

# OpenAI's number for a logarithm that JSON has none for.
LEAST = -9999.0

Chunk = dict[str, Any]


class Shape(Protocol):
    """Of one request's answers."""

    def whole(self, answers: Sequence[Said], usage: Usage) -> ChatCompletion | TextCompletion: ...

    def openings(self, number: int) -> list[Chunk]:
        """What a stream of so many answers begins with."""

    def chunk(self, index: int, said: Said) -> Chunk:
        """What a stream goes on with."""

    def usage(self, usage: Usage) -> Chunk:
        """What a stream ends with, where that is asked for."""


class ChatShape:
    def __init__(self, name: str, logprobs: bool) -> None:
        """name: of the model. logprobs: whether they are told."""
        self._head, self._logprobs = _head("chatcmpl", name), logprobs

    def whole(self, answers: Sequence[Said], usage: Usage) -> ChatCompletion:
        choices = [
            ChatChoice(
                index=index,
                message=Reply(content=said.text),
                logprobs=self._told(said.pieces),
                finish_reason=said.finish_reason,
            )
            for index, said in enumerate(answers)
        ]
        return ChatCompletion(**self._head, choices=choices, usage=usage)

    def openings(self, number: int) -> list[Chunk]:
        delta = {"role": "assistant", "content": ""}
        return [self._chunk(index, delta, None, None) for index in range(number)]

    def chunk(self, index: int, said: Said) -> Chunk:
        told = self._told(said.pieces) if said.pieces else None
        delta = {"content": said.text} if said.text or told else {}
        return self._chunk(index, delta, told and told.model_dump(), said.finish_reason)

    def usage(self, usage: Usage) -> Chunk:
        return self._of([]) | {"usage": usage.model_dump()}

    def _told(self, pieces: Sequence[Piece]) -> ChatLogprobs | None:
        if not self._logprobs:
            return None
        told = [
            TokenLogprob(
                **_token(piece.text, piece.logprob),
                top_logprobs=[TopLogprob(**_token(text, logprob)) for text, logprob in piece.top],
            )
            for piece in pieces
        ]
        return ChatLogprobs(content=told)

    def _chunk(self, index: int, delta: Chunk, logprobs: Chunk | None, finish_reason: str | None) -> Chunk:
        return self._of([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}])

    def _of(self, choices: list[Chunk]) -> Chunk:
        return self._head | {"object": "chat.completion.chunk", "choices": choices}


class TextShape:
    def __init__(self, name: str, logprobs: int | None, echoes: Sequence[Echo] = ()) -> None:
        """name: of the model. logprobs: of how many tokens at each place beside the chosen one; None: not of that.
        echoes: of the prompts, where they are told again before their answers."""
        self._head, self._logprobs, self._echoes = _head("cmpl", name), logprobs, echoes

    def whole(self, answers: Sequence[Said], usage: Usage) -> TextCompletion:
        each = len(answers) // max(len(self._echoes), 1)
        echoed = [self._after(index // each, said) for index, said in enumerate(answers)] if self._echoes else answers
        choices = [self._choice(index, said) for index, said in enumerate(echoed)]
        return TextCompletion(**self._head, choices=choices, usage=usage)

    def openings(self, number: int) -> list[Chunk]:
        return []

    def chunk(self, index: int, said: Said) -> Chunk:
        return TextCompletion(**self._head, choices=[self._choice(index, said)]).model_dump(exclude={"usage"})

    def usage(self, usage: Usage) -> Chunk:
        return TextCompletion(**self._head, choices=[], usage=usage).model_dump()

    def _after(self, prompt: int, said: Said) -> Said:
        echo = self._echoes[prompt]
        moved = [p._replace(start=p.start + len(echo.text), end=p.end + len(echo.text)) for p in said.pieces]
        return Said(echo.text + said.text, [*echo.pieces, *moved], said.finish_reason)

    def _choice(self, index: int, said: Said) -> TextChoice:
        told = None
        if self._logprobs is not None:
            told = TextLogprobs(
                tokens=[piece.text for piece in said.pieces],
                token_logprobs=[None if p.logprob is None else _number(p.logprob) for p in said.pieces],
                text_offset=[piece.start for piece in said.pieces],
                top_logprobs=[None if p.logprob is None else _by_text(p) for p in said.pieces]
                if self._logprobs
                else None,
            )
        return TextChoice(index=index, text=said.text, logprobs=told, finish_reason=said.finish_reason)


def _head(kind: str, name: str) -> Chunk:
    return {"id": f"{kind}-{secrets.token_hex(12)}", "created": int(time.time()), "model": name}


def _token(text: str, logprob: float) -> Chunk:
    return {"token": text, "logprob": _number(logprob), "bytes": list(text.encode())}


def _by_text(piece: Piece) -> dict[str, float]:
    """Of several tokens with one text, such as those that only begin a character, the most probable one counts."""
    told: dict[str, float] = {}
    for text, logprob in (*piece.top, (piece.text, piece.logprob)):
        told.setdefault(text, _number(logprob))
    return told


def _number(logprob: float) -> float:
    return logprob if logprob > LEAST else LEAST
