"""`handwritten_digits`: pictures of the digits that their labels say, in handwriting that no other split has."""

import numpy as np

from jaxfusion.data.builtin import handwritten_digits
from jaxfusion.data.builtin.digit_scenes import handwriting, split_sources
from jaxfusion.data.builtin.handwritten_digits import CANVAS, draw_digit, make_record
from jaxfusion.data.images import read_image


def test_a_record_is_of_its_split_s_handwriting_and_made_again_alone():
    for split in handwritten_digits.SPLITS:
        records = [make_record(split, index) for index in range(40)]
        assert {record["source"] for record in records} <= set(split_sources()[split].tolist())
        assert all(record["digit"] == handwriting()[1][record["source"]] for record in records)
        assert records[7] == make_record(split, 7) and len({record["digit"] for record in records}) == 10
        assert read_image(records[0]["image"]).shape == (CANVAS, CANVAS, 3)


def test_the_digit_is_lighter_than_the_ground_and_whole():
    for source in range(20):
        picture = draw_digit(source, np.random.default_rng(source)).astype(float).mean(axis=-1)
        edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert picture.max() > 150 and edge.max() < 130
