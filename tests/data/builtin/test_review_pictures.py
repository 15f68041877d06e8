"""Every picture fills its frame, varies, and differs from the pictures of another mood."""

import numpy as np
import pytest

from jaxfusion.data.builtin.review_pictures import OVERSAMPLING, PICTURES, Canvas, draw_picture

KINDS = [kind for kinds in PICTURES.values() for kind in kinds]


def rendered(kind, seed: int) -> np.ndarray:
    canvas = Canvas(np.random.default_rng(seed))
    kind(canvas)
    return np.asarray(canvas.image.reduce(OVERSAMPLING)).astype(int)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_pictures_are_filled_and_vary(kind):
    first, second = rendered(kind, 0), rendered(kind, 1)
    assert first.shape == (48, 48, 3)
    assert (first.sum(axis=-1) > 0).all()  # nothing of the black canvas is left
    assert np.abs(first - second).mean() > 5
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 20


def test_pleased_and_displeased_differ_where_they_share_a_subject():
    for pleased, displeased in zip(PICTURES["pleased"], PICTURES["displeased"], strict=True):
        # The same seed gives the same place, size and colours, so what differs is the message.
        assert np.abs(rendered(pleased, 3) - rendered(displeased, 3)).max(axis=-1).mean() > 5


def test_a_mood_draws_all_of_its_pictures():
    drawn = [draw_picture("neutral", np.random.default_rng(seed)) for seed in range(40)]
    assert all(image.shape == (48, 48, 3) and image.dtype == np.uint8 for image in drawn)
    assert len({image.tobytes() for image in drawn}) == 40
