"""The canonical sentences, and answers that are worked out here a second time."""

from jaxfusion.data.builtin.digit_language import SceneDigit, caption_en, caption_zh, questions

LARGE_RED_3 = SceneDigit(digit=3, quadrant=0, colour=0, size=1, source=0)
SMALL_YELLOW_0 = SceneDigit(digit=0, quadrant=1, colour=3, size=0, source=0)
SMALL_BLUE_7 = SceneDigit(digit=7, quadrant=3, colour=2, size=0, source=0)


def test_captions():
    assert caption_en([SMALL_BLUE_7]) == "a small blue 7 at the bottom right"
    assert caption_en([LARGE_RED_3, SMALL_BLUE_7]) == (
        "a large red 3 at the top left and a small blue 7 at the bottom right"
    )
    assert caption_en([LARGE_RED_3, SMALL_YELLOW_0, SMALL_BLUE_7]) == (
        "a large red 3 at the top left, a small yellow 0 at the top right and a small blue 7 at the bottom right"
    )
    assert caption_zh([SMALL_BLUE_7]) == "右下角有一个小的蓝色的7"
    assert caption_zh([LARGE_RED_3, SMALL_BLUE_7]) == "左上角有一个大的红色的3，右下角有一个小的蓝色的7"


def test_questions_of_a_single_digit():
    assert questions([SMALL_BLUE_7]) == {
        "questions_en": [
            "Which digit is at the bottom right?",
            "What colour is the digit at the bottom right?",
            "How many digits are there?",
            "What is the sum of the digits?",
        ],
        "answers_en": ["7", "blue", "1", "7"],
        "questions_zh": [
            "右下角的数字是几？",
            "右下角的数字是什么颜色？",
            "图中有几个数字？",
            "所有数字的和是多少？",
        ],
        "answers_zh": ["7", "蓝色", "1", "7"],
    }


def test_all_occupied_places_are_asked_about_and_no_others():
    asked = questions([LARGE_RED_3, SMALL_YELLOW_0, SMALL_BLUE_7])
    told = dict(zip(asked["questions_en"], asked["answers_en"], strict=True))
    which = {"top left": "3", "top right": "0", "bottom right": "7"}
    colour = {"top left": "red", "top right": "yellow", "bottom right": "blue"}
    assert told == (
        {f"Which digit is at the {place}?": digit for place, digit in which.items()}
        | {f"What colour is the digit at the {place}?": name for place, name in colour.items()}
        | {"How many digits are there?": "3", "What is the sum of the digits?": "10"}
    )
    assert len(asked["questions_zh"]) == len(asked["answers_zh"]) == len(told)
