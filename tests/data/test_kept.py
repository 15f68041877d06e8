"""Samples that are kept: read once, and never more bytes of them than may be."""

import numpy as np

from jaxfusion.data.kept import Kept, size_of
from jaxfusion.data.messages import Image, Sample, answer, ask


def reads(pictures=1, text=""):
    """A reader, and the places that it has read."""
    places = []

    def read(source, place):
        places.append(place)
        images = [Image(np.zeros((10, 10, 3), np.uint8))] * pictures
        return Sample(str(place), "en", (ask(*images, text), answer("a"))) if source else None

    return read, places


def test_what_fits_is_read_once():
    read, places = reads()
    kept = Kept(read, 10_000)
    assert [kept([1], place).id for place in (0, 1, 0, 1)] == ["0", "1", "0", "1"]
    assert places == [0, 1]


def test_the_oldest_go_where_pictures_or_texts_are_large():
    for pictures, text in ((30, ""), (0, "x" * 3000)):
        read, places = reads(pictures, text)
        one = size_of(read([1], 0))
        assert one > 9_000
        kept = Kept(read, 3 * one)
        places.clear()
        for place in (0, 1, 2, 0, 3, 0, 1):
            kept([1], place)
            assert kept.num_bytes <= 3 * one
        assert places == [0, 1, 2, 3, 1]


def test_one_that_is_larger_than_all_is_passed_on_and_records_left_out_count_too():
    read, places = reads(30)
    kept = Kept(read, 100)
    assert kept([1], 0).id == "0" and kept.num_bytes == 0
    assert kept([], 1) is None and places == [0, 1]
