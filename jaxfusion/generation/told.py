"""How likely a model finds each token of a text, as it reads it: what a completion's `echo` tells."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxfusion.batch import Batch
from jaxfusion.data.packing import ImageSlots, pack
from jaxfusion.data.tokenise import Layout, Segment
from jaxfusion.generation.decode import check_generates
from jaxfusion.generation.engine import read_length
from jaxfusion.generation.generate import check_vocabulary
from jaxfusion.models.vlm import Model, Params, features, output_matrix
from jaxfusion.text.tokenizer import Tokenizer

# Positions whose logits are there at once.
CHUNK = 64
# Most probable tokens told at each place: always as many, since another number would be another program.
TOP = 5


class Told(NamedTuple):
    """Of each token of a text, given those before it: its log-probability (nats), and those of the TOP most probable
    tokens, the most probable first (of all, where there are fewer)."""

    logprobs: Float[np.ndarray, " t"]
    top: Int[np.ndarray, "t k"]
    top_logprobs: Float[np.ndarray, "t k"]


def document(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[Segment, int]:
    """A text as it stands, behind what begins one unless it brings that, and how many tokens come so: of an empty text
    one at least, since nothing can be answered from nothing."""
    begins = [tokenizer.bos_id] if tokenizer.prefix is None else list(tokenizer.prefix)
    begins = [] if list(ids[: len(begins)]) == begins else begins
    if not begins and not len(ids):
        begins = [tokenizer.bos_id]
    tokens = np.array([*begins, *ids], np.int32)
    segment = Segment(
        tokens=tokens,
        targets=np.append(tokens[1:], tokenizer.pad_id).astype(np.int32),
        loss_weights=(np.arange(len(tokens)) < len(tokens) - 1).astype(np.float32),
        prompt_mask=np.arange(len(tokens)) < 1,  # no token sees the ones behind it
        visual_index=np.full(len(tokens), -1, np.int32),
        images=[],
    )
    return segment, len(begins)


def tell(model: Model, params: Params, segment: Segment) -> Told:
    """Of all tokens of a text but the first, which nothing stands before. segment: see `document`.

    There is one program for all lengths up to the next power of two.

    Raises UserError for a text longer than the model's context, or with tokens that it does not know.
    """
    length = len(segment.tokens)
    check_generates(model, length, 0)
    check_vocabulary(model, [segment])
    rows = min(read_length(length), model.config.text_embedding.max_positions)
    batch = pack([[segment]], rows, Layout.of(model.config).tokens_per_image, ImageSlots.of(model.config, 0))
    found = _read(model, params, jax.tree.map(jnp.asarray, batch))
    return Told(*(np.asarray(part)[: length - 1] for part in found))


@partial(jax.jit, static_argnums=0)
def _read(model: Model, params: Params, batch: Batch) -> tuple[Array, Array, Array]:
    hidden, matrix = features(model, params, batch)[0], output_matrix(model, params)
    softcap = getattr(model.config.decoder, "logit_softcap", 0.0)

    def some(part: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        hidden, targets = part
        logits = jnp.einsum("td,vd->tv", hidden, matrix, preferred_element_type=jnp.float32)
        logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
        logprobs = jax.nn.log_softmax(logits)
        top_logprobs, top = jax.lax.top_k(logprobs, min(TOP, logprobs.shape[-1]))
        return jnp.take_along_axis(logprobs, targets[:, None], axis=-1)[:, 0], top, top_logprobs

    def chunks(array: Array) -> Array:
        padded = jnp.pad(array, [(0, -len(array) % CHUNK), *[(0, 0)] * (array.ndim - 1)])
        return padded.reshape(-1, CHUNK, *array.shape[1:])

    found = jax.lax.map(some, (chunks(hidden), chunks(batch.targets[0])))
    return tuple(part.reshape(-1, *part.shape[2:]) for part in found)
