"""Conversations about digit scenes: whoever keeps in mind what is spoken of can answer all; nobody else can."""

import re

import numpy as np
import pytest

from jaxfusion.data.builtin.digit_dialogues import converse, make_record, turns_of
from jaxfusion.data.builtin.digit_language import COLOURS, QUADRANTS, SIZES, SceneDigit

MOVES = {"to the left of": (0, -1), "to the right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
ZH = dict(zip((*COLOURS, *SIZES), ("红色", "绿色", "蓝色", "黄色", "白色", "小", "大"), strict=True))


def scene(rng: np.random.Generator) -> list[SceneDigit]:
    quadrants = sorted(rng.permutation(4)[: rng.integers(2, 5)].tolist())
    return [
        SceneDigit(int(rng.integers(10)), quadrant, int(rng.integers(5)), int(rng.integers(2)), 0)
        for quadrant in quadrants
    ]


@pytest.fixture(scope="module")
def talks():
    rng = np.random.default_rng(0)
    scenes = [scene(rng) for _ in range(300)]
    return [(digits, *converse(digits, rng)) for digits in scenes]


def replies(digits, questions):
    """What a listener answers who sees the scene and remembers what was spoken of."""
    at, place, asked, said = {divmod(d.quadrant, 2): d for d in digits}, None, None, []
    for question in questions:
        if named := re.search("|".join(QUADRANTS), question):
            place = divmod(QUADRANTS.index(named[0]), 2)
        if moved := re.search("|".join(MOVES), question):
            place = tuple(np.add(place, MOVES[moved[0]]).tolist())
        for word, name in (("Which", "digit"), ("colour", "colour"), ("small or large", "size")):
            asked = name if word in question else asked
        digit = at[place]
        said.append({"digit": str(digit.digit), "colour": COLOURS[digit.colour], "size": SIZES[digit.size]}[asked])
    return said


def test_a_listener_who_remembers_answers_all(talks):
    for digits, english, chinese in talks:
        questions, answers = map(list, zip(*english, strict=True))
        assert replies(digits, questions) == answers
        assert [ZH.get(answer, answer) for answer in answers] == [answer for _, answer in chinese]


def test_only_the_first_question_names_a_place_and_none_comes_twice(talks):
    lengths = []
    for _, english, chinese in talks:
        named = [any(place in question for place in QUADRANTS) for question, _ in english]
        assert named == [True] + [False] * (len(named) - 1)
        assert all(("它" in question) != first for (question, _), first in zip(chinese, named, strict=True))
        lengths.append(len(english))
    assert set(lengths) <= {3, 4, 5} and np.mean(lengths) > 4
    moved = [question.startswith("And") for _, english, _ in talks for question, _ in english]
    assert 0.2 < np.mean(moved) < 0.6


def test_a_record_is_a_scene_and_its_turns():
    first, again, other = make_record("test", 5), make_record("test", 5), make_record("validation", 5)
    assert first == again != other
    assert [turn["from"] for turn in first["conversations_en"]] == ["human", "gpt"] * (
        len(first["conversations_en"]) // 2
    )
    assert turns_of([("a?", "b")]) == [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]
