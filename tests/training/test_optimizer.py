"""Schedules, optimizers, rules, decay mask and clipping against closed forms, and batch-norm statistics that stay."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxfusion.config.model import BiLSTMEncoderConfig, ModelConfig, TextEmbeddingConfig
from jaxfusion.config.run import OptimizerRule, TrainConfig
from jaxfusion.errors import UserError
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


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]),
        ("linear", [0.1, 0.2, 0.2, 0.15, 0.1, 0.05, 0.0]),
        ("rsqrt", [0.1, 0.2, 0.2 * math.sqrt(2 / 3), 0.2 * math.sqrt(2 / 4), 0.2 * math.sqrt(2 / 5)]),
    ],
)
def test_other_schedules_have_the_same_ramp(schedule, expected):
    config = TrainConfig(learning_rate=0.2, num_steps=6, warmup_steps=2, schedule=schedule)
    rates = [float(learning_rate_schedule(config)(jnp.int32(step))) for step in range(len(expected))]
    assert rates == pytest.approx(expected, rel=1e-5, abs=1e-7)


def first_update(config: TrainConfig, params, gradients):
    optimizer = make_optimizer(config)
    return optimizer.update(gradients, optimizer.init(params), params)[0]


PLAIN = TrainConfig(learning_rate=0.1, warmup_steps=1, weight_decay=0.5, clip_norm=0.0)
PARAMS = {"up": {"kernel": jnp.array([[2.0, -4.0]]), "bias": jnp.array([3.0])}}
GRADIENTS = {"up": {"kernel": jnp.array([[3.0, -0.5]]), "bias": jnp.array([-4.0])}}


@pytest.mark.parametrize("name", ["lion", "adafactor"])
def test_the_first_update_of_lion_and_adafactor_is_the_sign_and_the_decay(name):
    """Lion: Chen et al. 2023. Adafactor: Shazeer & Stern 2018; its second moment is the first gradient's."""
    updates = first_update(replace(PLAIN, optimizer=name), PARAMS, GRADIENTS)
    np.testing.assert_allclose(updates["up"]["kernel"], [[-0.1 * (1 + 1.0), -0.1 * (-1 - 2.0)]], rtol=1e-5)
    np.testing.assert_allclose(updates["up"]["bias"], [0.1], rtol=1e-5)


def test_moments_are_as_the_config_says():
    config = replace(PLAIN, b1=0.5, b2=0.75, eps=1.0)
    optimizer = make_optimizer(config)
    updates, state = optimizer.update(GRADIENTS, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(optax.tree.get(state, "mu")["up"]["bias"], [-4 * 0.5])
    np.testing.assert_allclose(optax.tree.get(state, "nu")["up"]["bias"], [16 * 0.25])
    np.testing.assert_allclose(updates["up"]["bias"], [0.1 * 4 / (4 + 1)], rtol=1e-6)


def test_muon_turns_each_layers_matrix_and_leaves_the_rest_to_adamw():
    rng = np.random.default_rng(0)
    shapes = {"query": (2, 6, 2, 4), "out": (2, 2, 4, 6), "up": (2, 6, 12)}
    layers = {name: {"kernel": jnp.float32(rng.standard_normal(shape))} for name, shape in shapes.items()}
    params = {"decoder": {"layers": layers}, "output": {"kernel": jnp.ones((6, 3))}, "embedding": jnp.ones((3, 6))}
    config = replace(PLAIN, optimizer="muon", weight_decay=0.0)
    updates = first_update(config, params, params)
    for name, matrix in {"query": (6, 8), "out": (8, 6), "up": (6, 12)}.items():
        for layer in range(2):
            update = np.asarray(updates["decoder"]["layers"][name]["kernel"][layer]).reshape(matrix)
            # Nearly a rotation of the gradient's own axes: all singular values about the same, none turned round.
            left, _, right = np.linalg.svd(
                np.asarray(layers[name]["kernel"][layer]).reshape(matrix), full_matrices=False
            )
            inner = -left.T @ update @ right.T / (0.1 * 0.2 * math.sqrt(max(matrix)))
            np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=1e-3)
            assert np.all((np.diag(inner) > 0.5) & (np.diag(inner) < 1.5))
    for path in (("output", "kernel"), ("embedding",)):
        leaf = optax.tree.get(updates, path[0]) if len(path) == 1 else updates[path[0]][path[1]]
        np.testing.assert_allclose(leaf, -0.1, rtol=1e-4)  # Adam's first step


def test_a_parameter_has_the_optimizer_of_the_first_rule_that_fits_it():
    params = {
        room: {"kernel": jnp.full(2, 2.0), "bias": jnp.full(1, 2.0)} for room in ("vision", "projector", "decoder")
    }
    gradients = jax.tree.map(jnp.ones_like, params)
    rules = (
        OptimizerRule(globs=("*/bias",), learning_rate=0.3),
        OptimizerRule(globs=("vision/*", "projector/*"), optimizer="lion", learning_rate=0.01, weight_decay=0.0),
    )
    updates = first_update(replace(PLAIN, rules=rules), params, gradients)
    np.testing.assert_allclose(updates["decoder"]["kernel"], -0.1 * (1 + 0.5 * 2), rtol=1e-5)
    for room in params:
        np.testing.assert_allclose(updates[room]["bias"], -0.3, rtol=1e-5)
    for room in ("vision", "projector"):
        np.testing.assert_allclose(updates[room]["kernel"], -0.01, rtol=1e-5)
    slow = OptimizerRule(globs=("vision/*",), warmup_steps=10)
    updates = first_update(replace(PLAIN, rules=(slow,)), params, gradients)
    np.testing.assert_allclose(updates["vision"]["bias"], -0.01, rtol=1e-5)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            ("visoin/*",),
            r"config\.train\.rules\[0\]\.globs: no parameter that trains fits 'visoin/\*'; did you mean 'vi",
        ),
        (("*", "vision/*"), r"config\.train\.rules\[1\]\.globs: earlier rules take all that"),
    ],
)
def test_a_rule_that_fits_nothing_is_refused(rules, message):
    optimizer = make_optimizer(replace(PLAIN, rules=tuple(OptimizerRule(globs=(glob,)) for glob in rules)))
    with pytest.raises(UserError, match=message):
        optimizer.init({"vision": {"kernel": jnp.ones(2)}, "decoder": {"kernel": jnp.ones(2)}})


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
