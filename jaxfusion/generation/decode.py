"""Autoregressive decoding: prompts are read into caches of keys and values, and answers grow by blocks of tokens.

params = decoding_params(params)
first, state = prefill(model, num_positions, eos, params, batch, Wanted.of([sampling], [seed], [limit]))
chosen, state = decode_block(model, BLOCK, eos, params, state)          # donates the state; again until all have ended

Every row has settings, key and limit of its own, and nothing of a row depends on those beside it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxfusion.batch import Batch
from jaxfusion.config.model import TransformerDecoderConfig
from jaxfusion.config.run import CacheDtype, Weights
from jaxfusion.errors import UserError
from jaxfusion.generation.sampling import GREEDY, Sampling, Samplings, draw, seed_keys
from jaxfusion.models.alike import FEW, MANY, by_tiles, rows_alike
from jaxfusion.models.int8 import is_int8, quantise_kernel
from jaxfusion.models.kv_cache import KVCache
from jaxfusion.models.stack import Unstacked
from jaxfusion.models.vlm import Model, Params, apply

# Tokens that a program chooses before the host looks whether all rows have ended.
BLOCK = 16

# The most probable tokens that a request may be told beside each one that was chosen. OpenAI's limit.
MOST_TOP = 20

# Caches are a multiple of this long, so that prompts of nearly the same length share one program.
BUCKET = 32


@struct.dataclass
class Wanted:
    """What each row's request asks for. limit: tokens after which it ends. top: whether the most probable tokens are
    wanted too."""

    samplings: Samplings
    keys: UInt32[Array, "B K"]
    limit: Int[Array, " B"]
    top: Bool[Array, " B"]

    @classmethod
    def of(
        cls, samplings: Sequence[Sampling], seeds: Sequence[int], limits: Sequence[int], top: Sequence[bool] = ()
    ) -> "Wanted":
        """top: none given is none wanted."""
        wanted = np.array(top, bool) if top else np.zeros(len(limits), bool)
        return cls(Samplings.of(samplings), seed_keys(seeds), np.array(limits, np.int32), wanted)


@struct.dataclass
class DecodeState:
    """Rows whose answers grow.

    cache:  of each layer, keys and values [B, S, G, H].
    length: positions of the cache that are filled. last: the newest token, which is not in it yet.
    count:  tokens chosen so far. ended: what comes after means nothing.
    seen:   which tokens of the vocabulary prompt and answer hold.
    visual: what the prompt saw, for a fusion that goes on looking at it.
    """

    cache: Unstacked
    length: Int[Array, " B"]
    last: Int[Array, " B"]
    count: Int[Array, " B"]
    ended: Bool[Array, " B"]
    seen: Bool[Array, "B V"]
    wanted: Wanted
    visual: Float[Array, "B S D"] | None
    image_segment_ids: Int[Array, "B M"] | None


class Top(NamedTuple):
    """The K most probable tokens at each place, the most probable first, and their log-probabilities (nats)."""

    tokens: Int[Array, "B N K"]
    logprobs: Float[Array, "B N K"]


class Chosen(NamedTuple):
    """Tokens that a block has chosen, and their log-probabilities (nats) by the model itself, before any sampling.

    top: of these the same; without meaning where no row wants them.
    """

    tokens: Int[Array, "B N"]
    logprobs: Float[Array, "B N"]
    top: Top | None = None


def decoding_params(params: Params, weights: Weights = "given") -> Params:
    """The parameters with each decoder layer's on their own, which a step reads where they lie; given ones stay so.

    weights: "int8": with the kernels of the decoder's linear layers in 8 bits, see `jaxfusion.models.int8`. They are
             made layer by layer, so that there is at no time more than what is given and what is returned, and a layer.
    """
    _check_choice("weights", weights, Weights)
    finish = _in_8_bits if weights == "int8" else lambda _, tree: tree

    def decoded(room: str, tree: Any) -> Any:
        if not isinstance(tree, dict) or "layers" not in tree or isinstance(tree["layers"], Unstacked):
            return finish(room, tree)
        others = {name: part for name, part in tree.items() if name != "layers"}
        layers = Unstacked.of(tree["layers"], partial(finish, f"{room}/layers"))
        return finish(room, others) | {"layers": layers}

    return params | {room: decoded(room, params[room]) for room in ("decoder", "fusion") if room in params}


def _in_8_bits(path: str, tree: Any) -> Any:
    """A tree of parameters at a path with its kernels in 8 bits."""

    def kernel(place: Any, leaf: Any) -> Any:
        return quantise_kernel(f"{path}/{jax.tree_util.keystr(place, simple=True, separator='/')}", leaf)

    return jax.tree_util.tree_map_with_path(kernel, tree, is_leaf=is_int8)


@partial(jax.jit, static_argnums=(0, 1, 2), static_argnames=("cache_dtype", "num_top"))
def prefill(
    model: Model,
    num_positions: int,
    eos: tuple[int, ...],
    params: Params,
    batch: Batch,
    wanted: Wanted,
    *,
    cache_dtype: CacheDtype = "compute",
    num_top: int = 0,
) -> tuple[Chosen, DecodeState]:
    """Reads one prompt a row (`packed=False`, padded at its end) and chooses the first token of each answer.

    num_positions: S, of the caches; prompt and answer have to find room there. cache_dtype: see `empty_cache`.
    num_top:       K, of the most probable tokens that are told where a row wants them; 0: never.
    """
    num_rows, params = batch.tokens.shape[0], decoding_params(params)
    real = batch.segment_ids > 0
    cache = empty_cache(model, num_rows, num_positions, cache_dtype)
    with rows_alike(_tile(model, MANY)):
        logits, cache, visual = apply(model, params, batch.replace(prompt_mask=real), cache, method="prefill")
    # Tokens beyond the vocabulary are dropped: padding goes there.
    places = jnp.where(real, batch.tokens, logits.shape[-1])
    seen = jnp.zeros(logits.shape, bool).at[jnp.arange(num_rows)[:, None], places].set(True, mode="drop")
    visual, images = (visual, batch.image_segment_ids) if looks_back(model) else (None, None)
    length = jnp.sum(real, axis=1, dtype=jnp.int32)
    return _begin(model, logits, cache, length, seen, wanted, eos, num_top, visual, images)


@partial(jax.jit, static_argnums=0, donate_argnames="cache")
def prefill_part(
    model: Model, params: Params, batch: Batch, starts: Int[Array, " B"], cache: Unstacked
) -> tuple[Float[Array, "B V"], Unstacked]:
    """Reads the part of one prompt a row that begins at position starts[b], after what the cache holds already.

    batch: the part as `pack` gives it, padded at its end; positions count on from the start. The cache needs room for
           the padding.
    Returns the logits of what comes next. Only of a model that `reads_in_parts`.
    """
    params, batch = decoding_params(params), batch.replace(positions=batch.positions + starts[:, None])
    with rows_alike(_tile(model, MANY)):
        return apply(model, params, batch, starts, cache, method="prefill_after")


@partial(jax.jit, static_argnums=(0, 1, 2), static_argnames="num_top")
def begin(
    model: Model,
    num_positions: int,
    eos: tuple[int, ...],
    logits: Float[Array, "B V"],
    cache: Unstacked,
    length: Int[Array, " B"],
    seen: Bool[Array, "B V"],
    wanted: Wanted,
    *,
    num_top: int = 0,
) -> tuple[Chosen, DecodeState]:
    """As `prefill`, of prompts that `prefill_part` has read; the cache's first `num_positions` stay."""
    cache = jax.tree.map(lambda leaf: leaf[:, :num_positions], cache)
    return _begin(model, logits, cache, length, seen, wanted, eos, num_top)


