"""Caption metrics: what must hold of them whatever the texts, and CIDEr's first form against its formula."""

import math
from collections import Counter

import pytest

from jaxfusion.errors import UserError
from jaxfusion.evaluation import caption_metrics, chinese_characters, chinese_words

REFERENCES = [
    ["a red ball lies on the grass", "a ball on grass"],
    ["two dogs run along the beach", "dogs are running by the sea", "two dogs at the beach today"],
    ["a man cooks dinner for his friends"],
]
PREDICTIONS = ["a red ball on the grass", "two dogs on the grass", "a man reads the paper today"]


def test_a_reference_as_the_prediction_is_perfect():
    found = caption_metrics([given[0] for given in REFERENCES], REFERENCES)
    assert {name: value for name, value in found.items() if "cider" not in name} == pytest.approx(
        {"rouge_l": 1.0, "bleu_1": 1.0, "bleu_2": 1.0, "bleu_3": 1.0, "bleu_4": 1.0}
    )
    single = caption_metrics([given[0] for given in REFERENCES], [given[:1] for given in REFERENCES])
    assert (single["cider"], single["cider_plain"]) == pytest.approx((10.0, 10.0))
    nothing = caption_metrics(["xx", "yy", "zz"], REFERENCES)
    assert nothing == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-8)


def test_neither_order_nor_case_and_marks_matter():
    found = caption_metrics(PREDICTIONS, REFERENCES)
    assert 0.2 < found["bleu_1"] < 1 and 0.5 < found["cider"] < 9 and found["cider"] < found["cider_plain"]
    turned = caption_metrics(PREDICTIONS[::-1], [given[::-1] for given in REFERENCES[::-1]])
    assert turned == pytest.approx(found)
    assert caption_metrics([f"{text.upper()}!" for text in PREDICTIONS], REFERENCES) == pytest.approx(found)


def test_ciders_first_form_is_a_mean_of_cosines():
    def grams(text: str, n: int) -> Counter:
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    def cosine(said: str, right: str, n: int) -> float:
        def vector(text: str) -> dict:
            known = {
                gram: sum(any(gram in grams(r, n) for r in given) for given in REFERENCES) for gram in grams(text, n)
            }
            return {gram: c * math.log(len(REFERENCES) / max(known[gram], 1)) for gram, c in grams(text, n).items()}

        a, b = vector(said), vector(right)
        norms = math.hypot(*a.values()) * math.hypot(*b.values())
        return sum(weight * b.get(gram, 0) for gram, weight in a.items()) / norms if norms else 0.0

    wanted = sum(
        10 * cosine(said, right, n) / len(given) / 4 / len(REFERENCES)
        for said, given in zip(PREDICTIONS, REFERENCES, strict=True)
        for right in given
        for n in range(1, 5)
    )
    assert caption_metrics(PREDICTIONS, REFERENCES)["cider_plain"] == pytest.approx(wanted)


def test_chinese_by_character_and_by_word():
    said, right = ["左上角有一个红色的3。"], [["左上角有一个绿色的3"]]
    assert caption_metrics(said, right, chinese_characters)["bleu_1"] == pytest.approx(9 / 10)
    words = caption_metrics(said, right, chinese_words)["bleu_1"]
    assert words == pytest.approx(5 / 6)


def test_nothing_said_is_worth_nothing_and_breaks_nothing():
    assert caption_metrics(["", "。"], [["a b"], ["c d e"]]) == pytest.approx(
        dict.fromkeys(caption_metrics(["a"], [["a"]]), 0.0)
    )
    assert caption_metrics([""], [[""]])["rouge_l"] == 1.0


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], [["a"], ["b"]], r"there are 2 lists of references and 1 predictions"),
        ([], [], r"there are 0 lists"),
        (["a", "b"], [["a"], []], r"record 1 has no reference"),
        (["a", "b"], ["a", "b"], r"record 0 has a text and not a list of texts"),
    ],
)
def test_records_that_cannot_be_scored_are_named(predictions, references, message):
    with pytest.raises(UserError, match=rf"^references: {message}"):
        caption_metrics(predictions, references)
