"""Summaries are what a reader who knows the words makes of the documents, and held-out sentences are new."""

import re

import pytest

from jaxfusion.data.builtin.guest_reviews import make_record
from jaxfusion.data.builtin.guest_texts import is_held_out

PRAISE = {
    "food": "delicious|wonderful|perfection|not bad",
    "service": "friendly|looked after|never in a hurry|thought of everything",
    "price": "fair|lower|nice|was worth",
}
BLAME = {
    "food": "burnt|of nothing\\.|salty|not good",
    "service": "rude|forgot|never to be seen|thought of nothing",
    "price": "too high|higher|nasty|not worth",
}
SUBJECTS = {
    "food": "soup|pasta|steak|fish|salad|cake",
    "service": "waiter|waitress|staff|owner",
    "price": "bill|price|set menu|cost",
}
ZH = {
    "guests": "位客人",
    "food": "菜品",
    "service": "服务",
    "price": "价格",
    "praised": "好评",
    "criticised": "差评",
    "mixed": "评价不一",
    "not mentioned": "未提及",
}


@pytest.fixture(scope="module")
def records():
    return [make_record("train", number) for number in range(300)] + [make_record("test", n) for n in range(100)]


def sentences(record) -> list[str]:
    texts = [line.split(": ", 1)[1] for line in record["document_en"].splitlines()]
    return [sentence for text in texts for sentence in re.findall(r"[^.]+\.", text)]


def summary(record) -> str:
    told = []
    for aspect, subjects in SUBJECTS.items():
        about = [s for s in sentences(record) if re.search(rf"\b({subjects}) (was|tasted|looked|thought|forgot)", s)]
        sides = {bool(re.search(PRAISE[aspect], s)) for s in about}
        assert all(bool(re.search(PRAISE[aspect], s)) != bool(re.search(BLAME[aspect], s)) for s in about), about
        told.append(f"{aspect} " + ("not mentioned", "praised", "criticised", "mixed")[verdict(sides)])
    return f"{len(record['document_en'].splitlines())} guests: {', '.join(told)}."


def verdict(sides: set[bool]) -> int:
    return 0 if not sides else 3 if len(sides) == 2 else 1 if sides == {True} else 2


def test_a_reader_comes_to_the_same_summary(records):
    for record in records:
        assert record["summary_en"] == summary(record)
        number, told = re.fullmatch(r"(\d) guests: (.+)\.", record["summary_en"]).groups()
        parts = [re.fullmatch(r"(\w+) (.+)", part).groups() for part in told.split(", ")]
        assert record["summary_zh"] == f"{number}位客人：{'，'.join(ZH[name] + ZH[said] for name, said in parts)}。"
        assert len(record["document_zh"].splitlines()) == int(number)


def test_all_verdicts_occur(records):
    told = [record["summary_en"] for record in records]
    for word in ("praised", "criticised", "mixed", "not mentioned"):
        assert sum(f"food {word}" in text for text in told) > len(records) / 20
    assert {text[0] for text in told} == {"2", "3", "4"}


def test_held_out_sentences_are_new(records):
    known = {sentence.strip() for record in records[:300] for sentence in sentences(record)}
    new = {sentence.strip() for record in records[300:] for sentence in sentences(record)}
    assert not known & new and not any(map(is_held_out, known)) and all(map(is_held_out, new))


def test_a_record_depends_on_its_split_and_index_alone():
    assert make_record("test", 5) == make_record("test", 5) != make_record("validation", 5)
