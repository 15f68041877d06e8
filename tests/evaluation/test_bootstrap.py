"""Intervals: against scipy's, against the standard error, and with samples that belong together."""

import numpy as np
import pytest
import scipy.stats

from jaxfusion.evaluation import Statistic, caption_statistics, intervals, mean_of

RNG = np.random.default_rng(0)


def test_of_a_mean_and_of_a_ratio_they_are_scipys():
    scores, weights = RNG.gamma(2.0, size=300), RNG.uniform(1, 9, 300)
    statistics = {"mean": mean_of(scores), "ratio": mean_of(scores * weights, weights)}
    found = intervals(statistics, num_resamples=4000)
    for name, data in {"mean": (scores, np.ones(300)), "ratio": (scores * weights, weights)}.items():
        wanted = scipy.stats.bootstrap(
            data,
            lambda a, b, axis: a.sum(axis) / b.sum(axis),
            paired=True,
            vectorized=True,
            n_resamples=4000,
            method="percentile",
            rng=np.random.default_rng(1),
        ).confidence_interval
        assert statistics[name].value == pytest.approx(data[0].sum() / data[1].sum())
        assert found[name] == pytest.approx(wanted, abs=0.15 * (wanted.high - wanted.low))


def test_a_number_that_is_no_mean_is_computed_anew_on_each_resample(monkeypatch):
    texts = [" ".join(RNG.choice(list("abcdefgh"), size=8)) for _ in range(40)]
    statistics = caption_statistics(texts, [[text[2:], texts[i - 1]] for i, text in enumerate(texts)], str.split)
    found = intervals(statistics, num_resamples=200, seed=5)
    drawn = np.random.default_rng(5).integers(40, size=(200, 40))
    for name, statistic in statistics.items():
        values = [Statistic(statistic.parts[rows], statistic.of).value for rows in drawn]
        assert found[name] == pytest.approx(np.quantile(values, [0.025, 0.975]))
    monkeypatch.setattr("jaxfusion.evaluation.bootstrap.ENTRIES_AT_ONCE", 100)
    assert intervals(statistics, num_resamples=200, seed=5).keys() == found.keys()


def test_the_seed_settles_them():
    statistics = {"mean": mean_of(RNG.normal(size=50))}
    assert intervals(statistics, seed=3) == intervals(statistics, seed=3) != intervals(statistics, seed=4)


def test_samples_of_one_record_are_no_independent_evidence():
    of_record = RNG.normal(size=100)
    once, often = mean_of(of_record), mean_of(np.repeat(of_record, 9))
    alone = intervals({"mean": once})["mean"]
    together = intervals({"mean": often}, np.repeat(np.arange(100), 9))["mean"]
    assert together == pytest.approx(alone)
    low, high = intervals({"mean": often})["mean"]  # as if each were news
    assert high - low < 0.5 * (alone[1] - alone[0])


def test_of_one_record_there_is_none_nor_where_all_are_alike():
    assert intervals({"mean": mean_of([0.5, 1.0])}, [7, 7]) == intervals({}) == {}
    both = intervals({"all right": mean_of([1.0, 1.0]), "half": mean_of([0.0, 1.0])})
    assert both == {"half": (0.0, 1.0)}
