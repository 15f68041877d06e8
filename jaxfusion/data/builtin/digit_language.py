"""What can be said about a digit scene: captions, questions and answers, in English and Chinese.

Everything here is a pure function of the scene's digits, listed in the reading order of their quadrants, so the
sentences are true by construction and each scene has exactly one caption a language.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
COLOURS = ("red", "green", "blue", "yellow", "white")
SIZES = ("small", "large")

QUADRANTS_ZH = ("左上角", "右上角", "左下角", "右下角")
COLOURS_ZH = ("红色", "绿色", "蓝色", "黄色", "白色")
SIZES_ZH = ("小", "大")


@dataclass(frozen=True)
class SceneDigit:
    """One handwritten digit of a scene.

    `quadrant`, `colour` and `size` index `QUADRANTS`, `COLOURS` and `SIZES`; `source` is the index of the handwriting
    in `sklearn.datasets.load_digits`.
    """

    digit: int
    quadrant: int
    colour: int
    size: int
    source: int


def caption_en(digits: Sequence[SceneDigit]) -> str:
    """Return e.g. `a large red 3 at the top left and a small blue 7 at the bottom right`."""
    phrases = [f"a {SIZES[d.size]} {COLOURS[d.colour]} {d.digit} at the {QUADRANTS[d.quadrant]}" for d in digits]
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)


def caption_zh(digits: Sequence[SceneDigit]) -> str:
    """Return e.g. `左上角有一个大的红色的3，右下角有一个小的蓝色的7`."""
    return "，".join(
        f"{QUADRANTS_ZH[d.quadrant]}有一个{SIZES_ZH[d.size]}的{COLOURS_ZH[d.colour]}的{d.digit}" for d in digits
    )


def questions(digits: Sequence[SceneDigit], rng: np.random.Generator) -> dict[str, list[str]]:
    """Ask one question of each kind: which digit where, how many, the sum, which colour where.

    The two places are drawn from the occupied ones by `rng`, and both languages ask the same. The result has the keys
    `questions_en`, `answers_en`, `questions_zh` and `answers_zh`, each a list of 4.
    """
    which, coloured = (digits[i] for i in rng.integers(len(digits), size=2))
    count, total = str(len(digits)), str(sum(d.digit for d in digits))
    return {
        "questions_en": [
            f"Which digit is at the {QUADRANTS[which.quadrant]}?",
            "How many digits are there?",
            "What is the sum of the digits?",
            f"What colour is the digit at the {QUADRANTS[coloured.quadrant]}?",
        ],
        "answers_en": [str(which.digit), count, total, COLOURS[coloured.colour]],
        "questions_zh": [
            f"{QUADRANTS_ZH[which.quadrant]}的数字是几？",
            "图中有几个数字？",
            "所有数字的和是多少？",
            f"{QUADRANTS_ZH[coloured.quadrant]}的数字是什么颜色？",
        ],
        "answers_zh": [str(which.digit), count, total, COLOURS_ZH[coloured.colour]],
    }
