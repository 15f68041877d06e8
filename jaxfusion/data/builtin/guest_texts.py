"""The words of `guest_reviews`: sentences of guests, in English and the same in Chinese, and what they amount to.

Every sentence belongs, by a hash of its characters, either to the training split or to the held-out ones: a held-out
review is made of words that training knows, in sentences that it never saw.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Both = tuple[str, str]  # English and Chinese

ASPECTS: tuple[Both, ...] = (("food", "菜品"), ("service", "服务"), ("price", "价格"))
# What is said of an aspect by all who speak of it; None: nobody does.
VERDICTS: dict[str | None, Both] = {
    "praise": ("praised", "好评"),
    "blame": ("criticised", "差评"),
    "mixed": ("mixed", "评价不一"),
    None: ("not mentioned", "未提及"),
}

SUBJECTS: tuple[Sequence[Both], ...] = (
    (
        ("the soup", "汤"),
        ("the pasta", "面条"),
        ("the steak", "牛排"),
        ("the fish", "鱼"),
        ("the salad", "沙拉"),
        ("the cake", "蛋糕"),
    ),
    (("the waiter", "男服务员"), ("the waitress", "女服务员"), ("the staff", "店员"), ("the owner", "老板")),
    (("the bill", "账单"), ("the price", "价钱"), ("the set menu", "套餐"), ("the cost", "费用")),
)
OPINIONS: tuple[Mapping[str, Sequence[Both]], ...] = (
    {
        "praise": (
            ("was delicious", "很好吃"),
            ("tasted wonderful", "味道好极了"),
            ("was cooked to perfection", "做得恰到好处"),
            ("was not bad at all", "一点也不难吃"),
        ),
        "blame": (
            ("was burnt", "烧焦了"),
            ("tasted of nothing", "没有味道"),
            ("was far too salty", "太咸了"),
            ("was not good at all", "一点也不好吃"),
        ),
    },
    {
        "praise": (
            ("was friendly", "很友好"),
            ("looked after us well", "照顾得很周到"),
            ("was never in a hurry", "一直很耐心"),
            ("thought of everything", "什么都想到了"),
        ),
        "blame": (
            ("was rude", "很粗鲁"),
            ("forgot our order", "忘了我们点的菜"),
            ("was never to be seen", "总是不见人影"),
            ("thought of nothing", "什么都没想到"),
        ),
    },
    {
        "praise": (
            ("was fair", "很公道"),
            ("was lower than we feared", "比我们担心的低"),
            ("was a nice surprise", "是个惊喜"),
            ("was worth it", "很值得"),
        ),
        "blame": (
            ("was far too high", "太高了"),
            ("was higher than we hoped", "比我们希望的高"),
            ("was a nasty surprise", "让人吃惊不小"),
            ("was not worth it", "不值得"),
        ),
    },
)
WAYS: Sequence[Both] = (
    ("{}.", "{}。"),
    ("I must say that {}.", "我得说，{}。"),
    ("In my view {}.", "在我看来，{}。"),
    ("As always, {}.", "和往常一样，{}。"),
    ("This time {}.", "这一次{}。"),
)
# What says nothing of the restaurant.
IDLE: tuple[tuple[str, str, Sequence[Both]], ...] = (
    (
        "We came {}.",
        "我们{}来的。",
        (
            ("on a Friday", "星期五"),
            ("by bus", "坐公交车"),
            ("with the children", "带着孩子"),
            ("after work", "下班后"),
            ("for lunch", "中午"),
            ("in the rain", "冒雨"),
        ),
    ),
    ("I had {}.", "我点了{}。", SUBJECTS[0]),
    ("My sister had {}.", "我妹妹点了{}。", SUBJECTS[0]),
    ("We talked to {}.", "我们和{}聊了聊。", SUBJECTS[1]),
    ("My brother asked for {}.", "我哥哥问了{}。", SUBJECTS[2]),
    (
        "There is {} across the street.",
        "街对面有{}。",
        (("a park", "一个公园"), ("a school", "一所学校"), ("a bank", "一家银行"), ("a cinema", "一家电影院")),
    ),
)
NAMES: Sequence[Both] = (
    ("Anna", "安娜"),
    ("Ben", "本"),
    ("Clara", "克拉拉"),
    ("David", "大卫"),
    ("Emma", "艾玛"),
    ("Frank", "弗兰克"),
)
MOST_GUESTS = 4


def write_review(held_out: bool, rng: np.random.Generator) -> tuple[Both, Both]:
    """What two to four guests say, and its summary: how many they are, and what they think of each aspect."""
    number = int(rng.integers(2, MOST_GUESTS + 1))
    leaning = rng.choice([0.0, 0.5, 1.0], size=len(ASPECTS))  # how probable praise is
    said: list[set[str]] = [set() for _ in ASPECTS]
    guests = []
    for name in rng.permutation(len(NAMES))[:number]:
        sentences = [_sentence(lambda: _idle(rng), held_out) for _ in range(rng.integers(1, 3))]
        for place, opinions in enumerate(said):
            if rng.random() < 0.55:
                side = "praise" if rng.random() < leaning[place] else "blame"
                opinions.add(side)
                sentences.append(_sentence(lambda at=place, of=side: _opinion(at, of, rng), held_out))
        mixed = [sentences[i] for i in rng.permutation(len(sentences))]
        english, chinese = NAMES[name]
        guests.append((f"{english}: " + " ".join(s for s, _ in mixed), f"{chinese}：" + "".join(s for _, s in mixed)))
    document = tuple("\n".join(texts) for texts in zip(*guests, strict=True))
    return document, summary_of(number, said)


def summary_of(number: int, said: Sequence[set[str]]) -> Both:
    """said: of each aspect, of "praise" and "blame" those that were given."""
    verdicts = [VERDICTS["mixed" if len(opinions) > 1 else next(iter(opinions), None)] for opinions in said]
    english = ", ".join(f"{name} {verdict}" for (name, _), (verdict, _) in zip(ASPECTS, verdicts, strict=True))
    chinese = "，".join(f"{name}{verdict}" for (_, name), (_, verdict) in zip(ASPECTS, verdicts, strict=True))
    return f"{number} guests: {english}.", f"{number}位客人：{chinese}。"


def is_held_out(sentence: str) -> bool:
    """Whether a sentence is kept from training: one in five is. sentence: in English."""
    return zlib.crc32(sentence.encode()) % 5 == 0


def _sentence(compose: Callable[[], Both], held_out: bool) -> Both:
    while is_held_out((sentence := compose())[0]) != held_out:
        pass
    return sentence


def _opinion(aspect: int, side: str, rng: np.random.Generator) -> Both:
    way, subject, opinion = (_one(of, rng) for of in (WAYS, SUBJECTS[aspect], OPINIONS[aspect][side]))
    english = way[0].format(f"{subject[0]} {opinion[0]}")
    return english[0].upper() + english[1:], way[1].format(subject[1] + opinion[1])


def _idle(rng: np.random.Generator) -> Both:
    form, form_zh, of = IDLE[rng.integers(len(IDLE))]
    english, chinese = _one(of, rng)
    return form.format(english), form_zh.format(chinese)


def _one(choices: Sequence[Both], rng: np.random.Generator) -> Both:
    return choices[rng.integers(len(choices))]