def _begin(
    model: Model,
    logits: Array,
    cache: Unstacked,
    length: Array,
    seen: Array,
    wanted: Wanted,
    eos: tuple[int, ...],
    num_top: int,
    visual: Array | None = None,
    image_segment_ids: Array | None = None,
) -> tuple[Chosen, DecodeState]:
    """Chooses the first token of each answer."""
    state = DecodeState(
        cache=cache,
        length=length,
        last=jnp.zeros_like(length),
        count=jnp.zeros_like(length),
        ended=wanted.limit < 1,
        seen=seen,
        wanted=wanted,
        visual=visual,
        image_segment_ids=image_segment_ids,
    )
    return _choose(model, logits, state, eos, num_top)


@partial(jax.jit, static_argnums=(0, 1, 2), static_argnames="num_top", donate_argnames="state")
def decode_block(
    model: Model, num_tokens: int, eos: tuple[int, ...], params: Params, state: DecodeState, *, num_top: int = 0
) -> tuple[Chosen, DecodeState]:
    """Up to `num_tokens` more tokens of each row; it stops early where all rows have ended.

    eos:     any of these ends a row, and the first of them (0 where there is none) stands for what it would say after.
    num_top: see `prefill`.
    """
    num_rows, params = state.last.shape[0], decoding_params(params)
    filler = eos[0] if eos else 0

    def unfinished(carry: tuple[Array, Chosen, DecodeState]) -> Array:
        step, _, state = carry
        return (step < num_tokens) & ~jnp.all(state.ended)

    def advance(carry: tuple[Array, Chosen, DecodeState]) -> tuple[Array, Chosen, DecodeState]:
        step, chosen, state = carry
        seen = (state.visual, state.image_segment_ids)
        with rows_alike(_tile(model, FEW)):
            logits, cache = apply(model, params, state.last, state.length, state.cache, *seen, method="extend")
        # A row that has ended stands still, and writes to the same place of its cache again.
        length = jnp.where(state.ended, state.length, state.length + 1)
        new, state = _choose(model, logits, state.replace(cache=cache, length=length), eos, num_top)
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=step, axis=1)
        return step + 1, jax.tree.map(put, chosen, new), state

    tokens, top = jnp.full((num_rows, num_tokens), filler, jnp.int32), None
    if num_top:
        room = (num_rows, num_tokens, num_top)
        top = Top(jnp.zeros(room, jnp.int32), jnp.zeros(room))
    chosen = Chosen(tokens, jnp.zeros(tokens.shape), top)
    _, chosen, state = jax.lax.while_loop(unfinished, advance, (jnp.int32(0), chosen, state))
    return chosen, state


