"""A model at work: its engine in a thread, and answers to requests in an event loop."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from threading import Thread
from typing import TypeVar

from fastapi import Request
from starlette.responses import Response

from jaxfusion.data.tokenise import Segment
from jaxfusion.generation.answer import Request as EngineRequest
from jaxfusion.generation.engine import Engine
from jaxfusion.serving.answers import Asked, Said, merged
from jaxfusion.serving.echo import Teller, Telling
from jaxfusion.serving.errors import ApiError
from jaxfusion.serving.metrics import Metrics
from jaxfusion.serving.prompts import Reader
from jaxfusion.serving.protocol import ChatCompletion, Sampled, TextCompletion, TextRequest, Usage
from jaxfusion.serving.replies import Chunk, Shape, TextShape
from jaxfusion.serving.streaming import EventStream, unless_gone
from jaxfusion.serving.text import AnswerText

T, S = TypeVar("T"), TypeVar("S")

LOGGER = logging.getLogger(__name__)

# Contexts' worth of prompts that one request may have told, each as often as it has answers.
ECHOED = 16

# Threads that decode pictures and tokenise; so many large pictures are in memory at once.
READERS = 4


class Server:
    """One model, its engine, and what is asked of it."""

    def __init__(self, reader: Reader, make_engine: Callable[[], Engine], teller: Teller, name: str) -> None:
        """name: of the model, for whoever asks. teller: of prompts' own log-probabilities. Compiles what every answer
        needs, or raises what would fail each."""
        self.reader, self.name, self.created = reader, name, int(time.time())
        self._teller = teller
        self._make_engine, self.engine = make_engine, make_engine()
        self.metrics = Metrics(lambda: self.engine)
        self._thread, self._closing = Thread(target=self._work, name="engine", daemon=True), False
        self._pool = ThreadPoolExecutor(READERS, "reader")
        self.engine.submit(EngineRequest(segment=reader.text("a"), limit=2))
        while self.engine.turn():
            pass

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _work(self) -> None:
        """Another engine takes the place of one that has failed."""
        while True:
            try:
                return self.engine.run()
            except Exception:
                LOGGER.exception("the engine has failed, with all answers that it was at; another one starts")
            self.engine = self._make_engine()
            if self._closing:
                self.engine.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """With the engine at work; at the end it finishes what it has taken."""
        self._thread.start()
        try:
            yield
        finally:
            self._closing = True
            self.engine.close()
            await asyncio.to_thread(self._thread.join)
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._teller.close()

    async def answer(
        self,
        http: Request,
        body: Sampled,
        shape: Shape,
        read: Callable[[], Sequence[Segment]],
        *,
        goes_on: bool = False,
        seconds: float | None = None,
    ) -> Response | ChatCompletion | TextCompletion:
        """read: makes the prompts, in a thread of its own. goes_on: whether answers go on with them, word for word.
        seconds: to the end; None: as the settings say. Raises ApiError and UserError for what cannot be done."""
        self._check_model(body)
        loop, seconds = asyncio.get_running_loop(), self.reader.settings.timeout if seconds is None else seconds
        asked, prompt_tokens = await loop.run_in_executor(self._pool, self._ask, read, body, goes_on, loop)
        self.metrics.prompt_tokens.inc(prompt_tokens)
        if body.stream:
            return EventStream(self._stream(asked, shape, prompt_tokens, body.usage_at_the_end), asked, seconds)
        return await unless_gone(http.receive, asked, self._whole(asked, shape, prompt_tokens), seconds)

    async def echo(self, http: Request, body: TextRequest) -> Response | TextCompletion:
        """The prompts again, each with what comes after it. Raises as `answer` does."""
        self._check_model(body)
        if body.stream:
            raise ApiError(400, "echo: a prompt is not told in a stream; leave one of the two out", param="echo")
        each = body.n or 1
        if each > 1 and body.max_tokens == 0:
            raise ApiError(400, f"n: {each} times the same prompt, without an answer; set it to 1", param="n")
        loop, timeout = asyncio.get_running_loop(), self.reader.settings.timeout
        until = loop.time() + timeout
        found = await self.in_reader(lambda prompts: [self.reader.raw(prompt) for prompt in prompts], body.prompts)
        segments = [segment for segment, _ in found]
        number, most = sum(len(segment.tokens) for segment in segments), ECHOED * self.reader.num_positions
        if number * each > most:
            times = f", {each} times" if each > 1 else ""
            raise ApiError(
                400, f"prompt: {number} tokens in all{times}, and echo tells {most} at once; send fewer", param="prompt"
            )
        telling = Telling()
        work = self._teller.echoes(telling, found, body.logprobs)
        echoes = await unless_gone(http.receive, [telling], work, until - loop.time())
        shape = TextShape(self.name, body.logprobs, echoes)
        if body.max_tokens != 0:
            left = until - loop.time()
            return await self.answer(http, body, shape, lambda: segments, goes_on=True, seconds=left)
        self.metrics.prompt_tokens.inc(number)
        nothing = [Said("", [], "length")] * len(segments)
        return shape.whole(nothing, Usage(prompt_tokens=number, completion_tokens=0, total_tokens=number))

    async def in_reader(self, work: Callable[[T], S], given: T) -> S:
        """Out of the event loop's way."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, given)

    def _check_model(self, body: Sampled) -> None:
        if body.model not in (None, self.name):
            raise ApiError(
                404, f"there is no model {body.model!r}; this is {self.name!r}", param="model", code="model_not_found"
            )

    def _ask(
        self, read: Callable[[], Sequence[Segment]], body: Sampled, goes_on: bool, loop: asyncio.AbstractEventLoop
    ) -> tuple[list[Asked], int]:
        """All that is asked, or nothing of it, and the positions of the prompts."""
        segments, stops, tokenizer = read(), self.reader.stops(body), self.reader.model.tokenizer
        requests = [request for segment in segments for request in self.reader.requests(segment, body)]
        asked: list[Asked] = []
        try:
            for request in requests:
                text = AnswerText(tokenizer, stops, request.segment.tokens.tolist() if goes_on else None)
                asked.append(Asked(self.engine, request, text, loop))
        except BaseException:
            for one in asked:
                one.cancel()
            raise
        return asked, sum(segment.size[0] for segment in segments)

    async def _said(self, asked: list[Asked]) -> AsyncIterator[tuple[int, Said]]:
        start, first = time.perf_counter(), set()
        try:
            async for index, said in merged(asked):
                if index not in first:
                    first.add(index)
                    self.metrics.first_seconds.observe(time.perf_counter() - start)
                yield index, said
        finally:
            self.metrics.answer_tokens.inc(sum(one.count for one in asked))

    async def _whole(self, asked: list[Asked], shape: Shape, prompt_tokens: int) -> ChatCompletion | TextCompletion:
        parts: list[list[Said]] = [[] for _ in asked]
        async for index, said in self._said(asked):
            parts[index].append(said)
        answers = [
            Said("".join(one.text for one in said), [p for one in said for p in one.pieces], said[-1].finish_reason)
            for said in parts
        ]
        return shape.whole(answers, _usage(asked, prompt_tokens))

    async def _stream(
        self, asked: list[Asked], shape: Shape, prompt_tokens: int, with_usage: bool
    ) -> AsyncIterator[Chunk]:
        for chunk in shape.openings(len(asked)):
            yield chunk
        async for index, said in self._said(asked):
            if said.text or said.pieces or said.finish_reason:
                yield shape.chunk(index, said)
        if with_usage:
            yield shape.usage(_usage(asked, prompt_tokens))


def _usage(asked: Sequence[Asked], prompt_tokens: int) -> Usage:
    answered = sum(one.count for one in asked)
    return Usage(prompt_tokens=prompt_tokens, completion_tokens=answered, total_tokens=prompt_tokens + answered)
