"""Open answers by the VQA challenge's rules, as its evaluation page states them and its script applies them."""

import itertools

import numpy as np
import pytest

from jaxfusion.errors import UserError
from jaxfusion.evaluation import normalise_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Yes", "yes"),  # the page: all lower case
        ("a dog.", "dog"),  # no periods, but in decimals; no articles
        ("3.5", "3.5"),
        ("U.S.A.", "usa"),
        ("The cat and an apple", "cat and apple"),
        ("two", "2"),  # number words as digits
        ("None", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("dont", "don't"),  # contractions get their apostrophe
        ("couldntve", "couldntve"),  # where one is missing, not two
        ("couldn'tve", "couldn't've"),
        ("its", "its"),
        ("girl's", "girl's"),  # apostrophes and colons stay
        ("2:50 pm", "2:50 pm"),
        ("100,978", "100978"),  # a comma between digits leaves no space
        ("red,blue", "red blue"),  # other marks leave one
        ("black/white", "black white"),
        ("hi-fi", "hi fi"),
        ("red, blue", "red blue"),  # the script: where a space stands beside the mark it takes no further one,
        ("t-shirt - red", "tshirt red"),  # anywhere in the answer
        ("1,000 t-shirts", "1000 tshirts"),  # nor where a number has a comma
        ("what?!", "what"),
        ("on\nthe\ttable ", "on table"),
        ("somebody'd", "somebodyd"),  # as it stands in the script's table
        ("Im", "im"),  # the script looks it up in lower case, and its table has capitals
        ("", ""),
    ],
)
def test_answers_are_compared_in_this_form(answer, normal):
    assert normalise_answer(answer) == normal
    assert normalise_answer(normal) == normal


def test_accuracy_is_the_mean_over_all_who_could_be_left_out():
    answers = ["yes"] * 2 + ["Yes."] + ["no"] * 6 + ["maybe"]
    for said in ("yes", "no", "maybe", "never"):
        agree = [normalise_answer(text) == said for text in answers]
        wanted = np.mean([min(1, sum(nine) / 3) for nine in itertools.combinations(agree, 9)])
        assert vqa_accuracy([said], [answers]) == pytest.approx(wanted)
    # The well-known numbers for 0, 1, 2, 3 and 4 of ten people who agree.
    given = [["yes"] * n + ["other"] * (10 - n) for n in range(5)]
    scores = [vqa_accuracy(["yes"], [answers]) for answers in given]
    assert scores == pytest.approx([0, 0.3, 0.6, 0.9, 1.0])
    assert vqa_accuracy(["yes"] * 5, given) == pytest.approx(np.mean(scores))


def test_too_few_answers_are_refused():
    with pytest.raises(UserError, match=r"^references: record 1 has 3 for its answers, and VQA accuracy needs 4"):
        vqa_accuracy(["a", "a"], [["a"] * 4, ["a"] * 3])
    with pytest.raises(UserError, match=r"^references: record 0 has a text"):
        vqa_accuracy(["a"], ["aaaaaa"])
