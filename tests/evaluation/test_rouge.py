"""ROUGE: the numbers of the `rouge_score` package on texts of every kind, and by hand."""

import pytest

from jaxfusion.evaluation.rouge import rouge
from jaxfusion.evaluation.words import chinese_characters, plain_words

# Prediction, references, and what rouge_score 0.1.2 gives: ROUGE-L, 1 and 2, each with the reference it fits best.
CASES = [
    ("the cat sat on the mat", ["a cat was sitting on the mat"], (0.6153846153846153, 0.6153846153846153, 4 / 11)),
    (
        "Police killed the gunman.",
        ["police kill the gunman", "the gunman was shot by police, who killed him"],
        (0.75, 0.75, 1 / 3),
    ),
    (
        "The café's 3.5-star soup wasn't good!",
        ["The cafe's soup (3.5 stars) was not good."],
        (0.5, 0.6, 0.1111111111111111),
    ),
    ("the the the the", ["the cat", "the the dog"], (0.5714285714285715, 0.5714285714285715, 0.4)),
    ("", ["something"], (0.0, 0.0, 0.0)),
    ("unrelated words here", ["entirely other text"], (0.0, 0.0, 0.0)),
    (
        "3 guests: food praised, service criticised, price mixed.",
        [
            "2 guests: food praised, service mixed, price mixed.",
            "3 guests: price mixed, food praised.",
        ],
        (0.75, 0.8571428571428571, 0.5714285714285714),
    ),
]


@pytest.mark.parametrize(("prediction", "references", "expected"), CASES)
def test_scores_are_those_of_the_reference_implementation(prediction, references, expected):
    found = rouge(prediction, references)
    assert tuple(found.values()) == pytest.approx(expected, abs=1e-9)
    assert list(found) == ["rouge_l", "rouge_1", "rouge_2"]


def test_chinese_is_scored_by_character():
    found = rouge("菜品好评。", ["菜品差评，"], chinese_characters)  # 菜 品 评 of four are common, 菜品 of three pairs
    assert found == pytest.approx({"rouge_l": 3 / 4, "rouge_1": 3 / 4, "rouge_2": 1 / 3})


def test_words_are_runs_of_letters_and_digits():
    assert plain_words("A dog's 3.5-star Café") == ["a", "dog", "s", "3", "5", "star", "caf"]
