"""Stacked layers: one scan and the layers laid out must do the same, which is what a loop over the layers does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxfusion.models.stack import init_stack, run_stack
from tests import references

NUM_LAYERS, WIDTH = 4, 6


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, shift: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        x = jnp.tanh(nn.Dense(WIDTH)(x)) + shift
        return x, {"mean": x.mean(axis=-1)}


def _inputs() -> tuple[dict, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    shifts = jnp.asarray(rng.normal(size=(NUM_LAYERS, WIDTH)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(3, WIDTH)), jnp.float32)
    params = jax.eval_shape(lambda: init_stack(Layer(), jax.random.key(0), NUM_LAYERS, x, shifts[0]))
    return references.random_params(params, rng), x, shifts


def _apply(params: dict, x: jax.Array, shift: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    return Layer().apply({"params": params}, x, shift)


def test_init_stack_draws_each_layer_from_its_own_key():
    x = jnp.ones((3, WIDTH))
    stacked = jax.jit(lambda key: init_stack(Layer(), key, NUM_LAYERS, x, x[0]))(jax.random.key(5))
    init_alone = jax.jit(lambda key: Layer().init(key, x, x[0])["params"])
    for index, key in enumerate(jax.random.split(jax.random.key(5), NUM_LAYERS)):
        alone = init_alone(key)
        layer = jax.tree.map(lambda leaf, i=index: leaf[i], stacked)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), layer, alone)
    kernels = np.asarray(stacked["Dense_0"]["kernel"])
    assert all(not np.allclose(kernels[0], kernel) for kernel in kernels[1:])


@pytest.mark.parametrize("scan", [True, False])
def test_a_stack_is_a_loop_over_its_layers(scan):
    params, x, shifts = _inputs()
    out, outputs = run_stack(_apply, params, x, shifts, scan=scan)
    expected, means = np.asarray(x, np.float64), []
    for kernel, bias, shift in zip(params["Dense_0"]["kernel"], params["Dense_0"]["bias"], shifts, strict=True):
        expected = np.tanh(expected @ kernel + bias) + shift
        means.append(expected.mean(axis=-1))
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(outputs["mean"], means, atol=1e-5)


def test_scanned_and_unrolled_gradients_agree():
    params, x, shifts = _inputs()

    def gradients(scan: bool) -> tuple:
        def total(params: dict, x: jax.Array, shifts: jax.Array) -> jax.Array:
            out, outputs = run_stack(_apply, params, x, shifts, scan=scan)
            return (out**2).sum() + outputs["mean"].sum()

        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(params, x, shifts)

    scanned = gradients(True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), scanned, gradients(False))
    assert all(np.abs(gradient).max() > 0.1 for gradient in jax.tree.leaves(scanned))


@pytest.mark.parametrize("scan", [True, False])
def test_layers_may_take_and_give_nothing_but_x(scan):
    weights = jnp.array([2.0, 3.0, 5.0])
    out, outputs = run_stack(lambda weight, x, _: (weight * x + 1, None), weights, jnp.array(1.0), scan=scan)
    assert out == ((1 * 2 + 1) * 3 + 1) * 5 + 1 and outputs is None
