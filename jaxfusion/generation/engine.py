"""Continuous batching: requests join and leave a fixed number of rows between blocks of tokens, and nothing is compiled
anew for them.

engine = Engine(model, params, num_rows=8, num_positions=2048)
answer = engine.submit(Request(segment=tokenise_prompt(messages, model.tokenizer, Layout.of(model.config))))
while engine.turn():          # or engine.run() in a thread of its own, until engine.close()
    print(answer.tokens)
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxfusion.batch import Batch
from jaxfusion.config.run import CacheDtype
from jaxfusion.data.packing import ImageSlots, pack
from jaxfusion.data.tokenise import Layout, Segment
from jaxfusion.errors import UserError
from jaxfusion.generation.answer import Answer, News, Request
from jaxfusion.generation.decode import (
    BLOCK,
    BUCKET,
    MOST_TOP,
    Chosen,
    DecodeState,
    Wanted,
    begin,
    cache_length,
    check_generates,
    decode_block,
    decoding_params,
    empty_cache,
    empty_state,
    looks_back,
    prefill,
    prefill_part,
    reads_in_parts,
)
from jaxfusion.generation.prefixes import PART, Part, PrefixCache, parts
from jaxfusion.models.stack import Unstacked
from jaxfusion.models.vlm import Model, Params


class BusyError(UserError):
    """So many requests are waiting that another one is not taken."""


class ClosedError(UserError):
    """The engine takes no more requests."""


class InParts(NamedTuple):
    """A prompt that is read part by part. batches: of the parts, each of one row. tokens: of all."""

    parts: list[Part]
    batches: list[Batch]
    tokens: Int[np.ndarray, " t"]


class Engine:
    """Rows that requests share, first come first served. `submit` may be called from any thread, `turn` from one.

    num_rows:      answers that grow at once. num_positions: of prompt and answer together, images included.
    max_images:    of a prompt, for a fusion that goes on looking at them; the others take what fits a row.
    max_waiting:   requests beyond those that find a row; more are refused.
    eos:           ids each of which ends an answer; None: the tokenizer's.
    prefix_bytes:  of keys and values of prompts' beginnings that are kept for prompts that begin the same, beside the
                   rows'; 0: none. Of a model that reads a prompt in both directions, or looks back at pictures,
                   none are kept.
    cache_dtype:   of keys and values, the kept ones too, see `empty_cache`.

    Where a turn fails, for want of memory for example, it raises what it was, every answer ends as "failed", and the
    engine is closed.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        *,
        num_rows: int = 8,
        num_positions: int = 2048,
        max_images: int = 1,
        max_waiting: int = 256,
        eos: tuple[int, ...] | None = None,
        prefix_bytes: int = 0,
        cache_dtype: CacheDtype = "compute",
    ) -> None:
        check_generates(model, 0, 1)
        numbers = {"num_rows": num_rows, "num_positions": num_positions, "max_images": max_images}
        for name, number in (numbers | {"max_waiting": max_waiting}).items():
            if number < 1:
                raise UserError(f"{name}: {number} was given; use 1 or more")
        if prefix_bytes < 0:
            raise UserError(f"prefix_bytes: {prefix_bytes} was given; use 0 or more")
        if eos is None and model.tokenizer is None:
            raise UserError(
                "eos: the model has no tokenizer that says what ends an answer; name the ids, or () for none"
            )
        self._model, self._params, self._layout = model, decoding_params(params), Layout.of(model.config)
        self._num_positions = min(num_positions, model.config.text_embedding.max_positions)
        self._max_images, self._max_waiting = max_images, max_waiting
        self._eos = tuple(model.tokenizer.stop_ids) if eos is None else eos
        self._cache_dtype = cache_dtype
        self._state = empty_state(model, num_rows, self._num_positions, max_images, cache_dtype)
        self._prefixes = PrefixCache(prefix_bytes if reads_in_parts(model) else 0)
        self._longest_part = read_length(PART + self._layout.tokens_per_image)
        self._num_top = min(MOST_TOP, model.config.text_embedding.vocab_size)
        self._rows: list[Answer | None] = [None] * num_rows
        self._waiting: deque[tuple[Answer, Batch | InParts, Wanted]] = deque()
        self._work, self._closed = threading.Condition(), False

    @property
    def num_positions(self) -> int:
        """Of prompt and answer together: no more than the model's context."""
        return self._num_positions

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    @property
    def num_busy(self) -> int:
        """Rows in which an answer grows."""
        return len(self._rows) - self._rows.count(None)

    @property
    def num_waiting(self) -> int:
        """Requests that have no row yet."""
        with self._work:
            return sum(answer.end is None for answer, _, _ in self._waiting)

    @property
    def prefixes(self) -> PrefixCache:
        """What is kept of prompts' beginnings, and how often it was found; to be read only."""
        return self._prefixes

    def submit(self, request: Request, notify: Callable[[], None] | None = None) -> Answer:
        """Raises UserError where prompt and answer exceed a row, and `BusyError` where too many are waiting.

        notify: of the answer, see there.
        """
        length, images = request.segment.size
        if request.limit < 1:
            raise UserError(f"limit: {request.limit} was given; an answer has 1 token at least")
        if not 0 <= request.top_logprobs <= MOST_TOP:
            raise UserError(f"top_logprobs: {request.top_logprobs} was given; use 0 to {MOST_TOP}")
        if length + request.limit > self._num_positions:
            raise UserError(
                f"the prompt takes {length} positions (images included), which with {request.limit} new tokens is more "
                f"than the {self._num_positions} that there are; shorten it or ask for fewer"
            )
        if looks_back(self._model) and images > self._max_images:
            raise UserError(f"the prompt has {images} images and may have {self._max_images}; leave some out")
        answer, prompt = Answer(request, notify=notify), self._prompt(request.segment)
        wanted = Wanted.of([request.sampling], [request.seed], [request.limit], [request.top_logprobs > 0])
        with self._work:
            if self._closed:
                raise ClosedError("the engine is closed and takes no more requests")
            self._waiting = deque(entry for entry in self._waiting if entry[0].end is None)
            if len(self._waiting) >= self._max_waiting + self._rows.count(None):
                raise BusyError(f"{len(self._waiting)} requests are waiting already; try again later")
            self._waiting.append((answer, prompt, wanted))
            self._work.notify()
        return answer

    def turn(self) -> bool:
        """Lets waiting requests join, and all rows grow by a block. False: there was nothing to do."""
        try:
            return self._turn()
        except BaseException:
            self._fail()
            raise

    def _turn(self) -> bool:
        firsts = self._admit()
        if all(answer is None for answer in self._rows):
            return False
        chosen, self._state = decode_block(
            self._model, BLOCK, self._eos, self._params, self._state, num_top=self._num_top
        )
        if not any(answer is not None and answer.request.top_logprobs for answer in self._rows):
            chosen, firsts = chosen._replace(top=None), {row: first._replace(top=None) for row, first in firsts.items()}
        firsts, chosen, counts, ended = jax.device_get((firsts, chosen, self._state.count, self._state.ended))
        for row, answer in enumerate(self._rows):
            if answer is None:
                continue
            parts = [(firsts[row], 0), (chosen, row)] if row in firsts else [(chosen, row)]
            news = _news(parts, int(counts[row]) - len(answer.tokens), answer.request.top_logprobs)
            if ended[row]:
                news = news._replace(end="stop" if news.tokens[-1] in self._eos else "length")
                self._rows[row] = None
            answer.add(news)
        return True

    def run(self) -> None:
        """Turns for as long as there is something to do, and waits where there is not; returns once closed and done."""
        while True:
            if not self.turn():
                with self._work:
                    if self._closed and not self._waiting:
                        return
                    self._work.wait_for(lambda: self._waiting or self._closed)

    def close(self) -> None:
        """Takes no more requests; those that are there are finished."""
        with self._work:
            self._closed = True
            self._work.notify()

    def _admit(self) -> dict[int, Any]:
        """Fills free rows, whose first tokens it returns."""
        for row, answer in enumerate(self._rows):
            if answer is not None and answer.end is not None:  # cancelled: what its row goes on to say is not read
                self._rows[row] = None
                self._state = _stop(self._state, row)
        firsts = {}
        for row, answer in enumerate(self._rows):
            if answer is None and (entry := self._next()) is not None:
                self._rows[row], prompt, wanted = entry
                firsts[row], one = self._read(prompt, wanted)
                self._state = _put(self._state, one, row)
        return firsts

    def _read(self, prompt: Batch | InParts, wanted: Wanted) -> tuple[Chosen, DecodeState]:
        positions = self._state.cache.layers[0].key.shape[1]
        if isinstance(prompt, Batch):
            batch = jax.tree.map(jnp.asarray, prompt)
            settings = {"cache_dtype": self._cache_dtype, "num_top": self._num_top}
            return prefill(self._model, positions, self._eos, self._params, batch, wanted, **settings)
        cache = _empty(self._model, 1, positions + self._longest_part, self._cache_dtype)
        found = self._prefixes.leading(prompt.parts)
        for part, kept in zip(prompt.parts, found, strict=False):
            cache = _write(cache, kept, part.start)
        for part, batch in zip(prompt.parts[len(found) :], prompt.batches[len(found) :], strict=True):
            batch, starts = jax.tree.map(jnp.asarray, batch), jnp.array([part.start], jnp.int32)
            logits, cache = prefill_part(self._model, self._params, batch, starts, cache)
            if part.key is not None:
                self._prefixes.keep(part.key, _copy(cache_length(len(part.segment.tokens)), cache, part.start))
        seen = np.zeros((1, self._model.config.text_embedding.vocab_size), bool)
        seen[0, prompt.tokens[prompt.tokens < seen.shape[1]]] = True
        length = jnp.array([len(prompt.tokens)], jnp.int32)
        return begin(self._model, positions, self._eos, logits, cache, length, seen, wanted, num_top=self._num_top)

    def _next(self) -> tuple[Answer, Batch | InParts, Wanted] | None:
        with self._work:
            while self._waiting:
                entry = self._waiting.popleft()
                if entry[0].end is None:
                    return entry
        return None

    def _fail(self) -> None:
        with self._work:
            self._closed = True
            answers = [*self._rows, *(answer for answer, _, _ in self._waiting)]
            self._waiting.clear()
        self._state = None  # another engine may want the memory
        self._prefixes.clear()
        for answer in answers:
            if answer is not None:
                answer.add(News([], [], [], "failed"))

    def _prompt(self, segment: Segment) -> Batch | InParts:
        """In one part where nothing of it can be kept: that is faster, and depends on the prompt alone as well."""
        cut = parts(segment, self._layout.tokens_per_image) if self._prefixes.max_bytes else []
        if len(cut) < 2 or max(read_length(len(part.segment.tokens)) for part in cut) > self._longest_part:
            return self._batch(segment, self._num_positions)
        batches = [self._batch(part.segment, self._longest_part) for part in cut]
        return InParts(cut, batches, segment.tokens)

    def _batch(self, segment: Segment, longest: int) -> Batch:
        """Of one of few shapes: rows and image slots are powers of two, so that there are few programs."""
        length, images = segment.size
        row_length = min(read_length(length), longest)
        number = self._max_images if looks_back(self._model) else _power_of_two(images) if images else 0
        slots = ImageSlots.of(self._model.config, number)
        return pack([[segment]], row_length, self._layout.tokens_per_image, slots, packed=False)


