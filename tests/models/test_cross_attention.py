import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfusion.models.attention import Interval
from jaxfusion.models.cross_attention import CrossAttention


def reference(params, x, context, start, end, num_heads):
    """Head by head and query by query, in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    out = np.zeros(x.shape) + params["out"]["bias"]
    for b, t, n in np.ndindex(*x.shape[:2], num_heads):
        seen = context[b, start[b, t] : end[b, t]].astype(np.float64)
        if not len(seen):
            continue
        query = x[b, t] @ params["query"]["kernel"][:, n] + params["query"]["bias"][n]
        key = seen @ params["key"]["kernel"][:, n] + params["key"]["bias"][n]
        value = seen @ params["value"]["kernel"][:, n] + params["value"]["bias"][n]
        weights = np.exp(key @ query / np.sqrt(len(query)))
        out[b, t] += weights @ value / weights.sum() @ params["out"]["kernel"][n]
    return out


def test_each_query_attends_to_its_interval_of_the_context():
    random = np.random.default_rng(0)
    x, context = random.normal(size=(3, 5, 12)).astype(np.float32), random.normal(size=(3, 7, 10)).astype(np.float32)
    start = random.integers(0, 7, (3, 5))
    end = np.minimum(start + random.integers(0, 6, (3, 5)), 7)
    end[1, 2] = start[1, 2]  # sees nothing
    interval = Interval(jnp.asarray(start), jnp.asarray(end))
    module = CrossAttention(num_heads=3, dtype=jnp.dtype("float32"))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, context, interval)["params"]
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32) / 3, shapes)
    for implementation in ("auto", "pallas"):
        out = jax.jit(module.clone(implementation=implementation).apply)({"params": params}, x, context, interval)
        np.testing.assert_allclose(out, reference(params, x, context, start, end, num_heads=3), atol=2e-5)


def test_heads_that_do_not_divide_the_width_are_named():
    one = jnp.ones((1, 1), jnp.int32)
    x = jnp.zeros((1, 1, 10))
    with pytest.raises(ValueError, match=r"4 attention heads.*width 10"):
        CrossAttention(num_heads=4, dtype=jnp.dtype("float32")).init(jax.random.key(0), x, x, Interval(one - one, one))
