"""Caption metrics against pycocoevalcap, on texts that are cut already; its own tokenizer is Java."""

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from jaxfusion.evaluation import caption_metrics

WORDS = np.array([f"w{i}" for i in range(400)])
SHARES = 1 / np.arange(1, 401)


def records(count: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Texts of common and rare words; predictions that share much with a reference, nothing, or everything."""
    rng = np.random.default_rng(seed)

    def draw(number: int) -> list[str]:
        return rng.choice(WORDS, size=number, p=SHARES / SHARES.sum()).tolist()

    references = [[draw(rng.integers(3, 16)) for _ in range(rng.integers(1, 6))] for _ in range(count)]
    predictions = []
    for given in references:
        words = given[rng.integers(len(given))].copy()
        for _ in range(rng.integers(4)):
            words[rng.integers(len(words))] = draw(1)[0]
        predictions.append([words, words[: len(words) // 2], words * 2, ["unheard"], words][rng.integers(5)])
    return list(map(" ".join, predictions)), [list(map(" ".join, given)) for given in references]


def theirs(predictions: list[str], references: list[list[str]]) -> dict[str, float]:
    right, said = dict(enumerate(references)), {place: [text] for place, text in enumerate(predictions)}
    bleu, _ = Bleu(4).compute_score(right, said, verbose=0)
    rest = {"rouge_l": Rouge().compute_score(right, said)[0], "cider": Cider().compute_score(right, said)[0]}
    return {f"bleu_{n}": value for n, value in enumerate(bleu, start=1)} | rest


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (2, 1), (7, 2), (60, 3), (200, 4)])
def test_the_numbers_are_pycocoevalcaps(count, seed):
    given = records(count, seed)
    ours, wanted = caption_metrics(*given, str.split), theirs(*given)
    assert {name: ours[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)
    assert count < 60 or min(wanted.values()) > 0.1  # so that the numbers say something


def test_they_are_for_odd_records_too():
    predictions = ["", "a a a a a a", "the", "x y", "a b c d e f", "b"]
    references = [
        ["a b"],
        ["a", "a a b"],
        ["the", "the", "the"],
        ["x", "x y", "y x"],
        ["a b c d", "c d e f g h"],
        ["z"],
    ]
    ours, wanted = caption_metrics(predictions, references, str.split), theirs(predictions, references)
    assert {name: ours[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)
