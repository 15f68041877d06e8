"""Autoregressive decoding with a KV cache: a whole batch under one jit, prompts of any length side by side."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxfusion.batch import Batch
from jaxfusion.config.model import TransformerDecoderConfig
from jaxfusion.errors import UserError
from jaxfusion.generation.sampling import Greedy, Sampler
from jaxfusion.models.transformer import KVCache
from jaxfusion.models.vlm import Model, Params, apply


def generate_tokens(
    model: Model,
    params: Params,
    batch: Batch,
    *,
    max_new_tokens: int,
    sampler: Sampler | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    rng: Array | None = None,
) -> Int[Array, "B N"]:
    """Continues each row of a batch of prompts, one segment a row (`packed=False`), padded at the end.

    max_new_tokens: N. Decoding stops early when every row has ended.
    sampler:        None is `Greedy()`.
    eos_token_id:   ends a row, as each of several does; after that a row holds only the first of them. None: rows
                    never end.
    rng:            key of the draws; None is `jax.random.key(0)`.
    Raises UserError where the model does not generate, or prompt and answer exceed its learned positions.
    """
    if not isinstance(model.config.decoder, TransformerDecoderConfig):
        raise UserError(f"config.model.decoder: a {model.config.decoder.kind} does not generate; use a transformer")
    context, needed = model.config.text_embedding.max_positions, batch.tokens.shape[1] + max_new_tokens
    if needed > context:
        raise UserError(
            f"prompt and {max_new_tokens} new tokens take {needed} positions and the model's context has {context}; "
            "shorten the prompt or lower generate.max_new_tokens"
        )
    if batch.packed:
        raise ValueError("generate_tokens takes one prompt a row: make the batch with packed=False")
    rng = jax.random.key(0) if rng is None else rng
    eos = () if eos_token_id is None else tuple(np.atleast_1d(eos_token_id).tolist())
    return _generate(model, max_new_tokens, sampler or Greedy(), eos, params, batch, rng)


class _State(NamedTuple):
    step: Int[Array, ""]
    new_tokens: Int[Array, "B N"]
    last: Int[Array, " B"]
    ended: Bool[Array, " B"]
    cache: KVCache


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _generate(
    model: Model, num_new: int, sampler: Sampler, eos: tuple[int, ...], params: Params, batch: Batch, rng: Array
) -> Int[Array, "B N"]:
    num_rows, num_tokens = batch.tokens.shape
    batch = batch.replace(prompt_mask=batch.segment_ids > 0)
    lengths = jnp.sum(batch.segment_ids > 0, axis=1, dtype=jnp.int32)
    cache = empty_cache(model, num_rows, num_tokens + num_new)
    logits, cache, visual = apply(model, params, batch, cache, method="prefill")

    def choose(logits: Array, step: Array, ended: Array) -> tuple[Array, Array]:
        token = sampler(logits, jax.random.fold_in(rng, step))
        if not eos:
            return token, ended
        token = jnp.where(ended, eos[0], token)
        return token, ended | jnp.isin(token, jnp.array(eos))

    def unfinished(state: _State) -> Array:
        return (state.step < num_new) & ~jnp.all(state.ended)

    def advance(state: _State) -> _State:
        index = lengths + state.step - 1  # where the last chosen token goes
        args = (state.last, index, state.cache, visual, batch.image_segment_ids)
        logits, cache = apply(model, params, *args, method="extend")
        token, ended = choose(logits, state.step, state.ended)
        return _State(state.step + 1, state.new_tokens.at[:, state.step].set(token), token, ended, cache)

    token, ended = choose(logits, jnp.int32(0), jnp.zeros(num_rows, bool))
    new_tokens = jnp.full((num_rows, num_new), eos[0] if eos else 0, jnp.int32).at[:, 0].set(token)
    state = _State(jnp.int32(1), new_tokens, token, ended, cache)
    return jax.lax.while_loop(unfinished, advance, state).new_tokens


def empty_cache(model: Model, num_rows: int, num_positions: int) -> KVCache:
    """Room for the keys and values of all layers: float[L, B, S, G, H] each, in the model's compute dtype."""
    config, decoder = model.config, model.config.decoder
    head_dim = decoder.head_dim or config.width // decoder.num_heads
    shape = (decoder.num_layers, num_rows, num_positions, decoder.num_kv_heads or decoder.num_heads, head_dim)
    return KVCache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
