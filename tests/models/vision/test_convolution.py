import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxfusion.models.vision.convolution import FrozenBatchNorm, max_pool, num_groups


@pytest.mark.parametrize(("window", "padding"), [(2, 0), (3, 1)])
def test_max_pool_is_the_window_reduction(window, padding):
    x = -5 + jax.random.normal(jax.random.key(0), (2, 9, 6, 3))  # all negative, so padding with zeros would show

    def reference(x):
        return nn.max_pool(x, (window, window), (2, 2), ((padding, padding), (padding, padding)))

    def pool_and_gradient(pool):
        return jax.jit(lambda x: (pool(x), jax.grad(lambda x: jnp.sum(pool(x) ** 2))(x)))(x)

    ours, theirs = pool_and_gradient(lambda x: max_pool(x, window, padding)), pool_and_gradient(reference)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (64, 16), (16, 4), (12, 3), (9, 1), (3, 1), (132, 22)])
def test_group_count(channels, groups):
    assert num_groups(channels) == groups


def test_frozen_batch_norm_is_the_formula_with_stored_statistics():
    random = np.random.default_rng(0)
    x = random.normal(size=(4, 5, 5, 6)).astype(np.float32)
    scale, bias, mean = random.normal(size=(3, 6)).astype(np.float32)
    var = random.uniform(0.01, 2, 6).astype(np.float32)
    params = {"scale": scale, "bias": bias, "mean": mean, "var": var}
    expected = (x.astype(np.float64) - mean) / np.sqrt(var.astype(np.float64) + 1e-5) * scale + bias
    normed = jax.jit(FrozenBatchNorm(jnp.dtype("float32")).apply)({"params": params}, x)
    np.testing.assert_allclose(normed, expected, rtol=1e-5, atol=1e-5)