def _choose(
    model: Model, logits: Float[Array, "B V"], state: DecodeState, eos: tuple[int, ...], num_top: int
) -> tuple[Chosen, DecodeState]:
    """Each row's next token, N = 1, and the state with it."""
    wanted, rows = state.wanted, jnp.arange(logits.shape[0])
    token = draw(logits, state.seen, wanted.samplings, wanted.keys, state.count)
    with rows_alike(_tile(model, FEW)):
        total = by_tiles(partial(jax.nn.logsumexp, axis=-1), logits[:, None])[:, 0]
    logprob = logits[rows, token] - total
    top = _most_probable(logits, total, wanted.top & ~state.ended, num_top)
    token = jnp.where(state.ended, eos[0] if eos else 0, token)
    count = jnp.where(state.ended, state.count, state.count + 1)
    ended = state.ended | (count >= wanted.limit)
    if eos:
        ended |= jnp.isin(token, jnp.array(eos))
    seen = state.seen.at[rows, token].set(True)
    chosen = Chosen(token[:, None], logprob[:, None], top)
    return chosen, state.replace(last=token, count=count, ended=ended, seen=seen)


def _most_probable(
    logits: Float[Array, "B V"], total: Float[Array, " B"], wanted: Bool[Array, " B"], num_top: int
) -> Top | None:
    """N = 1. Looked for only where a row wants them, by the same program."""
    if not num_top:
        return None

    def look() -> Top:
        found, tokens = jax.lax.top_k(logits, num_top)
        return Top(tokens[:, None], (found - total[:, None])[:, None])

    def nothing() -> Top:
        room = (logits.shape[0], 1, num_top)
        return Top(jnp.zeros(room, jnp.int32), jnp.zeros(room))

    return jax.lax.cond(jnp.any(wanted), look, nothing)


def _tile(model: Model, size: int) -> int:
    """The size where what a row answers is to be the same to the last bit, whatever stands beside it; else 0."""
    return size if model.config.dtype == "float32" else 0


def looks_back(model: Model) -> bool:
    """Whether an answer's own positions see the picture in another way than through the cache."""
    return model.config.fusion.kind != "place"


def reads_in_parts(model: Model) -> bool:
    """Whether what a prompt's beginning leaves in the cache is independent of how the prompt goes on."""
    config = model.config
    return not looks_back(model) and config.encoder is None and not config.decoder.prefix_lm


def empty_state(
    model: Model, num_rows: int, num_positions: int, max_images: int = 1, cache_dtype: CacheDtype = "compute"
) -> DecodeState:
    """Rows in which nothing grows. max_images: that a row may see, where the model looks back at them."""
    config, dtype = model.config, model.config.dtype
    visual = images = None
    if looks_back(model) and config.vision is not None:
        visual = jnp.zeros((num_rows, max_images * config.tokens_per_image, config.width), dtype)
        images = jnp.zeros((num_rows, max_images), jnp.int32)
    length, last, count = (jnp.zeros(num_rows, jnp.int32) for _ in range(3))
    return DecodeState(
        cache=empty_cache(model, num_rows, cache_length(num_positions), cache_dtype),
        length=length,
        last=last,
        count=count,
        ended=jnp.ones(num_rows, bool),
        seen=jnp.zeros((num_rows, config.text_embedding.vocab_size), bool),
        wanted=jax.tree.map(jnp.asarray, Wanted.of([GREEDY] * num_rows, [0] * num_rows, [0] * num_rows)),
        visual=visual,
        image_segment_ids=images,
    )


