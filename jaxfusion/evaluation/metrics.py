"""Numbers that say how good predictions are, whatever the task."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from jaxfusion.evaluation.bootstrap import Statistic, ratio

Labels = Sequence[int] | Int[np.ndarray, " N"]
References = Sequence[str] | Sequence[Sequence[str]]


def exact_match(predictions: Sequence[str], references: References) -> float:
    """Share of predictions that equal their reference, or one of several, letter by letter."""
    return float(np.mean(matches(predictions, references)))


def matches(
    predictions: Sequence[str], references: References, normalise: Callable[[str], str] = str
) -> Float[np.ndarray, " N"]:
    """1 for a prediction that equals its reference, or one of several, after `normalise`; 0 for another."""
    given = ((text,) if isinstance(text, str) else text for text in references)
    pairs = zip(predictions, given, strict=True)
    return np.array([normalise(said) in map(normalise, texts) for said, texts in pairs], np.float64)


def class_accuracy(labels: Labels, predictions: Labels) -> float:
    """Share of classes that are right."""
    return float(np.mean(np.asarray(labels) == np.asarray(predictions)))


def macro_f1(labels: Labels, predictions: Labels, num_classes: int) -> float:
    """Mean over classes of the harmonic mean of precision and recall, as scikit-learn's.

    A class that is neither a label nor predicted does not count. predictions: -1 is none of the classes.
    """
    return macro_f1_statistic(labels, predictions, num_classes).value


def macro_f1_statistic(labels: Labels, predictions: Labels, num_classes: int) -> Statistic:
    """`macro_f1` as sums: of a class how often it is right, a label, predicted."""
    from scipy.sparse import csr_array

    labels, predictions = np.asarray(labels), np.asarray(predictions)
    each, right = np.arange(len(labels)), labels == predictions
    named = predictions >= 0
    rows = np.concatenate([each[right], each, each[named]])
    columns = np.concatenate([labels[right], labels + num_classes, predictions[named] + 2 * num_classes])
    parts = csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(labels), 3 * num_classes))

    def mean_f1(sums: Float[np.ndarray, "... K"]) -> Float[np.ndarray, "..."]:
        hits, true, predicted = np.split(sums, 3, axis=-1)
        there = true + predicted > 0
        scores = 2 * hits / np.maximum(true + predicted, 1)
        return ratio(np.stack([scores.sum(axis=-1), there.sum(axis=-1)], axis=-1))

    return Statistic(parts, mean_f1)


def confusion_matrix(labels: Labels, predictions: Labels, num_classes: int) -> Int[np.ndarray, "V W"]:
    """Counts by true class (row) and predicted class (column).

    predictions: -1 is none of the classes, of which there is a last column where it occurs.
    """
    predictions = np.asarray(predictions)
    none = bool((predictions < 0).any())
    matrix = np.zeros((num_classes, num_classes + none), np.int64)
    np.add.at(matrix, (np.asarray(labels), predictions), 1)
    return matrix


def perplexity(losses: Sequence[float], tokens: Sequence[float]) -> float:
    """The exponential of the mean loss a token. losses: summed over each sample's tokens, nats. tokens: how many."""
    return perplexity_statistic(losses, tokens).value


def perplexity_statistic(losses: Sequence[float], tokens: Sequence[float]) -> Statistic:
    return Statistic(np.stack([losses, tokens], axis=1).astype(np.float64), lambda sums: np.exp(ratio(sums)))
