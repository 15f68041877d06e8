"""Draws against exact probabilities, and settings that mean nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfusion.errors import UserError
from jaxfusion.generation.sampling import Sampling, Samplings, draw, filtered, seed_keys

LOGITS = np.log(np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04], np.float32))
CASES = {
    "temperature": (Sampling(temperature=1.0), [0.4, 0.25, 0.15, 0.1, 0.06, 0.04]),
    "top-k": (Sampling(temperature=1.0, top_k=2), [0.4, 0.25, 0, 0, 0, 0]),
    "top-p": (Sampling(temperature=1.0, top_p=0.7), [0.4, 0.25, 0.15, 0, 0, 0]),
    "top-p after top-k": (Sampling(temperature=1.0, top_k=2, top_p=0.5), [0.4, 0, 0, 0, 0, 0]),
    "min-p": (Sampling(temperature=1.0, min_p=0.3), [0.4, 0.25, 0.15, 0, 0, 0]),
    "hot": (Sampling(temperature=2.0, top_k=3), [0.4**0.5, 0.25**0.5, 0.15**0.5, 0, 0, 0]),
    "greedy": (Sampling(top_k=3), [1, 0, 0, 0, 0, 0]),
}
DRAWS = 20_000


@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_probabilities(name):
    """By a chi-square test at p = 0.001, each draw with a seed of its own or a step of its own."""
    sampling, weights = CASES[name]
    expected = DRAWS * np.array(weights) / np.sum(weights)
    keys = np.broadcast_to(seed_keys([3]), (DRAWS, 2))
    seen = np.zeros((DRAWS, 6), bool)
    samplings = jax.tree.map(lambda x: np.broadcast_to(x, DRAWS), Samplings.of([sampling]))
    tokens = jax.jit(draw)(jnp.tile(LOGITS, (DRAWS, 1)), seen, samplings, keys, jnp.arange(DRAWS))
    counts = np.bincount(np.asarray(tokens), minlength=6)
    assert np.all(counts[expected == 0] == 0)
    possible = expected > 0
    critical = [0, 0, 10.8, 13.8, 16.3, 18.5, 20.5][int(possible.sum())]
    assert np.sum((counts - expected)[possible] ** 2 / expected[possible]) <= critical


def test_rows_with_different_settings_share_a_call():
    rows = [sampling for sampling, _ in CASES.values() if sampling.temperature == 1]
    together = filtered(jnp.tile(LOGITS, (len(rows), 1)), Samplings.of(rows))
    for row, sampling in zip(together, rows, strict=True):
        np.testing.assert_array_equal(row, filtered(LOGITS[None], Samplings.of([sampling]))[0])


def test_a_repeated_token_is_less_likely():
    logits, seen = np.array([[2.0, 1.5, -1.0, -1.2]], np.float32), np.array([[True, False, True, False]])
    samplings = Samplings.of([Sampling(repetition_penalty=2.0)])
    assert draw(logits, seen, samplings, seed_keys([0]), np.zeros(1, np.int32)) == 1
    assert draw(logits, ~seen, samplings, seed_keys([0]), np.zeros(1, np.int32)) == 0


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}, {"min_p": 2}, {"repetition_penalty": 0}]
)
def test_what_means_nothing_is_refused_by_name(wrong):
    with pytest.raises(UserError, match=rf"^{next(iter(wrong))}: .* must be"):
        Sampling(**wrong)
