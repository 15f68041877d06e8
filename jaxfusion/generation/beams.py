"""Beam search: the answer with the highest log-probability for its length, as far as a few running ones find it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxfusion.batch import Batch
from jaxfusion.config.run import CacheDtype
from jaxfusion.errors import UserError
from jaxfusion.generation.decode import cache_length, check_generates, decoding_params, empty_cache
from jaxfusion.models.stack import Unstacked
from jaxfusion.models.vlm import Model, Params, apply

NONE = -1.0e9  # the score of a beam that is not there


@dataclass(frozen=True, kw_only=True)
class Beams:
    """num_beams: running answers of each row.
    length_penalty: answers are compared by log-probability / length ** length_penalty (Wu et al. 2016 have the like);
        0: by log-probability alone, which likes short ones.
    """

    num_beams: int = 4
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise UserError(f"num_beams: {self.num_beams} was given; it must be 1 or more")


@struct.dataclass
class _Search:
    """W beams a row. `tokens` and `scores` are of the running ones, `done_*` of the best that have ended."""

    step: Int[Array, ""]
    cache: Unstacked
    tokens: Int[Array, "B W N"]
    scores: Float[Array, "B W"]
    done_tokens: Int[Array, "B W N"]
    done_scores: Float[Array, "B W"]
    is_done: Bool[Array, "B W"]
    hopeful: Bool[Array, " B"]


def beam_search(
    model: Model,
    params: Params,
    batch: Batch,
    *,
    beams: Beams,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None = None,
    cache_dtype: CacheDtype = "compute",
) -> Int[np.ndarray, "B N"]:
    """The best answer of each row; arguments and errors as of `generate_tokens`.

    It decides as transformers' generate does with num_beams, length_penalty and early_stopping=False: a row ends when
    its best running beam, at the length that it has, is no better than the worst of num_beams that have ended.
    """
    check_generates(model, batch.tokens.shape[1], max_new_tokens)
    if batch.packed:
        raise ValueError("beam_search takes one prompt a row: make the batch with packed=False")
    eos = () if eos_token_id is None else tuple(np.atleast_1d(eos_token_id).tolist())
    params, batch = decoding_params(params), jax.tree.map(jnp.asarray, batch)
    return np.asarray(_search(model, beams, max_new_tokens, eos, cache_dtype, params, batch))


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _search(
    model: Model,
    beams: Beams,
    num_new: int,
    eos: tuple[int, ...],
    cache_dtype: CacheDtype,
    params: Params,
    batch: Batch,
) -> Int[Array, "B N"]:
    num_rows, num_positions = batch.tokens.shape
    width, vocab_size = beams.num_beams, model.config.text_embedding.vocab_size
    real = batch.segment_ids > 0
    cache = empty_cache(model, num_rows, cache_length(num_positions + num_new), cache_dtype)
    logits, cache, visual = apply(model, params, batch.replace(prompt_mask=real), cache, method="prefill")
    # From here on a row of the model is a beam: the beams of the first row, then those of the second.
    lengths = jnp.repeat(jnp.sum(real, axis=1, dtype=jnp.int32), width)
    cache, visual, images = jax.tree.map(
        lambda leaf: jnp.repeat(leaf, width, axis=0), (cache, visual, batch.image_segment_ids)
    )

    def take(leaf: Array, beam: Array) -> Array:
        """leaf[B, W', ...] at beam[B, W]"""
        return jnp.take_along_axis(leaf, beam.reshape(beam.shape + (1,) * (leaf.ndim - 2)), axis=1)

    def grow(search: _Search, logits: Float[Array, "BW V"]) -> tuple[_Search, Int[Array, " BW"]]:
        """One more token of each beam; and which row of the model each beam goes on from."""
        logprobs = jax.nn.log_softmax(logits).reshape(num_rows, width, vocab_size)
        total = (search.scores[..., None] + logprobs).reshape(num_rows, -1)
        # Enough that `width` go on even where the best of each beam end.
        scores, found = jax.lax.top_k(total, max(2, 1 + len(eos)) * width)
        beam, token = found // vocab_size, found % vocab_size
        tokens = take(search.tokens, beam).at[:, :, search.step].set(token)
        length = search.step + 1
        ends = jnp.isin(token, jnp.array(eos, jnp.int32)) | (length >= num_new)

        running, kept = jax.lax.top_k(jnp.where(ends, scores + NONE, scores), width)
        ended = ends & (jnp.arange(found.shape[1]) < width)  # the others are there to go on
        fair = scores / length.astype(jnp.float32) ** beams.length_penalty
        done = jnp.concatenate(
            [search.done_scores, jnp.where(ended & search.hopeful[:, None], fair, fair + NONE)], axis=1
        )
        done_scores, best = jax.lax.top_k(done, width)
        is_done = take(jnp.concatenate([search.is_done, ended], axis=1), best)
        best_running = running[:, 0] / length.astype(jnp.float32) ** beams.length_penalty
        worst_done = jnp.where(jnp.all(is_done, axis=1), jnp.min(done_scores, axis=1), NONE)
        search = search.replace(
            step=length,
            tokens=take(tokens, kept),
            scores=running,
            done_tokens=take(jnp.concatenate([search.done_tokens, tokens], axis=1), best),
            done_scores=done_scores,
            is_done=is_done,
            hopeful=search.hopeful & (best_running > worst_done),
        )
        origin = take(beam, kept) + width * jnp.arange(num_rows)[:, None]
        return search, origin.reshape(-1)

    def advance(carry: tuple[_Search, Array]) -> tuple[_Search, Array]:
        search, origin = carry
        cache = jax.tree.map(lambda leaf: leaf[origin], search.cache)
        last = search.tokens[:, :, search.step - 1].reshape(-1)
        logits, cache = apply(model, params, last, lengths + search.step - 1, cache, visual, images, method="extend")
        return grow(search.replace(cache=cache), logits)

    def goes_on(carry: tuple[_Search, Array]) -> Array:
        search, _ = carry
        return (search.step < num_new) & jnp.any(search.hopeful)

    filler = jnp.full((num_rows, width, num_new), eos[0] if eos else 0, jnp.int32)
    search = _Search(
        step=jnp.int32(0),
        cache=cache,
        tokens=filler,
        scores=jnp.full((num_rows, width), NONE).at[:, 0].set(0.0),  # all begin alike, and one is enough
        done_tokens=filler,
        done_scores=jnp.full((num_rows, width), NONE),
        is_done=jnp.zeros((num_rows, width), bool),
        hopeful=jnp.ones(num_rows, bool),
    )
    search, _ = jax.lax.while_loop(goes_on, advance, grow(search, jnp.repeat(logits, width, axis=0)))
    return search.done_tokens[:, 0]
