"""`digit_dialogues`: conversations about digit scenes, in English and Chinese, as a TFDS builder.

The first question names a place. Those that follow speak of "it", or of "the one below it", and ask what was asked
before: nobody can answer them without the turns that went before.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxfusion.data.builtin.digit_language import (
    COLOURS,
    COLOURS_ZH,
    QUADRANTS,
    QUADRANTS_ZH,
    SIZES,
    SIZES_ZH,
    SceneDigit,
)
from jaxfusion.data.builtin.digit_scenes import CANVAS, compose, draw_scene, split_sources
from jaxfusion.data.images import encode_png

# What is asked of a digit: (at a place, of it), in English and in Chinese.
ASKED = {
    "digit": ("Which digit is at the {}?", "Which digit is it?", "{}的数字是几？", "它是几？"),
    "colour": (
        "What colour is the digit at the {}?",
        "What colour is it?",
        "{}的数字是什么颜色？",
        "它是什么颜色？",
    ),
    "size": ("Is the digit at the {} small or large?", "Is it small or large?", "{}的数字是大是小？", "它是大是小？"),
}
# (down, across) from one digit to its neighbour.
MOVES = {
    (0, -1): ("And the one to the left of it?", "它左边的呢？"),
    (0, 1): ("And the one to the right of it?", "它右边的呢？"),
    (-1, 0): ("And the one above it?", "它上面的呢？"),
    (1, 0): ("And the one below it?", "它下面的呢？"),
}
MOST_QUESTIONS = 5
# split -> number of scenes; the handwriting is divided as that of digit_scenes is
SPLITS = {"train": 15_000, "validation": 500, "test": 1_000}
SEED = 24

Exchange = tuple[str, str]  # a question and its answer


def converse(digits: Sequence[SceneDigit], rng: np.random.Generator) -> tuple[list[Exchange], list[Exchange]]:
    """A conversation about two digits at least, of three to five questions, in English and in Chinese.

    A question asks another thing of the digit that is spoken of, or moves on to a neighbour and leaves open what of it
    is asked, which is the same as before. None asks what was answered already.
    """
    at = {divmod(d.quadrant, 2): d for d in digits}
    place, asked = list(at)[rng.integers(len(at))], list(ASKED)[rng.integers(len(ASKED))]
    question, _, question_zh, _ = ASKED[asked]
    quadrant = at[place].quadrant
    texts = question.format(QUADRANTS[quadrant]), question_zh.format(QUADRANTS_ZH[quadrant])
    told: dict[tuple[tuple[int, int], str], tuple[str, str]] = {(place, asked): texts}
    while len(told) < MOST_QUESTIONS:
        open_ones = [(place, name, ASKED[name][1::2]) for name in ASKED]
        for (down, across), moved in MOVES.items():
            open_ones.append(((place[0] + down, place[1] + across), asked, moved))
        open_ones = [(to, name, texts) for to, name, texts in open_ones if to in at and (to, name) not in told]
        if not open_ones:
            break
        place, asked, texts = open_ones[rng.integers(len(open_ones))]
        told[place, asked] = texts
    answers = [_answer(at[place], asked) for place, asked in told]
    english, chinese = (
        [(question[language], answer[language]) for question, answer in zip(told.values(), answers, strict=True)]
        for language in (0, 1)
    )
    return english, chinese


def _answer(digit: SceneDigit, asked: str) -> tuple[str, str]:
    if asked == "digit":
        return str(digit.digit), str(digit.digit)
    names, names_zh = (COLOURS, COLOURS_ZH) if asked == "colour" else (SIZES, SIZES_ZH)
    value = getattr(digit, asked)
    return names[value], names_zh[value]


def turns_of(exchanges: Sequence[Exchange]) -> list[dict[str, str]]:
    """LLaVA's form."""
    return [
        {"from": speaker, "value": text}
        for exchange in exchanges
        for speaker, text in zip(("human", "gpt"), exchange, strict=True)
    ]


def make_record(split: str, index: int) -> dict:
    """Make scene `index` of a split. It depends on nothing but these two, so any record can be made again alone."""
    rng = np.random.default_rng((SEED, list(SPLITS).index(split), index))
    while len(digits := compose(split_sources()[split], rng)) < 2:
        pass
    picture, (english, chinese) = draw_scene(digits, rng), converse(digits, rng)
    return {
        "image": encode_png(picture),
        "image_id": index,
        "conversations_en": turns_of(english),
        "conversations_zh": turns_of(chinese),
    }


class DigitDialogues(tfds.core.GeneratorBasedBuilder):
    """Conversations about scenes of real handwritten digits, split by handwriting."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        turns = features.Sequence({"from": features.Text(), "value": features.Text()})
        return self.dataset_info_from_configs(
            description=self.__doc__,
            homepage="https://archive.ics.uci.edu/dataset/80",
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(CANVAS, CANVAS, 3), encoding_format="png"),
                    "image_id": np.int64,
                    "conversations_en": turns,
                    "conversations_zh": turns,
                }
            ),
            # Scenes are independent already: kept in order, record i is the one whose image_id is i.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for index in range(SPLITS[split]):
            yield index, make_record(split, index)
