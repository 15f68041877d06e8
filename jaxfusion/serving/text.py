"""From an answer's tokens to text that can be sent before the answer has ended."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from jaxfusion.text.tokenizer import Tokenizer

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what decoders write for bytes that are not yet a character
BEFORE = 8  # tokens of a prompt that tell where a space belongs, and hold a character that it only begins


class Detokeniser:
    """Tokens to text, piece by piece, of which none ends within a character.

    Only the tokens since the last piece but one are decoded again: they are what a decoder needs to know to place
    spaces right. As in vLLM and text-generation-inference. Each token that is asked about is decoded once with them.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        """before: tokens that the text goes on from, and that are not told; of many the last ones do."""
        self._text, self._ids = tokenizer.text, list(before)[-BEFORE:]
        self._start, self._read = 0, len(self._ids)
        # Characters of the tokens from _start to _read, which have been given; one that they only begin has not.
        self._known = len(self._text(self._ids).rstrip(INCOMPLETE)) if self._ids else 0
        self._completed: dict[int, str] = {}

    def add(self, token: int) -> str:
        """The text that the token completes; "" where it ends within a character."""
        new = self.completed_by(token)
        self._completed.clear()
        self._ids.append(token)
        if new:
            self._start, self._read = self._read, len(self._ids)
            self._known = len(self._text(self._ids[self._start :]))
        return new

    def completed_by(self, token: int) -> str:
        """What `add` would give; nothing is added."""
        if token not in self._completed:
            new = self._since([*self._ids[self._start :], token])
            self._completed[token] = "" if new.endswith(INCOMPLETE) else new
        return self._completed[token]

    def rest(self) -> str:
        """What has not been given yet."""
        return self._since(self._ids[self._start :])

    def rest_with(self, token: int) -> str:
        """What `rest` would be, which is something, with the token in the last one's place."""
        return self._since([*self._ids[self._start : -1], token])

    def _since(self, ids: list[int]) -> str:
        return self._text(ids)[self._known :]


class Piece(NamedTuple):
    """What one token adds to an answer; "" for one that only begins a character. start, end: in the answer's text.
    top: what the most probable tokens would have added there, and their log-probabilities."""

    text: str
    logprob: float
    start: int
    end: int
    top: tuple[tuple[str, float], ...] = ()


class AnswerText:
    """An answer's text as it grows: without white space at its ends, and cut before the first stop text.

    What may yet turn out to be one of these is held back, so whoever takes the text bit by bit gets the same as who
    takes it at the end.

    goes_on: from the tokens of a prompt, word for word: then what it begins with, white space too, is told. None: it is
             an answer of its own.
    count:   tokens so far, with the one that ended it. stopped: a stop text has come.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], goes_on: Sequence[int] | None = None) -> None:
        self._detokeniser, self._stop_ids = Detokeniser(tokenizer, goes_on or ()), frozenset(tokenizer.stop_ids)
        self._strips = goes_on is None
        self._stop = tuple(text for text in stop if text)
        self._all, self._taken, self._pieces = "", 0, deque()
        self._others: Sequence[tuple[int, float]] = ()  # the most probable ones at the last token's place
        self._ended = self.stopped = False
        self.count = 0

    def add(
        self, tokens: Sequence[int], logprobs: Sequence[float], top: Sequence[Sequence[tuple[int, float]]] = ()
    ) -> None:
        """Those after a stop text do not count. top: at each token's place the most probable ones; none given: none."""
        for token, logprob, others in zip(tokens, logprobs, top or [()] * len(tokens), strict=True):
            if self.stopped:
                return
            self.count += 1
            if token not in self._stop_ids:
                start = len(self._all)
                told = tuple((self._here(self._detokeniser.completed_by(one)), number) for one, number in others)
                text, self._others = self._grow(self._detokeniser.add(token)), others
                self._pieces.append(Piece(text, logprob, start, start + len(text), told))
                self._look_for_stop()

    def finish(self) -> None:
        """There is nothing to come."""
        self._ended = True
        if not self.stopped and (rest := self._detokeniser.rest()):
            last = self._pieces.pop()
            told = tuple(map(self._ended_with, self._others, last.top))
            rest = self._grow(rest)
            self._pieces.append(last._replace(text=last.text + rest, end=last.end + len(rest), top=told))
            self._look_for_stop()
        self._all = self._all.rstrip()

    def take(self) -> tuple[str, list[Piece]]:
        """What can be sent, and has not been taken yet: text, and the tokens of which all has been taken."""
        until, pieces = max(self._taken, self._safe()), []
        new, self._taken = self._all[self._taken : until], until
        while self._pieces and self._is_out(self._pieces[0]):
            pieces.append(self._pieces.popleft())
        return new, pieces

    def _here(self, text: str) -> str:
        return text.lstrip() if self._strips and not self._all else text

    def _ended_with(self, other: tuple[int, float], told: tuple[str, float]) -> tuple[str, float]:
        """What is told of another token in the last one's place, since nothing comes that would complete it."""
        token, logprob = other
        return told if token in self._stop_ids else (self._here(self._detokeniser.rest_with(token)), logprob)

    def _grow(self, text: str) -> str:
        text = self._here(text)
        self._all += text
        return text

    def _look_for_stop(self) -> None:
        places = [place for text in self._stop if (place := self._all.find(text, self._taken)) >= 0]
        if places:
            self.stopped, self._all = True, self._all[: min(places)]

    def _safe(self) -> int:
        stops = () if self._ended or self.stopped else self._stop
        begun = (length for text in stops for length in range(1, len(text)) if self._all.endswith(text[:length]))
        return len(self._all[: len(self._all) - max(begun, default=0)].rstrip())

    def _is_out(self, piece: Piece) -> bool:
        if self._ended and not self.stopped:
            return True
        return piece.start < self._taken and (piece.end <= self._taken or self.stopped)
