"""Rows: what stands where, and what is refused."""

import jax
import numpy as np
import pytest

from jaxfusion.data.packing import ImageSlots, pack
from jaxfusion.data.tokenise import Segment
from jaxfusion.errors import UserError


def segment(length, num_images, per_image, shade):
    visual_index = np.full(length, -1, np.int32)
    visual_index[: num_images * per_image] = np.arange(num_images * per_image)
    tokens = np.arange(length, dtype=np.int32) + 10 * shade
    images = [np.full((2, 2, 3), shade, np.uint8)] * num_images
    return Segment(tokens, tokens + 1, np.ones(length, np.float32), np.zeros(length, bool), visual_index, images)


def test_segments_stand_one_after_the_other_with_their_own_images():
    batch = pack([[segment(4, 1, 2, 1), segment(5, 2, 2, 2)], [segment(3, 0, 2, 3)]], row_length=10, tokens_per_image=2)
    assert batch.segment_ids.tolist() == [[1] * 4 + [2] * 5 + [0], [1] * 3 + [0] * 7]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4, 0], [0, 1, 2] + [0] * 7]
    assert batch.visual_index[0].tolist() == [0, 1, -1, -1, 2, 3, 4, 5, -1, -1]
    assert batch.visual_index[1].tolist() == [-1] * 10
    assert batch.image_segment_ids.tolist() == [[1, 2, 2], [0, 0, 0]]
    assert batch.images[:, :, 0, 0, 0].tolist() == [[1, 2, 2], [0, 0, 0]]
    assert batch.tokens[0].tolist() == [10, 11, 12, 13, 20, 21, 22, 23, 24, 0]
    assert batch.loss_weights.sum() == 12
    assert batch.packed


def test_one_segment_a_row_is_not_packed():
    batch = pack([[segment(3, 1, 1, 1)], [segment(2, 0, 1, 2)]], row_length=4, tokens_per_image=1)
    assert not batch.packed
    assert batch.images.shape == (2, 1, 2, 2, 3)
    assert pack([[segment(2, 0, 1, 1)]], 4, 1).images is None


def test_slots_that_are_given_are_there_in_every_batch():
    slots = ImageSlots(3, (2, 2, 3), np.uint8)
    rows = [[[segment(2, 0, 1, 1)]], [[segment(4, 3, 1, 2)]], [[segment(2, 1, 1, 3), segment(2, 1, 1, 4)]]]
    batches = [pack(row, 4, 1, slots, packed=True) for row in rows]
    shapes = {str(jax.tree.map(lambda x: (x.shape, x.dtype), batch)) for batch in batches}
    assert len(shapes) == 1
    assert [batch.image_segment_ids.tolist() for batch in batches] == [[[0, 0, 0]], [[1, 1, 1]], [[1, 2, 0]]]
    assert not batches[0].images.any()
    with pytest.raises(UserError, match=r"config\.data\.images_per_row: a row has 4 images .* set it to at least 4"):
        pack([[segment(4, 4, 1, 1)]], 4, 1, slots)


def test_what_does_not_fit_is_refused_with_the_length_it_needs():
    with pytest.raises(UserError, match=r"config\.data\.row_length: 9 positions are needed.* set it to at least 9"):
        pack([[segment(4, 0, 1, 1), segment(5, 0, 1, 2)]], row_length=8, tokens_per_image=1)
