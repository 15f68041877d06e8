"""Resizing a grid of vectors against torch in float64, since its float32 rounds the coordinates more than ours."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxfusion.models.vision.positions import cubic_weights, resize_grid


@pytest.mark.parametrize(("old", "new"), [(3, 7), (7, 3), (37, 16), (16, 27), (5, 5), (1, 4), (4, 1), (2, 3)])
def test_grids_resize_as_torchs(old, new):
    table = np.random.default_rng(0).normal(size=(old * old, 5)).astype(np.float32)
    grid = torch.from_numpy(table.reshape(1, old, old, 5)).permute(0, 3, 1, 2).double()
    expected = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    expected = expected.permute(0, 2, 3, 1).reshape(new * new, 5).numpy()
    np.testing.assert_allclose(resize_grid(jnp.asarray(table), new), expected, atol=1e-6, rtol=0)


def test_weights_sum_to_one_and_the_same_size_changes_nothing():
    for old, new in [(3, 10), (10, 3), (1, 2)]:
        np.testing.assert_allclose(cubic_weights(old, new).sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(cubic_weights(6, 6), np.eye(6))


def test_half_precision_is_resized_in_float32():
    table = jnp.asarray(np.random.default_rng(1).normal(size=(9, 4)), jnp.bfloat16)
    resized = resize_grid(table, 5)
    assert resized.dtype == jnp.bfloat16
    np.testing.assert_array_equal(resized, resize_grid(table.astype(jnp.float32), 5).astype(jnp.bfloat16))
