"""`digit_choices`: multiple-choice questions on digit scenes, in English and Chinese, as a TFDS builder.

The wrong choices are what is elsewhere in the scene, as far as it goes, so that what is there somewhere is not enough.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxfusion.data.builtin.digit_language import COLOURS, COLOURS_ZH, QUADRANTS, QUADRANTS_ZH, SceneDigit
from jaxfusion.data.builtin.digit_scenes import CANVAS, MAX_DIGITS, compose, draw_scene, split_sources
from jaxfusion.data.images import encode_png

NUM_CHOICES = 4
MOST_QUESTIONS = 4  # on a scene
# split -> number of scenes; the handwriting is divided as that of digit_scenes is
SPLITS = {"train": 15_000, "validation": 500, "test": 1_000}
SEED = 23

# A question in both languages, its choices in both, and the place of the right one.
Question = tuple[str, str, list[str], list[str], int]


def questions_on(digits: Sequence[SceneDigit], rng: np.random.Generator) -> list[Question]:
    """All that can be asked: which digit and which colour is at each occupied place, where a digit is that is there
    once, and how many there are."""
    counts = [str(count + 1) for count in range(MAX_DIGITS)]
    asked = [("How many digits are there?", "图中有几个数字？", counts, counts, len(digits) - 1, range(MAX_DIGITS))]
    for d in digits:
        place, place_zh = QUADRANTS[d.quadrant], QUADRANTS_ZH[d.quadrant]
        names, seen = [str(n) for n in range(10)], [other.digit for other in digits]
        asked.append((f"Which digit is at the {place}?", f"{place_zh}的数字是几？", names, names, d.digit, seen))
        asked.append(
            (
                f"What colour is the digit at the {place}?",
                f"{place_zh}的数字是什么颜色？",
                COLOURS,
                COLOURS_ZH,
                d.colour,
                [other.colour for other in digits],
            )
        )
        if seen.count(d.digit) == 1:
            where = (f"Where is the {d.digit}?", f"{d.digit}在哪里？")
            asked.append((*where, QUADRANTS, QUADRANTS_ZH, d.quadrant, range(len(QUADRANTS))))
    return [_chosen(*question, rng) for question in asked]


def _chosen(question, question_zh, names, names_zh, right: int, seen: Sequence[int], rng: np.random.Generator):
    """Draws the wrong choices, those that are seen in the scene first, and mixes them with the right one."""
    wrong = [value for value in rng.permutation(len(names)).tolist() if value != right]
    wrong.sort(key=lambda value: value not in seen)
    mixed = rng.permutation([right, *wrong[: NUM_CHOICES - 1]]).tolist()
    choices, choices_zh = ([known[value] for value in mixed] for known in (names, names_zh))
    return question, question_zh, choices, choices_zh, mixed.index(right)


def make_record(split: str, index: int) -> dict:
    """Make scene `index` of a split. It depends on nothing but these two, so any record can be made again alone."""
    rng = np.random.default_rng((SEED, list(SPLITS).index(split), index))
    digits = compose(split_sources()[split], rng)
    picture, asked = draw_scene(digits, rng), questions_on(digits, rng)
    kept = [asked[place] for place in rng.permutation(len(asked))[:MOST_QUESTIONS]]
    english, chinese, choices, choices_zh, answers = map(list, zip(*kept, strict=True))
    return {
        "image": encode_png(picture),
        "image_id": index,
        "questions_en": english,
        "choices_en": choices,
        "questions_zh": chinese,
        "choices_zh": choices_zh,
        "answers": answers,
    }


class DigitChoices(tfds.core.GeneratorBasedBuilder):
    """Multiple-choice questions on scenes of real handwritten digits, split by handwriting."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        texts = features.Sequence(features.Text())
        choices = features.Sequence(features.Tensor(shape=(NUM_CHOICES,), dtype=np.str_))
        return self.dataset_info_from_configs(
            description=self.__doc__,
            homepage="https://archive.ics.uci.edu/dataset/80",
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(CANVAS, CANVAS, 3), encoding_format="png"),
                    "image_id": np.int64,
                    "questions_en": texts,
                    "choices_en": choices,
                    "questions_zh": texts,
                    "choices_zh": choices,
                    "answers": features.Sequence(np.int64),  # the right choice's place, from 0
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
