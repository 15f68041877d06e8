"""Putting segments into rows: the one place where a Batch is made from samples."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxfusion.batch import Batch, TopK
from jaxfusion.config.model import FeaturesConfig, LookupConfig, ModelConfig
from jaxfusion.data.tokenise import Segment
from jaxfusion.errors import UserError


class ImageSlots(NamedTuple):
    """How many images each row has a place for, and what one of them is."""

    number: int
    shape: tuple[int, ...]
    dtype: type

    @classmethod
    def of(cls, model: ModelConfig, number: int, *, features: bool = False) -> "ImageSlots | None":
        """None where the model sees nothing, or there is nothing to see.

        features: a network's tokens, computed beforehand in the model's dtype, stand for the pictures.
        """
        if model.vision is None or number == 0:
            return None
        match model.vision:
            case LookupConfig():
                return cls(number, (), np.int32)
            case FeaturesConfig(num_tokens=num_tokens, feature_width=width):
                return cls(number, (num_tokens, width), np.float32)
            case network if features:
                return cls(number, (network.num_tokens, network.feature_width), jnp.dtype(model.dtype).type)
            case network:
                return cls(number, (network.image_size, network.image_size, 3), np.uint8)


def pack(
    rows: Sequence[Sequence[Segment]],
    row_length: int,
    tokens_per_image: int,
    slots: ImageSlots | None = None,
    packed: bool | None = None,
) -> Batch:
    """A Batch of NumPy arrays with the given segments in each row, one after the other.

    row_length: T, to which rows are padded.
    slots:  the row's image slots, whether they are needed or not; None: as many as the fullest row has images.
    packed: `Batch.packed`; None: whether any row has several segments.
    With both given, all batches have one shape and type, so that nothing is compiled anew for one of them.
    Raises UserError where a row does not fit: nothing is ever cut off.
    """
    for segments in rows:
        length = sum(len(segment.tokens) for segment in segments)
        if length > row_length:
            raise UserError(
                f"config.data.row_length: {length} positions are needed, images included, and a row has {row_length}; "
                f"set it to at least {length}"
            )
    shape = (len(rows), row_length)
    columns = {
        "tokens": np.zeros(shape, np.int32),
        "targets": np.zeros(shape, np.int32),
        "loss_weights": np.zeros(shape, np.float32),
        "prompt_mask": np.zeros(shape, bool),
        "visual_index": np.full(shape, -1, np.int32),
    }
    positions, segment_ids = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    images = _image_grid(rows, slots)
    image_segment_ids = None if images is None else np.zeros(images.shape[:2], np.int32)
    told = _told_grid(rows, row_length)
    for row, segments in enumerate(rows):
        start, image = 0, 0
        for number, segment in enumerate(segments, 1):
            where = np.s_[row, start : start + len(segment.tokens)]
            for name, column in columns.items():
                column[where] = getattr(segment, name)
            columns["visual_index"][where] += np.where(segment.visual_index >= 0, image * tokens_per_image, 0)
            positions[where] = np.arange(len(segment.tokens))
            segment_ids[where] = number
            if told is not None:
                for grid, said in zip(told, segment.told, strict=True):
                    grid[row, start + np.flatnonzero(segment.loss_weights)] = said
            for picture in segment.images:
                images[row, image], image_segment_ids[row, image] = picture, number
                image += 1
            start += len(segment.tokens)
    return Batch(
        **columns,
        positions=positions,
        segment_ids=segment_ids,
        images=images,
        image_segment_ids=image_segment_ids,
        told=told,
        packed=any(len(segments) > 1 for segments in rows) if packed is None else packed,
    )


def _told_grid(rows: Sequence[Sequence[Segment]], row_length: int) -> TopK | None:
    """Room for what a teacher says, where any segment brings that: then all do."""
    first = next((segment.told for segments in rows for segment in segments), None)
    if first is None:
        return None
    shape, k = (len(rows), row_length), first.ids.shape[-1]
    ids = np.broadcast_to(np.arange(k, dtype=np.int32), (*shape, k)).copy()  # different ones, as everywhere
    return TopK(ids, np.zeros((*shape, k), np.float32), np.zeros(shape, np.float32))


def _image_grid(rows: Sequence[Sequence[Segment]], slots: ImageSlots | None) -> np.ndarray | None:
    pictures = [[picture for segment in segments for picture in segment.images] for segments in rows]
    most = max(map(len, pictures), default=0)
    if slots is None:
        first = next((picture for row in pictures for picture in row), None)
        if first is None:
            return None
        slots = ImageSlots(most, first.shape, first.dtype)
    if most > slots.number:
        raise UserError(
            f"config.data.images_per_row: a row has {most} images and places for {slots.number}; "
            f"set it to at least {most}"
        )
    return np.zeros((len(rows), slots.number, *slots.shape), slots.dtype)
