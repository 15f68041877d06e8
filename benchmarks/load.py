"""Requests of several kinds, asked of a server with OpenAI's interface as people would, and when what came back."""

import base64
import io
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image

from jaxfusion.errors import UserError

PICTURES = {0: 0.5, 1: 0.3, 2: 0.2}  # of a request, and how many of the requests have so many
SHORTEST_PROMPT, SHORTEST_ANSWER = 4, 8
SECONDS = 600  # that nobody waits longer for


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request's body, and when it is sent: seconds after the load begins, of one in which nobody waits for others."""

    body: dict[str, Any]
    pictures: int
    at: float


@dataclass(frozen=True, kw_only=True)
class Told:
    """Seconds from when a request should have been sent to the first of its text and to its end, and the answer's
    tokens; or why there was no answer."""

    first: float = math.nan
    whole: float = math.nan
    tokens: int = 0
    failed: str = ""


def make_load(
    number: int, *, words: int, tokens: int, image_size: int, rate: float | None, seed: int, contents: int
) -> list[Ask]:
    """Requests in a fixed order: of text, of one picture and of two, their lengths drawn with uniform logarithms.

    words:    the most of a prompt. tokens: the most of an answer.
    rate:     requests a second, of which each comes whenever it likes (a Poisson process); None: all at once.
    seed:     of kinds, lengths and arrivals. contents: of words and pictures, which change nothing of these.
    """
    kinds, inside = np.random.default_rng(seed), np.random.default_rng((seed, contents))
    pictures = kinds.choice(list(PICTURES), number, p=list(PICTURES.values()))
    lengths, limits = (
        np.exp(kinds.uniform(np.log(least), np.log(most + 1), number)).astype(int)
        for least, most in ((SHORTEST_PROMPT, words), (SHORTEST_ANSWER, tokens))
    )
    arrivals = np.cumsum(kinds.exponential(1 / rate, number)) if rate else np.zeros(number)
    asks = []
    for place in range(number):
        content = [_picture(inside, image_size) for _ in range(pictures[place])]
        text = " ".join(f"w{word}" for word in inside.integers(10, 100, lengths[place]))
        body = {
            "messages": [{"role": "user", "content": [*content, {"type": "text", "text": text}]}],
            "max_tokens": int(limits[place]),
            "temperature": 1.0,  # a random model says the same again and again where nothing is drawn
            "seed": place,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        asks.append(Ask(body=body, pictures=int(pictures[place]), at=float(arrivals[place])))
    return asks


def _picture(rng: np.random.Generator, size: int) -> dict[str, Any]:
    """Coarse noise, which a file holds as few bytes as a drawing's."""
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    buffer = io.BytesIO()
    coarse.resize((size, size), Image.Resampling.NEAREST).save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


class Client:
    """Talks to the server at a URL that ends with /v1. key: that it asks for. model: by name; None: its first one.

    Raises UserError where no server answers.
    """

    def __init__(self, url: str, key: str | None = None, model: str | None = None) -> None:
        self.url, self._headers = url.rstrip("/"), {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        try:
            with urlopen(Request(f"{self.url}/models", headers=self._headers), timeout=SECONDS) as answer:
                models = [entry["id"] for entry in json.load(answer)["data"]]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"--url: {self.url}/models is not answered as it should be ({error})") from None
        if model is not None and model not in models:
            raise UserError(f"--model: {self.url} has no {model!r}, but {', '.join(models)}")
        self.model = model or models[0]

    def replay(self, asks: Sequence[Ask], clients: int | None) -> tuple[list[Told], float]:
        """What was told, in the order of the requests, and the seconds until all had been.

        clients: who ask one request after the other, whatever its `at`; None: each is sent when its time has come.
        """
        start = time.perf_counter()
        with ThreadPoolExecutor(clients or len(asks)) as threads:
            told = list(threads.map(lambda ask: self.ask(ask, None if clients else start + ask.at), asks))
        return told, time.perf_counter() - start

    def ask(self, ask: Ask, at: float | None = None) -> Told:
        """at: of `time.perf_counter`, when it is sent, and from which is counted whenever that happens; None: now."""
        if at is not None:
            time.sleep(max(0.0, at - time.perf_counter()))
        start = time.perf_counter() if at is None else at
        data = json.dumps(ask.body | {"model": self.model}).encode()
        request = Request(f"{self.url}/chat/completions", data, self._headers)
        first, tokens, ended = math.nan, 0, False
        try:
            with urlopen(request, timeout=SECONDS) as lines:
                for line in lines:
                    if not line.startswith(b"data: {"):
                        continue
                    event = json.loads(line.removeprefix(b"data: "))
                    if "error" in event:
                        return Told(failed=str(event["error"]["message"]))
                    tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                    for choice in event["choices"]:
                        ended |= choice["finish_reason"] is not None
                        if math.isnan(first) and (choice["delta"].get("content") or ended):
                            first = time.perf_counter() - start
        except HTTPError as error:
            return Told(failed=f"{error.code} {error.reason}")
        except (URLError, OSError) as error:
            return Told(failed=str(error))
        if not ended:
            return Told(failed="the stream ended early")
        return Told(first=first, whole=time.perf_counter() - start, tokens=tokens)
