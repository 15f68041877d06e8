"""Schedule, decay mask and clipping against closed forms, and batch-norm statistics that stay."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxfusion.config.model import BiLSTMEncoderConfig, ModelConfig, TextEmbeddingConfig
from jaxfusion.config.run import TrainConfig
from jaxfusion.models.vision.convolution import FrozenBatchNorm
from jaxfusion.models.vlm import build, init
from jaxfusion.training.optimizer import decay_mask, learning_rate_schedule, make_optimizer

TEXT = TextEmbeddingConfig(vocab_size=7, positions="learned", max_positions=8)


@pytest.mark.parametrize(("num_steps", "warmup"), [(100, 10), (100, 0), (5, 20)])
def test_the_schedule_is_a_ramp_and_half_a_cosine(num_steps, warmup):
    schedule = learning_rate_schedule(TrainConfig(learning_rate=0.3, num_steps=num_steps, warmup_steps=warmup))
    for step in range(num_steps + 3):
        if step < warmup:
            expected = 0.3 * (step + 1) / warmup
        else:
            part = min((step - warmup) / max(num_steps - warmup, 1), 1)
            expected = 0.3 * (1 + math.cos(math.pi * part)) / 2
        assert float(schedule(jnp.int32(step))) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_matrices_decay_and_nothing_else_does():
    config = ModelConfig(width=8, text_embedding=TEXT, encoder=BiLSTMEncoderConfig())
    shapes = jax.eval_shape(lambda: init(build(config), jax.random.key(0)))
    mask = {
        jax.tree_util.keystr(path, simple=True, separator="/"): decays
        for path, decays in jax.tree_util.tree_leaves_with_path(decay_mask(shapes))
    }
    assert mask["decoder/layers/mlp/up/kernel"] and mask["decoder/layers/attention/query/kernel"]
    assert mask["encoder/layer_0_input_kernel"] and mask["encoder/layer_0_hidden_kernel"]
    # Biases and norms of stacked layers have two axes and are still no matrices.
    kept = [name for name, decays in mask.items() if not decays]
    assert {"decoder/layers/mlp/up/bias", "decoder/layers/mlp_norm/scale", "encoder/layer_0_bias"} <= set(kept)
    assert {"text_embedding/embedding", "text_embedding/position_embedding"} <= set(kept)
    assert not any("kernel" in name for name in kept)


def test_the_first_update_is_adamw_in_closed_form():
    config = TrainConfig(learning_rate=0.1, warmup_steps=1, weight_decay=0.5, clip_norm=1.0)
    params = {"kernel": jnp.array([2.0, -4.0]), "bias": jnp.array([3.0])}
    gradients = {"kernel": jnp.array([3.0, 0.0]), "bias": jnp.array([-4.0])}
    optimizer = make_optimizer(config)
    updates, opt_state = optimizer.update(gradients, optimizer.init(params), params)
    # Adam's first step is the gradient's sign, whatever its size; the decay comes on top, on the matrix alone.
    np.testing.assert_allclose(updates["kernel"], [-0.1 * (1 + 0.5 * 2.0), -0.1 * (0.5 * -4.0)], rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], [0.1], rtol=1e-5)
    # What Adam saw was clipped from norm 5 to norm 1: its first moment is a tenth of that.
    np.testing.assert_allclose(optax.tree.get(opt_state, "mu")["kernel"], [0.1 * 3 / 5, 0.0], rtol=1e-5)


def test_batch_norm_statistics_never_move():
    norm, optimizer = FrozenBatchNorm(jnp.float32), make_optimizer(TrainConfig(warmup_steps=1))
    x = jax.random.normal(jax.random.key(0), (3, 5))

    @jax.jit
    def update(params, opt_state):
        gradients = jax.grad(lambda p: jnp.sum(norm.apply({"params": p}, x) ** 2))(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params = before = norm.init(jax.random.key(0), x)["params"] | {"mean": jnp.full(5, 0.3), "var": jnp.full(5, 2.0)}
    opt_state = optimizer.init(params)
    for _ in range(3):
        params, opt_state = update(params, opt_state)
    moved = {name: bool(jnp.any(params[name] != before[name])) for name in params}
    assert moved == {"scale": True, "bias": True, "mean": False, "var": False}
