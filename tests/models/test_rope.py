"""Rotary positions against complex numbers in float64, and the scalings of their frequencies against their meaning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfusion.config.model import RopeConfig
from jaxfusion.models.rope import rotate, rotation
from tests import references


def _normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("theta", [10_000.0, 1e6])
def test_rotate_multiplies_by_complex_numbers(theta):
    x = _normal(2, 5, 3, 8)
    positions = np.array([[0, 1, 2, 3, 4], [0, 7, 1, 100, 900]], np.int32)
    rotated = rotate(x, jnp.asarray(positions), rotation(RopeConfig(theta=theta), 8))
    np.testing.assert_allclose(rotated, references.rotate(np.asarray(x), positions, theta), atol=3e-4)
    np.testing.assert_array_equal(rotated[:, 0], x[:, 0])


def test_rotated_scores_depend_on_the_distance_alone():
    query, key = _normal(1, 1, 1, 8, seed=1), _normal(1, 1, 1, 8, seed=2)

    def score(query_position: int, key_position: int) -> float:
        rotated = [
            rotate(x, jnp.full((1, 1), position), rotation(RopeConfig(theta=100.0), 8))
            for x, position in ((query, query_position), (key, key_position))
        ]
        return float(jnp.sum(rotated[0] * rotated[1]))

    for shift in (1, 10, 200):
        np.testing.assert_allclose(score(9 + shift, 4 + shift), score(9, 4), atol=1e-3)
    assert abs(score(9, 5) - score(9, 4)) > 0.01
    assert abs(score(4, 9) - score(9, 4)) > 0.01


def test_rotate_computes_in_float32_and_keeps_the_dtype():
    x, positions = _normal(1, 3, 1, 8).astype(jnp.bfloat16), jnp.array([[0, 300, 700]])
    rotated = rotate(x, positions, rotation(RopeConfig(), 8))
    assert rotated.dtype == jnp.bfloat16
    expected = references.rotate(np.asarray(x, np.float32), np.asarray(positions), 10_000.0)
    np.testing.assert_allclose(np.asarray(rotated, np.float32), expected, atol=0.02)


def test_without_theta_nothing_turns():
    x = _normal(1, 4, 2, 8)
    turn = rotation(RopeConfig(theta=0.0, scaling="yarn", factor=8.0, original_positions=16), 8)
    np.testing.assert_array_equal(rotate(x, jnp.arange(4)[None], turn), x)


def test_linear_scaling_divides_positions():
    x, positions = _normal(1, 4, 2, 8), jnp.array([[0, 4, 12, 400]])
    scaled = rotate(x, positions, rotation(RopeConfig(scaling="linear", factor=4.0), 8))
    np.testing.assert_allclose(scaled, rotate(x, positions // 4, rotation(RopeConfig(), 8)), atol=1e-5)


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(scaling="llama3", factor=8.0, original_positions=256),
        RopeConfig(scaling="yarn", factor=8.0, original_positions=256, round_bounds=False),
    ],
    ids=["llama3", "yarn"],
)
def test_fast_dimensions_are_kept_and_slow_ones_divided(rope):
    plain = rotation(RopeConfig(), 128).frequency
    share = rotation(rope, 128).frequency / plain
    turns = rope.original_positions * plain / (2 * np.pi)
    slow, fast = (1.0, 4.0) if rope.scaling == "llama3" else (1.0, 32.0)
    np.testing.assert_allclose(share[turns > fast], 1, rtol=1e-6)
    np.testing.assert_allclose(share[turns < slow], 1 / 8, rtol=1e-6)
    between = share[(turns < fast) & (turns > slow)]
    assert len(between) > 3
    assert np.all(np.diff(between) < 0)


def test_yarn_magnifies():
    rope = RopeConfig(scaling="yarn", factor=8.0, original_positions=256)
    x = _normal(1, 4, 2, 8)

    def length(rope: RopeConfig) -> float:
        return float(jnp.linalg.norm(rotate(x, jnp.arange(4)[None], rotation(rope, 8))) / jnp.linalg.norm(x))

    np.testing.assert_allclose(length(rope), 0.1 * np.log(8) + 1, rtol=1e-5)
    np.testing.assert_allclose(length(RopeConfig(scaling="yarn", original_positions=256)), 1, rtol=1e-5)
    np.testing.assert_allclose(
        length(RopeConfig(scaling="yarn", factor=8.0, original_positions=256, magnitude=1.5)), 1.5, rtol=1e-5
    )
