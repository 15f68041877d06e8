"""Numbers over records, and how sure they are: 95 % intervals by resampling the records (Efron 1979).

A number here is a function of sums over the records, as a mean is of a sum and a count, and BLEU of ten sums. So all
resamples are one matrix product, whatever the number.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

NUM_RESAMPLES = 1000
LEVEL = 0.95
ENTRIES_AT_ONCE = 1 << 22  # of a matrix of resamples by records

Interval = tuple[float, float]


class Statistic(NamedTuple):
    """parts: float[N, K], dense or of scipy.sparse, a row a sample. of: from their sums, float[..., K], to numbers."""

    parts: Any
    of: Callable[[Float[np.ndarray, "... K"]], Float[np.ndarray, "..."]]

    @property
    def value(self) -> float:
        return float(self.of(np.asarray(self.parts.sum(axis=0)).reshape(1, -1))[0])

    def at(self, places: Sequence[int]) -> "Statistic":
        """Of some of the samples."""
        return Statistic(self.parts[places], self.of)


def mean_of(scores: Sequence[float], weights: Sequence[float] | None = None) -> Statistic:
    """The mean of a score a sample. weights: those to divide by, where a score is itself a sum of so much."""
    scores = np.asarray(scores, np.float64)
    return Statistic(np.stack([scores, np.ones_like(scores) if weights is None else weights], axis=1), ratio)


def ratio(sums: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "..."]:
    """The first by the second; 0 where that is nothing."""
    return sums[..., 0] / np.where(sums[..., 1] > 0, sums[..., 1], np.inf)


def intervals(
    statistics: Mapping[str, Statistic],
    records: Sequence[int] | Int[np.ndarray, " N"] | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """The 95 % percentile interval of each statistic, all from the same resamples.

    statistics: over the same N samples.
    records:    which record each sample is of; samples of one are drawn together, since they are no independent
                evidence. None: each sample is its own.

    There is none of less than two records, nor where all resamples agree, as they do where all records score the
    same: 50 of 50 right is no certainty, and resampling cannot say how much less it is.
    """
    from scipy.sparse import csr_array

    count = next((statistic.parts.shape[0] for statistic in statistics.values()), 0)
    names, place = np.unique(np.arange(count) if records is None else np.asarray(records), return_inverse=True)
    if len(names) < 2:
        return {}
    by_record = csr_array((np.ones(count), (place, np.arange(count))), shape=(len(names), count))
    parts = {name: by_record @ statistic.parts for name, statistic in statistics.items()}
    rng = np.random.default_rng(seed)
    found: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    step = max(1, ENTRIES_AT_ONCE // len(names))
    for start in range(0, num_resamples, step):
        rows = min(step, num_resamples - start)
        drawn = rng.integers(len(names), size=(rows, len(names))) + np.arange(rows)[:, None] * len(names)
        times = np.bincount(drawn.ravel(), minlength=rows * len(names)).reshape(rows, -1).astype(np.float64)
        for name, statistic in statistics.items():
            found[name].append(statistic.of(times @ parts[name]))
    tails = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    ends = {name: tuple(np.quantile(np.concatenate(values), tails).tolist()) for name, values in found.items()}
    return {name: (low, high) for name, (low, high) in ends.items() if low < high}
