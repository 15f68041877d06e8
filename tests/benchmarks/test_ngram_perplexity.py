"""n-grams: probabilities by hand, and of all tokens together one."""

import numpy as np
import pytest

from benchmarks.ngram_perplexity import NGrams

TEXTS = [[0, 1, 2, 1, 3], [0, 1, 2, 2, 3], [0, 2, 1, 3]]


def test_probabilities_are_interpolated_counts():
    grams = NGrams(TEXTS, vocab_size=5)
    # of 11 tokens 4 are a 1, of 3 kinds; all 5 are alike below
    one = (4 + 3 / 5) / (11 + 3)
    assert grams.probability(1, []) == pytest.approx(one)
    # after a 2, which is followed 4 times, by 3 kinds, a 1 comes twice
    after = (2 + 3 * one) / (4 + 3)
    assert grams.probability(1, [2]) == pytest.approx(after)
    assert grams.probability(1, [1, 2]) == pytest.approx((1 + 2 * after) / (2 + 2))
    assert grams.probability(1, [4, 2]) == pytest.approx(after)  # a history that was never seen says nothing


def test_probabilities_sum_to_one_and_perplexity_is_their_inverse():
    grams = NGrams(TEXTS, vocab_size=5)
    for history in ([], [1], [0, 1], [4, 4]):
        assert sum(grams.probability(token, history) for token in range(5)) == pytest.approx(1)
    expected = [grams.probability(2, [0]), grams.probability(3, [2])]
    assert grams.perplexity([[0, 2, 3]], order=2) == pytest.approx(1 / np.sqrt(np.prod(expected)))
