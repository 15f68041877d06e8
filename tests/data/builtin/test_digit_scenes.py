"""Every word of a record is true of its picture, and no handwriting crosses from one split to another."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from jaxfusion.data.builtin.digit_scenes import SPLITS, make_record, split_sources

PLACES = {"top left": 0, "top right": 1, "bottom left": 2, "bottom right": 3}
COLOURS = ["red", "green", "blue", "yellow", "white"]
PLACES_ZH = {"左上角": 0, "右上角": 1, "左下角": 2, "右下角": 3}
COLOURS_ZH = ["红色", "绿色", "蓝色", "黄色", "白色"]
# Which channels are strong.
COLOUR_OF = {
    (True, False, False): "red",
    (False, True, False): "green",
    (False, False, True): "blue",
    (True, True, False): "yellow",
    (True, True, True): "white",
}


@pytest.fixture(scope="module")
def records():
    return {split: [make_record(split, i) for i in range(n)] for split, n in (("train", 700), ("test", 300))}


def facts(record) -> list[tuple]:
    return [(d["size"], d["colour"], d["digit"], d["quadrant"]) for d in record["digits"]]


def pixels(record) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(record["image"]))).astype(int)


def cells(record) -> list[np.ndarray]:
    image = pixels(record)
    return [image[top : top + 24, left : left + 24] for top in (0, 24) for left in (0, 24)]


def test_handwriting_is_divided_between_the_splits(records):
    sources = split_sources()
    together = np.concatenate(list(sources.values()))
    assert sorted(together.tolist()) == list(range(1797))
    assert len(sources["train"]) == 1400
    for split, made in records.items():
        assert {d["source"] for record in made for d in record["digits"]} <= set(sources[split].tolist())


def test_digits_are_what_their_handwriting_shows(records):
    target = load_digits().target
    for record in records["train"] + records["test"]:
        assert [d["digit"] for d in record["digits"]] == [target[d["source"]] for d in record["digits"]]


def test_captions_say_exactly_what_is_there(records):
    for record in records["train"] + records["test"]:
        en = re.findall(r"a (small|large) (\w+) (\d) at the (\w+ \w+)", record["caption_en"])
        assert [(size == "large", COLOURS.index(c), int(d), PLACES[place]) for size, c, d, place in en] == facts(record)
        zh = re.findall(r"(..角)有一个([小大])的(..)的(\d)", record["caption_zh"])
        assert [(size == "大", COLOURS_ZH.index(c), int(d), PLACES_ZH[p]) for p, size, c, d in zh] == facts(record)
        assert [place for *_, place in facts(record)] == sorted(place for *_, place in facts(record))
        assert record["count"] + 1 == len(en) == int(record["answers_en"][-2])
        assert sum(int(d) for _, _, d, _ in en) == int(record["answers_zh"][-1])


def test_every_kind_of_scene_occurs(records):
    assert {record["count"] for record in records["train"]} == {0, 1, 2, 3}
    seen = {fact for record in records["train"] for fact in facts(record)}
    assert {(size, colour, place) for size, colour, _, place in seen} == {
        (size, colour, place) for size in range(2) for colour in range(5) for place in range(4)
    }


def test_colour_size_and_place_are_seen_in_the_pixels(records):
    for record in records["test"]:
        there = {place: (size, colour) for size, colour, _, place in facts(record)}
        for place, cell in enumerate(cells(record)):
            bright = cell.max(axis=-1) > 120
            assert bright.any() == (place in there)
            if place in there:
                size, colour = there[place]
                red, green, blue = cell[bright].mean(axis=0) > 115
                assert COLOURS[colour] == COLOUR_OF[(red, green, blue)]
                height = np.ptp(np.flatnonzero((cell.max(axis=-1) > 90).any(axis=1))) + 1
                assert (height >= 15) == size


def test_unseen_handwriting_is_legible_at_both_sizes(records):
    """A classifier that never sees the digit's place or size reads the test split from its pixels."""

    def crops(made):
        for record in made:
            for size, _, digit, place in facts(record):
                cell = cells(record)[place].max(axis=-1).astype(np.float32)
                rows, columns = (np.flatnonzero((cell > 100).any(axis=axis)) for axis in (1, 0))
                strokes = Image.fromarray(cell[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
                # Centred on a square, so that a narrow 1 stays narrow.
                square = Image.new("F", (max(strokes.size),) * 2)
                square.paste(
                    strokes, tuple((side - own) // 2 for side, own in zip(square.size, strokes.size, strict=True))
                )
                small = np.asarray(square.resize((10, 10), Image.Resampling.BILINEAR))
                yield small.ravel() / small.max(), digit, size

    x, y, _ = map(np.array, zip(*crops(records["train"]), strict=True))
    model = SVC(C=10, gamma=0.05).fit(x, y)
    x, y, large = map(np.array, zip(*crops(records["test"]), strict=True))
    right = model.predict(x) == y
    assert right[large == 0].mean() > 0.95
    assert right[large == 1].mean() > 0.95


def test_a_record_depends_on_its_split_and_index_alone():
    assert make_record("test", 5) == make_record("test", 5)
    images = {make_record(split, index)["image"] for split in SPLITS for index in range(20)}
    assert len(images) == 20 * len(SPLITS)