def empty_cache(model: Model, num_rows: int, num_positions: int, cache_dtype: CacheDtype = "compute") -> Unstacked:
    """Room for the keys and values of each layer, [B, S, G, H].

    cache_dtype: "compute", the model's compute dtype, in which nothing is lost; "bfloat16"; "int8", see `KVCache`.
    Raises UserError for any other.
    """
    _check_choice("cache_dtype", cache_dtype, CacheDtype)
    config, decoder = model.config, model.config.decoder
    dtype = config.dtype if cache_dtype == "compute" else cache_dtype
    head_dim = decoder.head_dim or config.width // decoder.num_heads
    shape = (num_rows, num_positions, decoder.num_kv_heads or decoder.num_heads, head_dim)
    return Unstacked(tuple(KVCache.empty(shape, dtype) for _ in range(decoder.num_layers)))


def _check_choice(name: str, given: str, choices: Any) -> None:
    if given not in get_args(choices):
        raise UserError(f"{name}: {given!r} was given; use one of {', '.join(get_args(choices))}")


def generate_tokens(
    model: Model,
    params: Params,
    batch: Batch,
    *,
    max_new_tokens: int,
    sampling: Sampling | Sequence[Sampling] = GREEDY,
    seed: int | Sequence[int] = 0,
    eos_token_id: int | Sequence[int] | None = None,
    cache_dtype: CacheDtype = "compute",
) -> Int[np.ndarray, "B N"]:
    """Continues each row of a batch of prompts, one segment a row (`packed=False`), padded at the end.

    params:         as the model's, or as `decoding_params` has made them, which saves copying them here.
    max_new_tokens: N. Decoding stops early when every row has ended.
    sampling, seed: of all rows, or one a row. The same seed with the same prompt and settings gives the same answer,
                    whichever rows stand beside it.
    eos_token_id:   ends a row, as each of several does; after that a row holds only the first of them. None: rows
                    never end.
    cache_dtype:    of keys and values, see `empty_cache`.
    Raises UserError where the model does not generate, or prompt and answer exceed its learned positions.
    """
    check_generates(model, batch.tokens.shape[1], max_new_tokens)
    if batch.packed:
        raise ValueError("generate_tokens takes one prompt a row: make the batch with packed=False")
    num_rows, num_positions = batch.tokens.shape
    eos = () if eos_token_id is None else tuple(np.atleast_1d(eos_token_id).tolist())
    samplings = [sampling] * num_rows if isinstance(sampling, Sampling) else list(sampling)
    seeds = [int(seed)] * num_rows if np.ndim(seed) == 0 else list(seed)
    for name, given in (("sampling", samplings), ("seed", seeds)):
        if len(given) != num_rows:
            raise UserError(f"{name}: {len(given)} were given for {num_rows} rows; give one for all, or one a row")
    wanted = Wanted.of(samplings, seeds, [max_new_tokens] * num_rows)
    params, batch = decoding_params(params), jax.tree.map(jnp.asarray, batch)

    length = cache_length(num_positions + max_new_tokens)
    chosen, state = prefill(model, length, eos, params, batch, wanted, cache_dtype=cache_dtype)
    blocks = [chosen.tokens]
    for _ in range(-(-(max_new_tokens - 1) // BLOCK)):
        chosen, state = decode_block(model, BLOCK, eos, params, state)
        blocks.append(chosen.tokens)
        if eos and bool(jnp.all(state.ended)):
            break
    tokens = np.full((num_rows, max_new_tokens), eos[0] if eos else 0, np.int32)
    found = np.concatenate([np.asarray(block) for block in blocks], axis=1)[:, :max_new_tokens]
    tokens[:, : found.shape[1]] = found
    return tokens


def cache_length(num_positions: int) -> int:
    """The next length for which there is a program."""
    return -(-num_positions // BUCKET) * BUCKET


def check_generates(model: Model, prompt_length: int, max_new_tokens: int) -> None:
    """Raises UserError where the model does not generate, or prompt and answer exceed its positions."""
    if not isinstance(model.config.decoder, TransformerDecoderConfig):
        raise UserError(f"config.model.decoder: a {model.config.decoder.kind} does not generate; use a transformer")
    context, needed = model.config.text_embedding.max_positions, prompt_length + max_new_tokens
    if needed > context:
        raise UserError(
            f"prompt and {max_new_tokens} new tokens take {needed} positions and the model's context has {context}; "
            "shorten the prompt or lower generate.max_new_tokens"
        )
