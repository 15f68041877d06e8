"""Numbers that say how good predictions are."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of predictions that equal their reference, letter by letter."""
    return float(np.mean([p == r for p, r in zip(predictions, references, strict=True)]))


def confusion_matrix(labels: Sequence[int], predictions: Sequence[int], num_classes: int) -> Int[np.ndarray, "V V"]:
    """Counts by true class (row) and predicted class (column)."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (np.asarray(labels), np.asarray(predictions)), 1)
    return matrix
