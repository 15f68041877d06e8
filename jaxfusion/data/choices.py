"""Multiple choice: choices by letter, the letter of what is right, and the letter that somebody says."""

import re
import string
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from jaxfusion.errors import UserError

LETTERS = string.ascii_uppercase

# A letter alone, in brackets, or with a mark behind it and maybe the choice's text: "B", "(b)", "B.", "B) red".
SAID = re.compile(r"[(（\[]?([A-Za-z])(?:\s*[)）\].:：、．,，]|\s*$)")


def lettered(choices: Sequence[str]) -> list[str]:
    """A line a choice: "A. red"."""
    return [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]


def right_letter(right: Any, choices: Sequence[str], labels: Sequence[Any] = ()) -> str:
    """The letter of what a record says is right: a number is a place, from 0, whatever the choices are; a text a letter
    or a choice's text.

    labels: what the record itself calls the choices, where it does ("1" to "4"): then one of them, before all else.
    Raises UserError for what is none of these, or might be two, and for choices that letters cannot tell apart.
    """
    if not 2 <= len(choices) <= len(LETTERS):
        raise UserError(f"there are {len(choices)} choices; give 2 to {len(LETTERS)}")
    if labels:
        if len(labels) != len(choices):
            raise UserError(f"there are {len(choices)} choices and {len(labels)} names for them; give as many")
        if isinstance(right, str) and labels.count(right) == 1:
            return LETTERS[labels.index(right)]
    if isinstance(right, Integral) and not isinstance(right, bool):
        if not 0 <= right < len(choices):
            raise UserError(f"{right} is no place of {len(choices)} choices, which are counted from 0; correct it")
        return LETTERS[int(right)]
    try:
        text = right.decode() if isinstance(right, bytes) else right
    except UnicodeDecodeError as error:
        raise UserError(f"it is not UTF-8 ({error}); correct it") from None
    if not isinstance(text, str):
        raise UserError(f"{right!r:.40} is no place, letter or text of a choice; correct it")
    places = {place for place, choice in enumerate(choices) if choice == text}
    if text in tuple(LETTERS[: len(choices)]):
        places.add(LETTERS.index(text))
    if len(places) != 1:
        known = "several of the choices" if places else f"none of the {len(choices)} choices, nor a letter of theirs"
        raise UserError(f"{text!r:.40} is {known}; give the right one's place, from 0")
    return LETTERS[places.pop()]


def letter_said(text: str, choices: Sequence[str]) -> str:
    """The letter that an answer gives, whatever is around it, or that of the choice whose text it is; "" if neither.

    A letter alone, of those that there are, is a letter, whatever choices say; what has a text behind it may be a
    choice's whole text ("A. Lincoln")."""
    said = text.strip()
    found = SAID.match(said)
    letter = found[1].upper() if found else ""
    alone = found is not None and found.end() == len(said) and letter in LETTERS[: len(choices)]
    if not alone and said in choices:
        return LETTERS[choices.index(said)]
    return letter
