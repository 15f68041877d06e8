"""Pooling of segments against a loop over them."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxfusion.models.decoder import pool_segments


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_each_position_gets_its_segments_pool(pool):
    rng = np.random.default_rng(0)
    segment_ids = np.array([[1, 1, 2, 2, 2, 3, 0], [1, 1, 1, 1, 1, 1, 1]])
    x = rng.normal(size=(2, 7, 5)).astype(np.float32)
    pooled = pool_segments(jnp.asarray(x), jnp.asarray(segment_ids), pool)
    for row in range(2):
        for segment in set(segment_ids[row]) - {0}:
            own = segment_ids[row] == segment
            expected = x[row, own].mean(0) if pool == "mean" else x[row, own][-1]
            np.testing.assert_allclose(pooled[row, own], np.tile(expected, (own.sum(), 1)), rtol=1e-5, atol=1e-6)
