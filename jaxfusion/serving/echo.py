"""Completions of text as it stands, or of its tokens, told again in front of what comes after it: `echo`.

With `logprobs` that is how harnesses ask how likely a model finds a given answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from jaxfusion.data.tokenise import Segment
from jaxfusion.generation.told import Told, document, tell
from jaxfusion.models.vlm import Model, Params
from jaxfusion.serving.text import Detokeniser, Piece


@dataclass(frozen=True)
class Echo:
    """A prompt as it is told again. pieces: of its tokens; the first one's logprob is None, as nothing is before it."""

    text: str
    pieces: list[Piece]


class Teller:
    """Tells how likely prompts are, one at a time, in whichever thread asks."""

    def __init__(self, model: Model, params: Params) -> None:
        self._model, self._params, self._lock = model, params, Lock()

    def echo(self, segment: Segment, begins: int, logprobs: int | None) -> Echo:
        """segment, begins: as `document` gives them. logprobs: most probable tokens beside each one; None: none, nor
        its own."""
        ids = segment.tokens.tolist()
        told = None
        if logprobs is not None and len(ids) > 1:
            with self._lock:
                told = tell(self._model, self._params, segment, max(logprobs, 1))
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
