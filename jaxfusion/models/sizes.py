"""How much there is in a batch: the few sums that a model's arithmetic, and a run's meters, are linear in."""

from collections import Counter

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from jaxfusion.batch import Batch
from jaxfusion.config.model import (
    CrossAttentionFusionConfig,
    ModelConfig,
    TransformerConfig,
    TransformerDecoderConfig,
)
from jaxfusion.models.attention import Interval, bidirectional, sliding_window
from jaxfusion.models.fusion import visible_images
from jaxfusion.models.vision import holds_features
from jaxfusion.models.vlm import VisualLanguageModel

Sizes = dict[str, Shaped[Array, ""] | float]


def batch_sizes(config: ModelConfig, batch: Batch) -> Sizes:
    """Scalars that add up over batches and devices, of what is real: padding and empty image slots are not.

    samples, tokens, images: segments, positions, images.
    pictures:       of the images, those that the vision room looks at: none where a network's features are given.
    positions, image_slots:  what the batch has room for.
    targets:        positions that carry loss.
    encoder_tokens: positions that an encoder reads: in front of a causal decoder, the prompts.
    decoder_pairs, encoder_pairs: queries with each key that they see, the mean over a stack's layers; float32.
    fusion_pairs:   positions with each visual token that they see by cross-attention; float32.
    """
    images, batch = batch.images, jax.tree.map(jnp.asarray, batch.replace(images=None))
    module, segment_ids = VisualLanguageModel(config), batch.segment_ids
    encoder_ids = module.encoder_ids(batch)
    sizes = {
        "samples": jnp.sum(jnp.max(segment_ids, axis=1)),
        "tokens": jnp.sum(segment_ids > 0),
        "images": jnp.zeros((), jnp.int32),
        "pictures": jnp.zeros((), jnp.int32),
        "positions": jnp.asarray(segment_ids.size),
        "image_slots": jnp.zeros((), jnp.int32),
        "targets": jnp.sum(batch.loss_weights != 0),
        "encoder_tokens": jnp.sum(encoder_ids > 0),
    }
    if config.vision is not None and images is not None:
        slots = batch.image_segment_ids
        sizes |= {"images": jnp.sum(slots > 0), "image_slots": jnp.asarray(slots.size)}
        if not holds_features(images, config.vision):
            sizes["pictures"] = sizes["images"]
        if isinstance(config.fusion, CrossAttentionFusionConfig):
            sizes["fusion_pairs"] = _pairs(visible_images(segment_ids, slots, config.tokens_per_image))
    if isinstance(config.encoder, TransformerConfig):
        sizes["encoder_pairs"] = _mean_pairs(config.encoder, bidirectional(encoder_ids))
    if isinstance(config.decoder, TransformerDecoderConfig):
        sizes["decoder_pairs"] = _mean_pairs(config.decoder, module.decoder_interval(batch))
    return sizes


def dense_sizes(config: ModelConfig, batch: Batch) -> Sizes:
    """The same of all that the batch's arrays have room for, with every query seeing every key. Shapes are enough."""
    rows, length = batch.tokens.shape
    tokens, has_images = rows * length, config.vision is not None and batch.images is not None
    images = rows * batch.images.shape[1] if has_images else 0
    pictures = images if images and not holds_features(batch.images, config.vision) else 0
    return {
        **dict.fromkeys(("samples", "tokens", "positions", "targets", "encoder_tokens"), tokens),
        **dict.fromkeys(("images", "image_slots"), images),
        "pictures": pictures,
        **dict.fromkeys(("encoder_pairs", "decoder_pairs"), tokens * length),
        "fusion_pairs": tokens * (images // rows) * config.tokens_per_image if images else 0,
    }


def _pairs(interval: Interval) -> Shaped[Array, ""]:
    # Not int32: 64 rows of 8,192 positions have as many pairs as it can hold.
    return jnp.sum(jnp.maximum(interval.end - interval.start, 0), dtype=jnp.float32)


def _mean_pairs(stack: TransformerConfig, interval: Interval) -> Shaped[Array, ""]:
    windows = Counter(stack.layer_windows)
    total = sum(count * _pairs(sliding_window(interval, window)) for window, count in windows.items())
    return total / stack.num_layers
