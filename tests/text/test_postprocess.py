"""Each kind of litter goes, honest text stays, and cleaning twice is cleaning once."""

import random

import pytest

from jaxfusion.text.postprocess import postprocess

LITTER = [
    ("<|im_start|>a red 3<|im_end|>\n", "a red 3"),
    ("<s> [CLS] hello </s><pad><pad>", "hello"),
    ("  a  red\n3\t at the　top ", "a red 3 at the top"),
    ("a red 3 , at the top .", "a red 3, at the top."),
    ("左上角 有 一个 大 的 红色 的 3", "左上角有一个大的红色的3"),
    ("左上角有3 , 右下角有7 .", "左上角有3，右下角有7。"),
    ("好吃吗? 好吃! 3.5 元", "好吃吗？好吃！3.5元"),
    ("hello, 你好", "hello，你好"),
    ("味道很好 ， 服务很好 。", "味道很好，服务很好。"),
]
LOOPS = [
    ("a red 3 a red 3 a red 3 at the top", "a red 3 at the top"),
    ("the the the the top", "the top"),
    ("I like it, I like it, I like it.", "I like it."),
    ("Good. I like it, I like it", "Good. I like it"),
    ("服务很好服务很好服务很好", "服务很好"),
    ("左上角有一个3，左上角有一个3，右上角有一个5", "左上角有一个3，右上角有一个5"),
]
HONEST = [
    "a large red 3 at the top left, a small blue 7 at the top right and a large red 3 at the bottom right",
    "左上角有一个大的红色的3，右下角有一个大的红色的3",
    "a very very good soup; no, no, not 12.50",
    "谢谢，看看，常常，好...",
    "I like it, like it or not",
    "I like it, like it",
    "1 2 1 2 1 2 33 33 33",
    "左边是3，左边是35",
    "我喜欢你，我喜欢你们",
    "a < b and [x] <b>bold</b>",
    "",
]


@pytest.mark.parametrize(("text", "clean"), LITTER + LOOPS)
def test_litter_and_loops_go(text, clean):
    assert postprocess(text) == clean


@pytest.mark.parametrize("text", HONEST)
def test_honest_text_stays(text):
    assert postprocess(text) == text


@pytest.mark.parametrize(("text", "kept"), LOOPS)
def test_loops_stay_where_they_are_wanted(text, kept):
    assert postprocess(text, drop_repeats=False) == text != kept


def test_sentence():
    assert postprocess("a red 3", sentence=True) == "A red 3."
    assert postprocess("is it red?", sentence=True) == "Is it red?"
    assert postprocess("左上角有一个3", sentence=True) == "左上角有一个3。"
    assert postprocess(" </s>", sentence=True) == ""


@pytest.mark.parametrize("options", [{}, {"sentence": True}, {"drop_repeats": False}])
def test_cleaning_twice_is_cleaning_once(options):
    rng = random.Random(0)
    pieces = [*"ab 3,.!?;:的红好有\n，。", "<|x|>", "</s>", "[PAD]", "the ", "的红好", "a b ", " . ", ".."]
    for _ in range(5_000):
        once = postprocess("".join(rng.choices(pieces, k=rng.randint(1, 16))), **options)
        assert postprocess(once, **options) == once
