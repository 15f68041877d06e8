"""Of the choices on a digit scene one is right, by the digits that it was drawn from, and it may stand anywhere."""

import functools
import operator

import numpy as np
import pytest

from jaxfusion.data.builtin import digit_choices
from jaxfusion.data.builtin.digit_choices import make_record, questions_on
from jaxfusion.data.builtin.digit_language import COLOURS, QUADRANTS, SceneDigit

DIGITS = [SceneDigit(3, 0, 0, 1, 5), SceneDigit(3, 1, 2, 0, 6), SceneDigit(7, 3, 1, 1, 7)]


@pytest.fixture(scope="module")
def records():
    return [make_record("train", number) for number in range(200)]


def test_every_question_is_answered_as_the_scene_is():
    answers = {
        "How many digits are there?": "3",
        "Which digit is at the top left?": "3",
        "Which digit is at the top right?": "3",
        "Which digit is at the bottom right?": "7",
        "What colour is the digit at the top left?": "red",
        "What colour is the digit at the top right?": "blue",
        "What colour is the digit at the bottom right?": "green",
        "Where is the 7?": "bottom right",  # and nobody asks where the 3 is, of which there are two
    }
    asked = questions_on(DIGITS, np.random.default_rng(0))
    assert {question: choices[right] for question, _, choices, _, right in asked} == answers
    for question, _, choices, choices_zh, _ in asked:
        assert len(choices) == len(set(choices)) == len(choices_zh) == len(set(choices_zh)) == 4
        if "digit is at" in question and "colour" not in question:
            assert {"3", "7"} < set(choices)  # what else is in the scene is among them
        if "colour" in question:
            assert {"red", "blue", "green"} < set(choices) <= set(COLOURS)
        if question.startswith("Where"):
            assert set(choices) == set(QUADRANTS)


def test_both_languages_ask_the_same(records):
    words = dict(
        zip(("red", "green", "blue", "yellow", "white"), ("红色", "绿色", "蓝色", "黄色", "白色"), strict=True)
    )
    words |= dict(zip(QUADRANTS, ("左上角", "右上角", "左下角", "右下角"), strict=True))
    for record in records:
        names = ("questions_en", "questions_zh", "choices_en", "choices_zh", "answers")
        assert len({len(record[name]) for name in names}) == 1 and len(record["answers"]) <= 4
        for english, chinese in zip(record["choices_en"], record["choices_zh"], strict=True):
            assert [words.get(choice, choice) for choice in english] == chinese


def test_the_right_one_stands_anywhere(records):
    counts = np.bincount(functools.reduce(operator.iadd, (record["answers"] for record in records), []), minlength=4)
    assert len(counts) == 4 and counts.min() > 0.8 * counts.mean()


def test_a_record_depends_on_its_split_and_index_alone():
    first, again, other = make_record("test", 5), make_record("test", 5), make_record("validation", 5)
    assert first == again != other
    assert set(digit_choices.SPLITS) == {"train", "validation", "test"}
