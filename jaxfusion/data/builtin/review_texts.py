"""The words of the restaurant reviews: clauses of praise and blame, and clauses that say nothing.

Clauses are composed from lists, and every clause belongs, by a hash of its characters, either to the training split or
to the held-out ones: a held-out review is made of words that training knows, in combinations that it never saw.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np

CLASSIC = "我非常喜欢这个餐厅"

# Choices are written as words apart by spaces, except where one of them is to say nothing.
DISHES = "牛肉面 饺子 火锅 烤鸭 麻婆豆腐 小笼包 炒饭 酸菜鱼 水煮鱼 红烧肉 酸辣汤 凉皮"
# What is judged -> (words of praise, words of blame).
ASPECTS = {
    "味道": ("鲜美 浓郁 纯正", "奇怪 寡淡 刺鼻"),
    "服务": ("热情 贴心 细心", "冷淡 敷衍 粗鲁"),
    "环境": ("干净 舒适 温馨", "肮脏 吵闹 拥挤"),
    "价格": ("实惠 便宜 公平", "昂贵 离谱"),
    "上菜": ("麻利 及时", "缓慢 拖拉"),
}
TASTES = ("好吃 美味 新鲜 可口 地道", "难吃 油腻 腥臭 乏味 生硬")
AFFIRMED = "很{} 非常{} 特别{} 十分{} 真的很{} 太{}了"
NEGATED = "不{} 一点也不{} 并不{} 不太{}"
VERDICTS = (
    "下次不会再来 再也不来了 不推荐 不值得来 让我很失望 很后悔来",
    "下次还会来 一定会再来 强烈推荐 值得再来 没有让我失望 一点也不后悔",
)
FEELINGS = ("讨厌 不喜欢", "喜欢 爱")
DEGREES = ("", "很", "非常", "特别", "真的")
PLACES = "餐厅 饭店 小店 馆子 地方"
OPENINGS = "第一次来， 朋友带我来的， 路过进来的， 和家人一起来的， 周末来的， 同事聚餐，"

WHEN = "今天 昨天 周末 中午 晚上 上周"
COMPANY = ("", "一个人", "和朋友", "和同事", "和家人")
LOOK = "看图就知道了 一切都在照片里 感受都在图里 不多说，看图 请看照片 有图有真相 照片说明一切 你们自己看吧"


def plain_review(positive: bool, held_out: bool, rng: np.random.Generator) -> str:
    """Write a review that says what the guest thought."""
    form = rng.choice(5, p=[0.25, 0.2, 0.2, 0.15, 0.2])

    def opinion(side: bool = positive) -> str:
        return _clause(lambda: _opinion(side, rng), held_out)

    def liking() -> str:
        return _clause(lambda: _liking(positive, rng), held_out)

    if form == 0:
        body = opinion()
    elif form == 1:
        body = f"{opinion()}，{opinion()}"
    elif form == 2:
        body = f"{opinion()}，{_one(VERDICTS[positive], rng)}"
    elif form == 3:
        body = f"虽然{opinion(not positive)}，但是{opinion()}"
    else:
        body = liking()
    return (_one(OPENINGS, rng) if rng.random() < 0.4 else "") + body


def vague_review(held_out: bool, rng: np.random.Generator) -> str:
    """Write a review that leaves the judgement to the picture."""

    def visit() -> str:
        return f"{_one(WHEN, rng)}{_one(COMPANY, rng)}来这个{_one(PLACES, rng)}吃了{_one(DISHES, rng)}"

    return f"{_clause(visit, held_out)}，{_one(LOOK, rng)}"


def is_held_out(clause: str) -> bool:
    """Whether a composed clause is kept from training: one in five is, the classic example among them."""
    return zlib.crc32(clause.encode()) % 5 == zlib.crc32(CLASSIC.encode()) % 5


def _clause(compose: Callable[[], str], held_out: bool) -> str:
    while is_held_out(clause := compose()) != held_out:
        pass
    return clause


def _opinion(positive: bool, rng: np.random.Generator) -> str:
    dish = rng.random() < 0.5
    subject = _one(DISHES if dish else list(ASPECTS), rng)
    praise, blame = TASTES if dish else ASPECTS[subject]
    negated = rng.random() < 0.4
    adjective = _one(praise if positive != negated else blame, rng)
    return subject + _one(NEGATED if negated else AFFIRMED, rng).format(adjective)


def _liking(positive: bool, rng: np.random.Generator) -> str:
    return f"我{_one(DEGREES, rng)}{_one(FEELINGS[positive], rng)}这个{_one(PLACES, rng)}"


def _one(choices: str | Sequence[str], rng: np.random.Generator) -> str:
    choices = choices.split() if isinstance(choices, str) else choices
    return choices[rng.integers(len(choices))]
