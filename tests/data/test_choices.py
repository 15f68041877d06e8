"""Multiple choice: the right letter however a record gives it, and the letter that an answer gives in any form."""

import numpy as np
import pytest

from jaxfusion.data.choices import letter_said, lettered, right_letter
from jaxfusion.errors import UserError

COLOURS = ("red", "green", "blue")


def test_choices_are_lines_by_letter():
    assert lettered(COLOURS) == ["A. red", "B. green", "C. blue"]


@pytest.mark.parametrize("right", [1, np.int64(1), np.uint8(1), "B", b"B", "green", b"green"])
def test_the_right_one_is_a_place_a_letter_or_a_text(right):
    assert right_letter(right, COLOURS) == "B"


@pytest.mark.parametrize(
    ("right", "choices", "message"),
    [
        (3, COLOURS, "3 is no place of 3 choices, which are counted from 0"),
        (-1, COLOURS, "-1 is no place"),
        (True, COLOURS, "True is no place, letter or text"),
        (1.0, COLOURS, "1.0 is no place, letter or text"),
        (["red"], COLOURS, "is no place, letter or text"),
        ("D", COLOURS, "'D' is none of the 3 choices, nor a letter"),
        ("", COLOURS, "'' is none of"),
        (b"\xff", COLOURS, "it is not UTF-8"),
        ("red", ("red", "red"), "'red' is several of the choices; give the right one's place"),
        ("A", ("B", "A"), "'A' is several of the choices"),  # the letter of B, and the text of the second
        (0, ("red",), "there are 1 choices; give 2 to 26"),
        (0, tuple(map(str, range(27))), "there are 27 choices"),
    ],
)
def test_what_is_no_choice_or_two_is_refused(right, choices, message):
    with pytest.raises(UserError, match=message):
        right_letter(right, choices)


def test_a_letter_that_names_its_own_text_is_right():
    assert right_letter("A", ("A", "B")) == "A"


@pytest.mark.parametrize(
    "text",
    ["B", "b", " B ", "B.", "(B)", "[B]", "(b) green", "B) green", "B. green", "B: green", "B、绿", "（B）", "green"],
)
def test_a_letter_is_heard_whatever_stands_around_it(text):
    assert letter_said(text, COLOURS) == "B"


@pytest.mark.parametrize("text", ["", "Blue", "a cat", "B green", "it is B", "2"])
def test_what_names_no_letter_is_none(text):
    assert letter_said(text, COLOURS) == ""


def test_a_number_is_a_place_and_a_text_a_text_though_choices_be_numbers():
    assert right_letter(2, ("1", "2", "3")) == "C" and right_letter("2", ("1", "2", "3")) == "B"  # MMLU has such


def test_names_of_a_record_s_own_come_before_letters_and_texts():
    for labels, right in ((("1", "2", "3"), "2"), (("A", "B", "C"), "B"), (("x", "A", "C"), "A")):
        assert right_letter(right, COLOURS, labels) == "B"
    assert right_letter("1", ("2", "1"), ("1", "2")) == "A"  # and not the second's text
    with pytest.raises(UserError, match="there are 3 choices and 2 names for them"):
        right_letter("A", COLOURS, ("A", "B"))


def test_a_letter_alone_is_one_whatever_the_choices_say():
    assert letter_said("A", ("B", "A")) == "A" and letter_said("(b)", ("b", "c")) == "B"
    assert letter_said("I", ("you", "I")) == "B"  # there is no ninth choice
    assert letter_said("A. Lincoln", ("Grant", "A. Lincoln")) == "B"
