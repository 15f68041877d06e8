"""Metrics of classes, matches and losses, against scikit-learn and by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from jaxfusion.evaluation import class_accuracy, confusion_matrix, exact_match, intervals, macro_f1, perplexity
from jaxfusion.evaluation.metrics import macro_f1_statistic


def test_a_match_is_with_the_reference_or_one_of_several():
    assert exact_match(["a", "b", "c"], ["a", "x", "c"]) == pytest.approx(2 / 3)
    assert exact_match(["a", "b", "c"], [["x", "a"], ["b"], ["cc", "x"]]) == pytest.approx(2 / 3)
    assert exact_match(["a"], ["abc"]) == 0.0


def test_classes_are_counted_as_scikit_learn_counts_them():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(7, size=60), rng.integers(5, size=60)  # some are never said, one is neither
    labels[labels == 2], predictions[predictions == 2] = 3, 1
    assert macro_f1(labels, predictions, 7) == pytest.approx(f1_score(labels, predictions, average="macro"))
    assert class_accuracy(labels, predictions) == pytest.approx(accuracy_score(labels, predictions))
    none = np.where(np.arange(60) % 4, predictions, -1)
    wanted = f1_score(labels, none, labels=sorted({*labels, *predictions}), average="macro")
    assert macro_f1(labels, none, 7) == pytest.approx(wanted)
    drawn = np.random.default_rng(2).integers(60, size=(50, 60))
    wanted = [f1_score(labels[rows], predictions[rows], average="macro") for rows in drawn]
    found = intervals({"f1": macro_f1_statistic(labels, predictions, 7)}, num_resamples=50, seed=2)["f1"]
    assert found == pytest.approx(np.quantile(wanted, [0.025, 0.975]))
    np.testing.assert_array_equal(confusion_matrix([0, 0, 1], [0, 1, 1], 2), [[1, 1], [0, 1]])
    np.testing.assert_array_equal(confusion_matrix([0, 0, 1], [0, -1, 1], 2), [[1, 0, 1], [0, 1, 0]])


def test_perplexity_is_of_tokens_and_not_of_samples():
    assert perplexity([math.log(8), 3 * math.log(2)], [1, 3]) == pytest.approx(2**1.5)
