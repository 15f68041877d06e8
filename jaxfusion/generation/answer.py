"""What is asked of an engine, and what it has answered so far."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from jaxfusion.data.tokenise import Segment
from jaxfusion.generation.sampling import GREEDY, Sampling

End = Literal["stop", "length", "cancelled", "failed"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """segment: the prompt, see `tokenise_prompt`. limit: the most tokens of the answer. top_logprobs: how many of the
    most probable tokens are to be told beside each one that was chosen, `MOST_TOP` at most."""

    segment: Segment
    sampling: Sampling = GREEDY
    seed: int = 0
    limit: int = 64
    top_logprobs: int = 0


class News(NamedTuple):
    """What an answer has got since somebody looked; see `Answer`."""

    tokens: list[int]
    logprobs: list[float]
    top: list[list[tuple[int, float]]]
    end: End | None


@dataclass(eq=False)
class Answer:
    """What a request has got so far; any thread may read it.

    tokens, logprobs: of the answer, with the token that ended it. end: why there are no more; None while it grows.
    top:              at each token's place the most probable tokens and log-probabilities, as many as were asked for.
    notify:           called whenever that changes, by the thread that changes it; it must not wait for anything.
    """

    request: Request
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list, repr=False)
    end: End | None = None
    notify: Callable[[], None] | None = field(default=None, repr=False)
    _news: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def __iter__(self) -> Iterator[list[int]]:
        """New tokens, as they come."""
        given = 0
        while True:
            with self._news:
                self._news.wait_for(lambda given=given: len(self.tokens) > given or self.end is not None)
                new, ended = self.tokens[given:], self.end is not None
            if new:
                yield new
            given += len(new)
            if ended:
                return

    def since(self, given: int) -> News:
        """What comes after the first `given` tokens, all of one moment."""
        with self._news:
            return News(self.tokens[given:], self.logprobs[given:], self.top[given:], self.end)

    def wait(self, timeout: float | None = None) -> bool:
        """Until it has ended; False where that takes longer than `timeout` seconds."""
        with self._news:
            return self._news.wait_for(lambda: self.end is not None, timeout)

    def cancel(self) -> None:
        """Leaves its row before the next block. What has been answered stays."""
        self.add(News([], [], [], "cancelled"))

    def add(self, news: News) -> None:
        """The engine's. Nothing comes after an end."""
        with self._news:
            if self.end is None:
                self.tokens += news.tokens
                self.logprobs += news.logprobs
                self.top += news.top
                self.end = news.end
                self._news.notify_all()
                if self.notify is not None:
                    self.notify()
