"""Putting segments into rows: the one place where a Batch is made from samples."""

from collections.abc import Sequence

import numpy as np

from jaxfusion.batch import Batch
from jaxfusion.data.tokenise import Segment
from jaxfusion.errors import UserError


def pack(rows: Sequence[Sequence[Segment]], row_length: int, tokens_per_image: int) -> Batch:
    """A Batch of NumPy arrays with the given segments in each row, one after the other.

    row_length: T, to which rows are padded; the image slots M are as many as the fullest row has images.
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
    slots = max((sum(len(segment.images) for segment in segments) for segments in rows), default=0)
    images, image_segment_ids = _image_grid(rows, slots), np.zeros((len(rows), slots), np.int32)
    for row, segments in enumerate(rows):
        start, image = 0, 0
        for number, segment in enumerate(segments, 1):
            where = np.s_[row, start : start + len(segment.tokens)]
            for name, column in columns.items():
                column[where] = getattr(segment, name)
            columns["visual_index"][where] += np.where(segment.visual_index >= 0, image * tokens_per_image, 0)
            positions[where] = np.arange(len(segment.tokens))
            segment_ids[where] = number
            for picture in segment.images:
                images[row, image], image_segment_ids[row, image] = picture, number
                image += 1
            start += len(segment.tokens)
    return Batch(
        **columns,
        positions=positions,
        segment_ids=segment_ids,
        images=images,
        image_segment_ids=None if images is None else image_segment_ids,
        packed=any(len(segments) > 1 for segments in rows),
    )


def _image_grid(rows: Sequence[Sequence[Segment]], slots: int) -> np.ndarray | None:
    pictures = (picture for segments in rows for segment in segments for picture in segment.images)
    first = next(pictures, None)
    return None if first is None else np.zeros((len(rows), slots, *first.shape), first.dtype)
