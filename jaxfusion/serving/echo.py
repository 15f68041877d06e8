"""Completions of text as it stands, or of its tokens, told again in front of what comes after it: `echo`.

With `logprobs` that is how harnesses ask how likely a model finds a given answer.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any

import numpy as np

from jaxfusion.data.tokenise import Segment
from jaxfusion.generation.engine import BusyError, ClosedError
from jaxfusion.generation.told import Told, document, tell
from jaxfusion.models.vlm import Model, Params
from jaxfusion.serving.text import Detokeniser, Piece


@dataclass(frozen=True)
class Echo:
    """A prompt as it is told again. pieces: of its tokens; the first one's logprob is None, as nothing is before it."""

    text: str
    pieces: list[Piece]


class Telling:
    """Prompts that a `Teller` has taken, all of one request."""

    def __init__(self) -> None:
        self._cancelled = Event()

    def cancel(self) -> None:
        """Nobody waits any more: the prompt that is being read is the last one."""
        self._cancelled.set()

    def check(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError


class Teller:
    """Tells how likely prompts are, one at a time, in a thread of its own: no other request waits for it."""

    def __init__(self, model: Model, params: Params, max_waiting: int) -> None:
        """max_waiting: prompts of all requests together, with those that are being read; more are refused."""
        self._model, self._params = model, params
        self._pool, self._closing = ThreadPoolExecutor(1, "teller"), Event()
        self._lock, self._waiting, self._max_waiting = Lock(), 0, max_waiting

    async def echoes(self, telling: Telling, found: Sequence[tuple[Segment, int]], logprobs: int | None) -> list[Echo]:
        """found: as `document` gives them. logprobs: most probable tokens beside each one; None: none, nor its own.

        Raises BusyError where too many are waiting.
        """
        with self._lock:
            if self._waiting + len(found) > self._max_waiting:
                raise BusyError(f"{self._waiting} prompts are waiting to be told already; try again later")
            self._waiting += len(found)

        def work() -> list[Echo]:
            return [self._one(telling, *one, logprobs) for one in found]

        def done(_: Any) -> None:
            with self._lock:
                self._waiting -= len(found)

        future = self._pool.submit(work)
        future.add_done_callback(done)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """No prompt is read any more but the one that is being read."""
        self._closing.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _one(self, telling: Telling, segment: Segment, begins: int, logprobs: int | None) -> Echo:
        telling.check()
        if self._closing.is_set():
            raise ClosedError("the server ends and tells no more prompts")
        ids, told = segment.tokens.tolist(), None
        if logprobs is not None and len(ids) > 1:
            told = tell(self._model, self._params, segment)
        return self._echo(ids, begins, told, logprobs or 0)

    def _echo(self, ids: list[int], begins: int, told: Told | None, num_top: int) -> Echo:
        detokeniser, text, pieces = Detokeniser(self._model.tokenizer), "", []
        for place in range(begins, len(ids)):
            logprob: Any = None
            top: tuple = ()
            if told is not None and place > begins:  # what stands before the first is not the prompt's
                logprob = float(told.logprobs[place - 1])
                ranked = zip(told.top[place - 1].tolist(), told.top_logprobs[place - 1].tolist(), strict=True)
                top = tuple((detokeniser.completed_by(one), number) for one, number in list(ranked)[:num_top])
            new = detokeniser.add(ids[place])
            pieces.append(Piece(new, logprob, len(text), len(text) + len(new), top))
            text += new
        return Echo(text + detokeniser.rest(), pieces)


def raw(prompt: str | Sequence[int], model: Model) -> tuple[Segment, int]:
    """A prompt's text or tokens without any layout around them."""
    ids = model.tokenizer.encode(prompt) if isinstance(prompt, str) else np.asarray(prompt).tolist()
    return document(ids, model.tokenizer)
