"""Batch: the one thing that passes from data to model, a grid of rows with tokens and images.

A row holds one or more *segments* (samples). Within it the n-th visual token of the row's images (M images of K visual
tokens each, so n < M * K) may stand at any position: `visual_index` says which one stands where.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

HostOrDevice = Array | np.ndarray


class TopK(NamedTuple):
    """A teacher's k largest probabilities at each position, see `jaxfusion.training.distillation`."""

    ids: Int[HostOrDevice, "*N k"]
    log_probs: Float[HostOrDevice, "*N k"]
    log_rest: Float[HostOrDevice, "*N"]


@struct.dataclass
class Batch:
    """B rows of T positions. Every array's first axis is the row, so a batch is sharded by rows.

    tokens:       token ids; the value under a placed visual token is not looked at.
    positions:    position within the segment, from 0.
    segment_ids:  1, 2, ... within a row, in order and without gaps; 0 is padding.
    targets:      the id to predict at each position (for a causal decoder, the next token).
    loss_weights: how much each target counts; 0 where there is none.
    prompt_mask:  True where a segment's prompt stands (images, instruction); the rest of the segment is the answer.
                  Prefix-LM attention and an encoder in front of a causal decoder see the prompt as one whole.
    visual_index: which of the row's visual tokens stands at (or is added to) each position; -1 for none.
    images:       uint8[B, M, H, W, 3], or float already normalised; int32[B, M] ids for the lookup table;
                  float[B, M, K, D] precomputed features, also a network's own; None for text alone.
    image_segment_ids: the segment each image belongs to, in order; empty image slots, at the end, have 0.
    told:         what a teacher has said beforehand of each position that carries loss: the logarithms of its largest
                  probabilities, their ids, and the logarithm of what all others have together; None: nothing.
    packed:       static; False promises one segment a row that starts at position 0 (padding after it), for which
                  faster kernels exist.
    """

    tokens: Int[HostOrDevice, "B T"]
    positions: Int[HostOrDevice, "B T"]
    segment_ids: Int[HostOrDevice, "B T"]
    targets: Int[HostOrDevice, "B T"]
    loss_weights: Float[HostOrDevice, "B T"]
    prompt_mask: Bool[HostOrDevice, "B T"]
    visual_index: Int[HostOrDevice, "B T"]
    images: Shaped[HostOrDevice, "B M ..."] | None = None
    image_segment_ids: Int[HostOrDevice, "B M"] | None = None
    told: TopK | None = None
    packed: bool = struct.field(pytree_node=False, default=True)

    @classmethod
    def from_tokens(
        cls,
        tokens: Int[HostOrDevice, "B T"],
        images: Shaped[HostOrDevice, "B M ..."] | None = None,
        image_token_id: int | None = None,
        lengths: Int[HostOrDevice, " B"] | None = None,
    ) -> "Batch":
        """One segment a row, to be read as a language model reads: each position predicts the next token.

        tokens:   int32[B, T], padded at the end.
        images:   see `Batch.images`.
        image_token_id: the n-th such token of a row takes the row's n-th visual token. None: no token is an image's.
        lengths:  int32[B], the real length of each row; None: all are T long.

        Every next token that is text carries loss 1. The leading run of a row up to its last image token is the prompt.
        """
        tokens = jnp.asarray(tokens, jnp.int32)
        num_rows, num_tokens = tokens.shape
        column = jnp.arange(num_tokens, dtype=jnp.int32)
        lengths = jnp.full(num_rows, num_tokens) if lengths is None else jnp.asarray(lengths)
        real = column < lengths[:, None]
        is_image = real & (tokens == image_token_id) if image_token_id is not None else jnp.zeros_like(real)
        last_image = jnp.max(jnp.where(is_image, column, -1), axis=1)
        next_is_text = jnp.roll(real & ~is_image, -1, axis=1).at[:, -1].set(False)
        return cls(
            tokens=tokens,
            positions=jnp.where(real, column, 0),
            segment_ids=real.astype(jnp.int32),
            targets=jnp.roll(tokens, -1, axis=1).at[:, -1].set(0),
            loss_weights=(real & next_is_text).astype(jnp.float32),
            prompt_mask=real & (column <= last_image[:, None]),
            visual_index=jnp.where(is_image, jnp.cumsum(is_image, axis=1, dtype=jnp.int32) - 1, -1),
            images=None if images is None else jnp.asarray(images),
            image_segment_ids=None if images is None else jnp.ones(images.shape[:2], jnp.int32),
            packed=False,
        )
