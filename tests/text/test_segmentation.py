"""Words come out in the order of the text, and what decides the sentiment survives the removal of stop words."""

import subprocess
import sys

import pytest

from jaxfusion.errors import UserError
from jaxfusion.text.segmentation import remove_stop_words, segment


def test_segment_cuts_chinese_at_words():
    assert segment("我非常喜欢这个餐厅") == ["我", "非常", "喜欢", "这个", "餐厅"]
    assert segment("左上角有一个大的红色的3，真好。") == [
        *("左上角", "有", "一个", "大", "的", "红色", "的", "3", "，", "真", "好", "。")
    ]


def test_segment_loses_nothing_but_white_space():
    text = "服务 很热情，味道\n不好吃！ The soup was cold. 12.5元"
    assert "".join(segment(text)) == "".join(text.split())
    assert segment("The soup was cold") == ["The", "soup", "was", "cold"]
    assert segment("") == segment("  ") == []


def test_stop_words_go():
    assert remove_stop_words(segment("我非常喜欢这个餐厅"), "zh") == ["非常", "喜欢", "餐厅"]
    assert remove_stop_words(["The", "soup", "of", "the", "day"], "en") == ["soup", "day"]


@pytest.mark.parametrize(
    ("language", "sentence"),
    [
        ("zh", "不 好吃"),
        ("zh", "没有 失望"),
        ("zh", "不是 很 新鲜"),
        ("zh", "并非 难吃"),
        ("zh", "别 推荐"),
        ("zh", "毫无 特色"),
        ("zh", "太 咸"),
        ("zh", "好"),
        ("zh", "但是 贵"),
        ("en", "not good"),
        ("en", "never tasty"),
        ("en", "Don't like"),
        ("en", "isnt great"),
        ("en", "too small"),
        ("en", "nothing wrong but slow"),
    ],
)
def test_what_carries_the_sentiment_stays(language, sentence):
    assert remove_stop_words(sentence.split(), language) == sentence.split()


def test_unknown_language_is_named():
    with pytest.raises(UserError, match="'xx'.*zh"):
        remove_stop_words(["a"], "xx")


def test_importing_the_module_loads_neither_library():
    code = "import sys, jaxfusion.text.segmentation; sys.exit(bool({'rjieba', 'stopwordsiso'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
