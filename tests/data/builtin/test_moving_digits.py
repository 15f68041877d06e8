"""What is said of a clip is true of its pixels, and its single frames tell nothing of where the digit goes."""

import re

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxfusion.data.builtin import moving_digits
from jaxfusion.data.builtin.digit_scenes import split_sources
from jaxfusion.data.builtin.moving_digits import make_record
from jaxfusion.data.images import read_image

WORDS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
WORDS_ZH = {"左": (0, -1), "右": (0, 1), "上": (-1, 0), "下": (1, 0)}


@pytest.fixture(scope="module")
def records():
    return [make_record("train", number) for number in range(400)] + [make_record("test", n) for n in range(100)]


def frames(record) -> np.ndarray:
    return np.stack([read_image(frame) for frame in record["video"]]).astype(int)


def move_of(record) -> tuple[int, int]:
    """By which the first frame has to be shifted, around the edges, to be the second."""
    first, second = frames(record)[:2]
    found = [
        (down, across)
        for down in range(-4, 5)
        for across in range(-4, 5)
        if np.array_equal(np.roll(first, (down, across), axis=(0, 1)), second)
    ]
    assert len(found) == 1
    return found[0]


def told(text: str, words: dict[str, tuple[int, int]]) -> list[int]:
    return np.sum([words[word] for word in re.findall("|".join(words), text)], axis=0).tolist()


def test_each_clip_moves_as_is_said(records):
    for record in records:
        move, pictures = move_of(record), frames(record)
        for number, picture in enumerate(pictures):
            shift = [number * way for way in move]
            np.testing.assert_array_equal(picture, np.roll(pictures[0], shift, axis=(0, 1)))
        way = np.sign(move).tolist()
        assert record["speed"] == np.abs(move).max()
        assert told(record["caption_en"], WORDS) == told(record["answers_en"][1], WORDS) == way
        assert told(record["caption_zh"], WORDS_ZH) == told(record["answers_zh"][1], WORDS_ZH) == way
        assert told(record["direction"], WORDS) == way
        assert pictures.shape[1:] == (32, 32, 3) and record["video_times"].tolist() == [n / 4 for n in range(8)]


def test_digits_are_what_their_handwriting_shows_and_of_their_split(records):
    target, sources = load_digits().target, split_sources()
    for number, record in enumerate(records):
        assert record["source"] in sources["train" if number < 400 else "test"]
        digit = target[record["source"]]
        assert record["caption_en"].startswith(f"{'an' if digit == 8 else 'a'} {digit} moves ")
        assert record["caption_zh"].startswith(f"一个{digit}向")
        assert record["answers_en"][0] == record["answers_zh"][0] == str(record["digit"]) == str(digit)


def test_each_direction_occurs_and_ways_back_are_never_shorter(records):
    counts = np.unique([record["direction"] for record in records], return_counts=True)[1]
    assert len(counts) == 8 and counts.min() > 30
    farthest = max(record["speed"] for record in records)
    assert 4 * farthest < 32 / 2  # between frames of which two are chosen of eight


def test_no_single_frame_tells_the_direction(monkeypatch):
    """At each moment the digit is anywhere, whichever way it goes: its places on a 4 x 4 grid, by direction, are as
    independent of it as chance has it (chi-squared), and are not where directions begin in one corner, say."""
    from scipy.stats import chi2_contingency

    monkeypatch.setattr(moving_digits, "ink", lambda _, side: np.pad(np.ones((1, 1), np.float32), (0, side - 1)))
    rng = np.random.default_rng(0)
    drawn = [dot_clip(rng) for _ in range(3000)]
    for number in (0, 3, 7):
        table = np.zeros((8, 16), int)
        for direction, places in drawn:
            down, across = places[number] // 8
            table[direction, down * 4 + across] += 1
        assert chi2_contingency(table).pvalue > 0.01


def dot_clip(rng: np.random.Generator) -> tuple[int, np.ndarray]:
    """A clip's direction, and where in each of its frames the dot is that stands for the digit."""
    direction = int(rng.integers(8))
    way = list(moving_digits.DIRECTIONS.values())[direction]
    clip = moving_digits.draw_clip(0, way, int(rng.choice(moving_digits.SPEEDS)), rng)
    return direction, np.array([np.unravel_index(frame.sum(axis=-1).argmax(), (32, 32)) for frame in clip])


def test_a_record_depends_on_its_split_and_index_alone():
    first, again, other = make_record("test", 5), make_record("test", 5), make_record("validation", 5)
    assert first["video"] == again["video"] != other["video"]
    assert first["caption_en"] == again["caption_en"]
