"""Words: English in the manner of the Penn Treebank, Chinese by character and by word."""

import pytest

from jaxfusion.evaluation import chinese_characters, chinese_words, english_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's dog doesn't bark; it can't.", "a man 's dog does n't bark it ca n't"),
        ("They’re at the U.S. border -- “really”...", "they 're at the u.s. border really"),
        ("1,000 people paid $3.50 (50%) at 2:50 p.m.!", "1,000 people paid $ 3.50 50 % at 2:50 p.m."),
        ("a black-and-white cat, two dogs' bowls", "a black-and-white cat two dogs bowls"),
        ("I couldn't've; we cannot. Mr. O'Neil is gonna", "i could n't 've we can not mr o'neil is gon na"),
        ("a café & a 4x4, the 2nd one", "a café & a 4x4 the 2nd one"),
        (" ... ", ""),
    ],
)
def test_english(text, words):
    assert english_words(text) == words.split()
    assert english_words(text.upper()) == words.split()


def test_a_letter_and_its_accent_are_one_whichever_way_they_are_written():
    assert english_words("cafe\u0301") == english_words("caf\u00e9")


def test_chinese():
    text = "左上角有一个大的红色的３，旁边是iPhone 12！"
    assert chinese_characters(text) == [*"左上角有一个大的红色的3旁边是", "iphone", "12"]
    assert "".join(chinese_words(text)) == "".join(chinese_characters(text))
    assert {"左上角", "红色", "旁边"} <= set(chinese_words(text))
    assert chinese_characters("。！…") == chinese_words("。！…") == []
