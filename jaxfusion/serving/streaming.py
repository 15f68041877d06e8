"""Answers to clients that may leave at any time, whole or as server-sent events."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import aclosing, suppress
from typing import Any, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from jaxfusion.serving.errors import ApiError
from jaxfusion.serving.replies import Chunk

T = TypeVar("T")
LOGGER = logging.getLogger(__name__)
# For a client that has stopped reading to take the end of its stream.
LAST_SECONDS = 5

DONE = b"data: [DONE]\n\n"


class Cancellable(Protocol):
    def cancel(self) -> None:
        """Nobody waits for it any more."""


class GoneError(ApiError):
    """The client has left; the status is nginx's, and nobody reads it."""

    def __init__(self) -> None:
        super().__init__(499, "the client has closed the connection")


async def unless_gone(
    receive: Receive, asked: Sequence[Cancellable], work: Coroutine[Any, Any, T], seconds: float
) -> T:
    """What the work comes to, if the client stays. Whatever happens, none of `asked` keeps its row after it.

    Raises GoneError where the client leaves, and TimeoutError where it takes longer than so many seconds.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise GoneError if leaving.done() else TimeoutError
    finally:
        for one in asked:
            one.cancel()
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events, each a JSON object. An error on the way is the last event, in OpenAI's format."""

    def __init__(self, chunks: AsyncIterator[Chunk], asked: Sequence[Cancellable], seconds: float) -> None:
        super().__init__(
            media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        del self.headers["content-length"]
        self._chunks, self._asked, self._seconds = chunks, asked, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        async def write_all() -> None:
            async with aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    await write(b"data: %s\n\n" % _json(chunk))
            await write(DONE)

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        told = None
        try:
            await unless_gone(receive, self._asked, write_all(), self._seconds)
        except GoneError:
            return
        except Exception as error:
            told = ApiError.of(error)
            if told is not error and told.status_code == 500:
                LOGGER.exception("a stream has failed")
        with suppress(TimeoutError):  # one who does not read them either
            async with asyncio.timeout(LAST_SECONDS):
                if told is not None:
                    await write(b"data: %s\n\n" % _json(told.body))
                await write(b"", more=False)


def _json(value: Chunk) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
