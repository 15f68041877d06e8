"""The accuracy of open answers by the rules of the VQA challenge (Antol et al. 2015, visualqa.org/evaluation)."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxfusion.errors import UserError

ENOUGH = 3  # of the other answers: with as many that say the same an answer is wholly right

# Between digits a comma belongs to a number, and a period is a decimal point.
MARKS = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_A_NUMBER = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBER_WORDS)}
ARTICLES = {"a", "an", "the"}

# Where one apostrophe is missing, it is put in. The rules leave out let's and she's, and whatever begins with I.
CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll "
    "why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've"
)
COMPLETED = {
    word[:place] + word[place + 1 :]: word
    for word in CONTRACTIONS.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # so it stands in the rules


def normalise_answer(text: str) -> str:
    """An answer as the challenge compares it.

    In lower case; number words as digits, articles left out, contractions with their apostrophe. Periods go but for
    decimal points. Other marks become a space, or nothing where one stands beside them already or the answer has a
    number like 100,978; apostrophes and colons stay (girl's, 2:50).
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    in_number = COMMA_IN_A_NUMBER.search(text)
    kept = text
    for mark in MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if in_number or beside_space else " ")
    words = (NUMBERS.get(word, word) for word in PERIOD.sub("", kept).lower().split())
    return " ".join(COMPLETED.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean accuracy of predictions against the answers of several people a question, ten in the VQA data sets.

    Leaving out each person in turn, an answer is right by a third for each of the others who say the same, up to one.
    Raises UserError for a question with less than four answers, which nothing could answer rightly.
    """
    return float(np.mean(vqa_scores(predictions, references)))


def vqa_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Float[np.ndarray, " N"]:
    """`vqa_accuracy` question by question."""
    known: dict[str, str] = {}
    scores = []
    for place, (prediction, answers) in enumerate(zip(predictions, references, strict=True)):
        if isinstance(answers, str) or len(answers) <= ENOUGH:
            raise UserError(
                f"references: record {place} has {'a text' if isinstance(answers, str) else len(answers)} for its "
                f"answers, and VQA accuracy needs {ENOUGH + 1} at least; compare by exact_match"
            )
        said = normalise_answer(prediction)
        for text in answers:
            if text not in known:
                known[text] = normalise_answer(text)
        same = sum(said == known[text] for text in answers)
        left = len(answers) - same
        # Of the subsets, `same` miss one of those who agree; the others miss none.
        scores.append((same * min(1, (same - 1) / ENOUGH) + left * min(1, same / ENOUGH)) / len(answers))
    return np.array(scores)
