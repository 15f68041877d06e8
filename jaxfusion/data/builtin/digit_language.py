"""What can be said about a digit scene: captions, questions and answers, in English and Chinese.

Everything here is a pure function of the scene's digits, listed in the reading order of their quadrants, so the
sentences are true by construction and each scene has exactly one caption a language.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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


def questions(digits: Sequence[SceneDigit]) -> dict[str, list[str]]:
    """Ask which digit and which colour is at each occupied place, how many there are, and their sum.

    Both languages ask the same in the same order. The result has the keys `questions_en`, `answers_en`, `questions_zh`
    and `answers_zh`, each a list of twice the number of digits and two.
    """
    count, total = str(len(digits)), str(sum(d.digit for d in digits))
    places = [(QUADRANTS[d.quadrant], QUADRANTS_ZH[d.quadrant]) for d in digits]
    return {
        "questions_en": [
            *(f"Which digit is at the {place}?" for place, _ in places),
            *(f"What colour is the digit at the {place}?" for place, _ in places),
            "How many digits are there?",
            "What is the sum of the digits?",
        ],
        "answers_en": [*(str(d.digit) for d in digits), *(COLOURS[d.colour] for d in digits), count, total],
        "questions_zh": [
            *(f"{place}的数字是几？" for _, place in places),
            *(f"{place}的数字是什么颜色？" for _, place in places),
            "图中有几个数字？",
            "所有数字的和是多少？",
        ],
        "answers_zh": [*(str(d.digit) for d in digits), *(COLOURS_ZH[d.colour] for d in digits), count, total],
    }
