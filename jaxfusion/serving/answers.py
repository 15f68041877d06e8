"""An engine's answers, as an event loop waits for them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import NamedTuple

from jaxfusion.generation.answer import Request
from jaxfusion.generation.engine import Engine
from jaxfusion.serving.errors import ApiError
from jaxfusion.serving.protocol import FinishReason
from jaxfusion.serving.text import AnswerText, Piece


class Said(NamedTuple):
    """Text that an answer goes on with, the tokens of which all is told by now, and why there are no more, if so."""

    text: str
    pieces: list[Piece]
    finish_reason: FinishReason | None


class Asked:
    """A request that an engine has taken. It is made in any other thread than the loop's, where it would wait for the
    device, and iterated over in the loop's."""

    def __init__(self, engine: Engine, request: Request, text: AnswerText, loop: asyncio.AbstractEventLoop) -> None:
        """text: takes what is answered. loop: in which it is waited for. Raises as `Engine.submit`."""
        self._news, self._text = asyncio.Event(), text

        def notify() -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                loop.call_soon_threadsafe(self._news.set)

        self._answer = engine.submit(request, notify)

    @property
    def count(self) -> int:
        """Tokens answered so far."""
        return self._text.count

    def cancel(self) -> None:
        """Nobody reads on; the engine may use the row for others. Does nothing to what has ended."""
        self._answer.cancel()

    async def __aiter__(self) -> AsyncIterator[Said]:
        """The last one alone has a finish_reason. Raises ApiError where the engine has failed."""
        given, end, text = 0, None, self._text
        while end is None and not text.stopped:
            await self._news.wait()
            self._news.clear()
            tokens, logprobs, top, end = self._answer.since(given)
            if end == "failed":
                raise ApiError(500, "the server failed; its log says how")
            given += len(tokens)
            text.add(tokens, logprobs, top)
            if end is None and not text.stopped:
                yield Said(*text.take(), None)
        self.cancel()
        text.finish()
        yield Said(*text.take(), "length" if end == "length" and not text.stopped else "stop")


async def merged(asked: list[Asked]) -> AsyncIterator[tuple[int, Said]]:
    """What several answers say, as it comes, each with its answer's place."""
    said: asyncio.Queue[tuple[int, Said | Exception]] = asyncio.Queue()

    async def listen(index: int) -> None:
        try:
            async for one in asked[index]:
                said.put_nowait((index, one))
        except Exception as error:
            said.put_nowait((index, error))

    listeners = [asyncio.create_task(listen(index)) for index in range(len(asked))]
    try:
        going_on = len(asked)
        while going_on:
            index, one = await said.get()
            if isinstance(one, Exception):
                raise one
            yield index, one
            going_on -= one.finish_reason is not None
    finally:
        for listener in listeners:
            listener.cancel()
