"""Batches made on the host from a seed: the shapes and the padding of real ones, and nothing worth learning."""

from dataclasses import replace

import numpy as np

from benchmarks.presets import Preset
from jaxfusion.batch import Batch
from jaxfusion.config.model import (
    AddFusionConfig,
    FeaturesConfig,
    LookupConfig,
    PlaceFusionConfig,
    TransformerDecoderConfig,
)


def synthetic_batch(preset: Preset, seed: int = 0) -> Batch:
    """A Batch of NumPy arrays. A segment is its images, a prompt and an answer of as many positions; the same seed
    gives the same batch.

    Raises ValueError where a segment's images leave no room for text.
    """
    rng, model = np.random.default_rng(seed), preset.model
    rows, length, segments = preset.batch_size, preset.row_length, preset.segments_per_row
    images = preset.images_per_row if model.vision is not None else 0
    per_segment = images // segments
    placed = per_segment * model.tokens_per_image if isinstance(model.fusion, PlaceFusionConfig) else 0

    lengths = rng.integers(int(length * preset.shortest), length, size=rows, endpoint=True)
    if min(lengths) // segments < placed + 2:
        raise ValueError(f"{per_segment} images take {placed} positions of a segment of {min(lengths) // segments}")
    segment, positions, spans = np.zeros((3, rows, length), np.int64)
    for row in range(rows):
        own = _segment_lengths(rng, lengths[row], segments, placed + 2)
        real = slice(0, lengths[row])
        segment[row, real] = np.repeat(np.arange(segments), own)
        positions[row, real] = np.concatenate([np.arange(n) for n in own])
        spans[row, real] = np.repeat(own, own)
    real = np.arange(length) < lengths[:, None]
    prompt = real & (positions < placed + (spans - placed) // 2)

    visual_index = np.full((rows, length), -1)
    if isinstance(model.fusion, PlaceFusionConfig):
        visual_index = np.where(real & (positions < placed), segment * placed + positions, -1)
    elif isinstance(model.fusion, AddFusionConfig) and per_segment:
        visual_index = np.where(real, segment * per_segment * model.tokens_per_image, -1)

    # The last token of the vocabulary never comes up: peers mark the places of images with it.
    tokens = rng.integers(0, model.text_embedding.vocab_size - 1, size=(rows, length))
    if isinstance(model.decoder, TransformerDecoderConfig):
        targets = np.roll(tokens, -1, axis=1)
        learned = real & ~prompt & (np.roll(segment + real, -1, axis=1) == segment + real)
    else:
        targets = rng.integers(0, model.decoder.num_classes or model.text_embedding.vocab_size, size=(rows, length))
        learned = real
    return Batch(
        tokens=tokens.astype(np.int32),
        positions=positions.astype(np.int32),
        segment_ids=np.where(real, segment + 1, 0).astype(np.int32),
        targets=targets.astype(np.int32),
        loss_weights=learned.astype(np.float32),
        prompt_mask=prompt,
        visual_index=visual_index.astype(np.int32),
        images=_images(preset, rng) if images else None,
        image_segment_ids=np.tile(np.repeat(np.arange(segments) + 1, per_segment), (rows, 1)).astype(np.int32)
        if images
        else None,
        packed=segments > 1,
    )


def prompt_batch(preset: Preset, rows: int, text_tokens: int) -> Batch:
    """Prompts to answer: a row is an image and so many tokens of text, and none is padded."""
    length = prompt_length(preset, text_tokens)
    shape = {"batch_size": rows, "row_length": length, "images_per_row": 1, "segments_per_row": 1, "shortest": 1.0}
    batch = synthetic_batch(replace(preset, **shape))
    return batch.replace(prompt_mask=batch.segment_ids > 0)


def prompt_length(preset: Preset, text_tokens: int) -> int:
    """Positions of a prompt of `prompt_batch`."""
    model = preset.model
    placed = model.vision is not None and isinstance(model.fusion, PlaceFusionConfig)
    return text_tokens + (model.tokens_per_image if placed else 0)


def _segment_lengths(rng: np.random.Generator, total: int, segments: int, shortest: int) -> np.ndarray:
    """Lengths that add up to total, of at least `shortest`: what is left is shared out by Dirichlet(2), so that the
    longest of eight segments gets about twice the mean of it."""
    left = total - segments * shortest
    ends = np.floor(left * np.cumsum(rng.dirichlet(np.full(segments, 2.0)))).astype(np.int64)
    ends[-1] = left
    return shortest + np.diff(ends, prepend=0)


def _images(preset: Preset, rng: np.random.Generator) -> np.ndarray:
    shape = (preset.batch_size, preset.images_per_row)
    match preset.model.vision:
        case LookupConfig(num_images=num_images):
            return rng.integers(0, num_images, size=shape, dtype=np.int32)
        case FeaturesConfig(num_tokens=num_tokens, feature_width=width):
            return rng.standard_normal((*shape, num_tokens, width), dtype=np.float32)
        case vision:
            return rng.integers(0, 256, size=(*shape, vision.image_size, vision.image_size, 3), dtype=np.uint8)
