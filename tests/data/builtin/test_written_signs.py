"""Made-up letters: a class is told by its strokes, and never by what varies from one writing to the next."""

import numpy as np

from jaxfusion.data.builtin import written_signs
from jaxfusion.data.builtin.written_signs import draw_sign, make_record, sign
from jaxfusion.data.images import read_image


def ink(number, seed):
    """Where there is ink, in [0, 1]."""
    picture = draw_sign(number, np.random.default_rng(seed)).astype(np.float64).mean(-1)
    return (picture - picture.min()) / (picture.max() - picture.min())


def test_a_record_depends_on_its_split_and_number_alone():
    record = make_record("train", 7)
    assert record == make_record("train", 7) and record["sign"] == 7
    assert make_record("train", 7 + written_signs.NUM_SIGNS)["sign"] == 7
    assert record["image"] != make_record("train", 7 + written_signs.NUM_SIGNS)["image"]
    assert record["image"] != make_record("test", 7)["image"]
    assert read_image(record["image"]).shape == (24, 24, 3)


def test_signs_differ_in_their_strokes():
    shapes = {tuple(np.concatenate(sign(number)).round(3).ravel().tolist()) for number in range(360)}
    assert len(shapes) == 360
    assert all(2 <= len(sign(number)) <= 3 for number in range(360))


def test_writings_are_nearer_to_their_own_sign_than_to_others():
    """By the pixels' mean over other hands: far above chance, and not so easy that nothing is left to learn."""
    signs = range(40)
    means = np.stack([np.mean([ink(number, (0, i)) for i in range(12)], axis=0) for number in signs])
    nearest = [np.argmin(((means - ink(number, (1, number))) ** 2).sum((1, 2))) for number in signs]
    assert 0.4 < np.mean(np.array(nearest) == np.array(signs)) < 1
