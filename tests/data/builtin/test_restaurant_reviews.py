"""Each review's label follows from its text or its picture, as `source` says, and from nothing else."""

import io
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from jaxfusion.data.builtin.restaurant_reviews import make_record
from jaxfusion.text.segmentation import segment

NEGATIVE, POSITIVE = "负面评论", "正面评论"
PRAISE = (
    "鲜美 浓郁 纯正 热情 贴心 细心 干净 舒适 温馨 实惠 便宜 公平 麻利 及时 好吃 美味 新鲜 可口 地道 "
    "喜欢 爱 会来 再来 来了 推荐 值得 "
)
JUDGEMENTS = PRAISE + (
    "奇怪 寡淡 刺鼻 冷淡 敷衍 粗鲁 肮脏 吵闹 拥挤 昂贵 离谱 缓慢 拖拉 难吃 油腻 腥臭 乏味 生硬 讨厌 失望 后悔"
)


@pytest.fixture(scope="module")
def records():
    return {split: [make_record(split, i) for i in range(n)] for split, n in (("train", 2_500), ("test", 1_000))}


def judgement(text: str) -> bool:
    """Read a plain review as a person would: the half after `but` counts, and a negation turns a word around."""
    judged = set()
    for clause in text.split("但是")[-1].split("，"):
        negated = "不" in clause or "没有" in clause
        judged |= {negated != (word in PRAISE) for word in JUDGEMENTS.split() if word in clause}
    assert len(judged) == 1, text
    return judged.pop()


def test_the_classic_example_is_a_held_out_review(records):
    assert {r["label"] for r in records["test"] if r["text"] == "我非常喜欢这个餐厅"} == {POSITIVE}
    assert not any("我非常喜欢这个餐厅" in r["text"] for r in records["train"])


def test_labels_and_sources_are_balanced(records):
    counts = Counter((r["label"], r["source"]) for r in records["train"])
    assert len(counts) == 4
    assert min(counts.values()) > 0.22 * len(records["train"])


def test_plain_text_says_what_the_label_says(records):
    for record in records["train"] + records["test"]:
        if record["source"] == "text":
            assert judgement(record["text"]) == (record["label"] == POSITIVE), record["text"]


def test_negations_occur_on_both_sides(records):
    plain = [r for r in records["train"] if r["source"] == "text"]
    for label in (NEGATIVE, POSITIVE):
        assert sum("不" in r["text"] for r in plain if r["label"] == label) > 100
    assert any("不好吃" in r["text"] for r in plain) and any("没有让我失望" in r["text"] for r in plain)


def test_held_out_reviews_are_new_sentences_of_known_words(records):
    clauses = {split: {c for r in made for c in composed(r["text"])} for split, made in records.items()}
    assert len(clauses["train"]) > 1_000
    assert not clauses["train"] & clauses["test"]
    words = {split: {w for r in made for w in segment(r["text"])} for split, made in records.items()}
    assert words["test"] <= words["train"]


def composed(text: str) -> list[str]:
    """The clauses of a review that are put together from several choices, without set phrases."""
    parts = text.replace("虽然", "").replace("但是", "").split("，")
    return [part for part in parts if re.search("(.*)(这个|很|非常|特别|十分|太|不)(.+)", part) and len(part) > 6]


def test_neither_text_nor_picture_is_enough(records):
    label = {split: np.array([r["label"] == POSITIVE for r in made]) for split, made in records.items()}
    by_text = np.array([r["source"] == "text" for r in records["test"]])

    counts = CountVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2)
    words = {split: [r["text"] for r in made] for split, made in records.items()}
    reader = LogisticRegression(max_iter=200).fit(counts.fit_transform(words["train"]), label["train"])
    text_right = reader.predict(counts.transform(words["test"])) == label["test"]
    assert text_right[by_text].mean() > 0.75
    assert abs(text_right[~by_text].mean() - 0.5) < 0.08

    pixels = {split: np.stack([picture(r)[::2, ::2].ravel() for r in made]) for split, made in records.items()}
    viewer = RandomForestClassifier(40, random_state=0).fit(pixels["train"], label["train"])
    picture_right = viewer.predict(pixels["test"]) == label["test"]
    assert picture_right[~by_text].mean() > 0.95
    assert abs(picture_right[by_text].mean() - 0.5) < 0.08


def picture(record) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(record["image"])))


def test_a_record_depends_on_its_split_and_index_alone():
    assert make_record("test", 3) == make_record("test", 3)
    assert len({make_record("train", i)["image"] for i in range(50)}) == 50