def _news(parts: Sequence[tuple[Chosen, int]], number: int, num_top: int) -> News:
    """So many tokens of a row, from the parts that have them, each with the row's place there."""

    def joined(of: Callable[[Chosen], np.ndarray]) -> list[Any]:
        return np.concatenate([of(chosen)[row] for chosen, row in parts])[:number].tolist()

    tokens, logprobs = joined(lambda chosen: chosen.tokens), joined(lambda chosen: chosen.logprobs)
    if not num_top:
        return News(tokens, logprobs, [[] for _ in tokens], None)
    found = (joined(lambda chosen, k=k: chosen.top[k][..., :num_top]) for k in range(2))
    return News(tokens, logprobs, [list(zip(*place, strict=True)) for place in zip(*found, strict=True)], None)


def read_length(length: int) -> int:
    """The next length for which there is a program that reads a prompt: few, whatever is asked."""
    return max(_power_of_two(length), BUCKET)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


_empty = jax.jit(empty_cache, static_argnums=(0, 1, 2, 3))


@partial(jax.jit, static_argnums=0)
def _copy(num_positions: int, cache: Unstacked, start: Int[Array, ""] | int) -> Unstacked:
    """Keys and values of so many positions, from the start on."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, num_positions, axis=1), cache)


@partial(jax.jit, donate_argnums=0)
def _write(cache: Unstacked, part: Unstacked, start: Int[Array, ""] | int) -> Unstacked:
    """The cache with the part's keys and values from the start on. What pads it is not seen, or is written over."""
    return jax.tree.map(lambda leaf, new: jax.lax.dynamic_update_slice_in_dim(leaf, new, start, axis=1), cache, part)


@partial(jax.jit, donate_argnums=0)
def _put(state: DecodeState, one: DecodeState, row: Int[Array, ""] | int) -> DecodeState:
    """The state with the one row of `one` in the row's place."""
    return jax.tree.map(lambda all, new: jax.lax.dynamic_update_slice_in_dim(all, new, row, axis=0), state, one)


@partial(jax.jit, donate_argnums=0)
def _stop(state: DecodeState, row: Int[Array, ""] | int) -> DecodeState:
    return state.replace(ended=state.ended.at[row].set(True))
