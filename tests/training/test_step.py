"""One training step against gradients taken by hand, and what its metrics count."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxfusion.batch import Batch
from jaxfusion.config.model import ModelConfig, TextEmbeddingConfig, TokenClassifierConfig, TransformerDecoderConfig
from jaxfusion.config.run import TrainConfig
from jaxfusion.models.vlm import build
from jaxfusion.training.losses import loss
from jaxfusion.training.optimizer import make_optimizer
from jaxfusion.training.state import create_state
from jaxfusion.training.step import eval_step, train_step


def make_model(decoder):
    text = TextEmbeddingConfig(vocab_size=11, positions="none")
    return build(ModelConfig(width=16, text_embedding=text, decoder=decoder))


def make_batch() -> Batch:
    """Rows of 4 to 8 tokens of a sequence in which each token says what the next one is."""
    tokens = (np.arange(8) + np.arange(4)[:, None]) * 3 % 11
    return Batch.from_tokens(tokens, lengths=np.array([8, 4, 6, 5]))


def new_state(model, optimizer):
    return jax.jit(partial(create_state, model, optimizer))(jax.random.key(0))


@pytest.fixture(scope="module")
def model():
    return make_model(TokenClassifierConfig())


@pytest.fixture(scope="module")
def state(model):
    return new_state(model, optax.sgd(0.5))


@pytest.fixture(scope="module")
def sgd_step(model):
    return jax.jit(partial(train_step, model, optax.sgd(0.5)))


def test_the_update_is_the_gradient_of_the_mean_loss(model, state, sgd_step):
    new, metrics = sgd_step(state, make_batch())
    expected_loss, gradients = jax.jit(jax.value_and_grad(partial(loss, model)))(state.params, make_batch())
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, gradients)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), new.params, expected)
    assert int(new.step) == 1
    assert float(metrics["loss"]) == pytest.approx(float(expected_loss), rel=1e-6)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradients)))
    assert float(metrics["gradient_norm"]) == pytest.approx(float(norm), rel=1e-5)


def test_in_parts_the_step_is_the_same(model, state, sgd_step):
    """Rows of different lengths: the parts' weights differ, and their mean losses must not simply be averaged."""
    whole, metrics = sgd_step(state, make_batch())
    for parts in (2, 4):
        new, also = jax.jit(partial(train_step, model, optax.sgd(0.5), accumulate=parts))(state, make_batch())
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), new.params, whole.params)
        assert {k: float(v) for k, v in also.items()} == pytest.approx({k: float(v) for k, v in metrics.items()}, 1e-6)


def test_metrics_count_real_tokens_and_segments(state, sgd_step):
    ids = np.zeros((4, 8), np.int32)
    ids[0, :7], ids[1, :3], ids[1, 3:8] = 1, 1, 2  # one segment, two segments, and two empty rows
    _, metrics = sgd_step(state, make_batch().replace(segment_ids=ids))
    assert (int(metrics["tokens"]), int(metrics["samples"])) == (15, 3)


def test_a_batch_without_loss_weights_changes_nothing(state, sgd_step):
    new, metrics = sgd_step(state, make_batch().replace(loss_weights=jnp.zeros((4, 8))))
    assert float(metrics["loss"]) == 0.0
    jax.tree.map(np.testing.assert_array_equal, new.params, state.params)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
def test_where_a_gradient_is_not_finite_all_but_the_step_stays_as_it_was(model, kind, accumulate):
    """A map to a teacher's hidden states, which would at least decay, is among it."""
    optimizer = make_optimizer(TrainConfig(optimizer=kind, weight_decay=0.5, warmup_steps=0))
    step = jax.jit(partial(train_step, model, optimizer, accumulate=accumulate))
    state = jax.jit(partial(create_state, model, optimizer, map_shape=(4, 3)))(jax.random.key(0))
    state, metrics = step(state, make_batch())
    assert int(metrics["skipped_updates"]) == 0
    weights = make_batch().loss_weights
    for bad in (np.nan, np.inf, 3e38):  # the last is finite, and the gradient's norm is not
        new, metrics = step(state, make_batch().replace(loss_weights=weights * np.float32(bad)))
        assert int(metrics["skipped_updates"]) == 1
        assert int(new.step) == int(state.step) + 1
        jax.tree.map(np.testing.assert_array_equal, new.replace(step=state.step), state)
    new, _ = step(state, make_batch())  # and the same function does make updates
    for name in ("params", "feature_map"):
        for leaf, old in zip(jax.tree.leaves(getattr(new, name)), jax.tree.leaves(getattr(state, name)), strict=True):
            assert not np.array_equal(leaf, old)


def test_a_tiny_batch_is_learned_by_heart(model):
    batch, optimizer = make_batch(), make_optimizer(TrainConfig(learning_rate=0.02, num_steps=60, warmup_steps=5))
    step = jax.jit(partial(train_step, model, optimizer), donate_argnums=0)
    state = new_state(model, optimizer)
    for _ in range(60):
        state, _ = step(state, batch)
    sums = jax.jit(partial(eval_step, model))(state.params, batch)
    assert float(sums.mean_loss) < 0.05
    assert float(sums.accuracy) == 1.0


def test_dropout_is_drawn_anew_each_step_and_again_the_same():
    model = make_model(TransformerDecoderConfig(num_layers=1, num_heads=2, dropout=0.5))
    step = jax.jit(partial(train_step, model, optax.sgd(0.0)))
    state = new_state(model, optax.sgd(0.0))
    first, metrics = step(state, make_batch())
    _, again = step(state, make_batch())
    _, second = step(first, make_batch())
    assert float(metrics["loss"]) == float(again["loss"])
    assert float(metrics["loss"]) != float(second["loss"])


def test_each_part_has_dropout_of_its_own():
    """Two equal rows, one a part: with one mask for both the loss would be either one's."""
    model = make_model(TransformerDecoderConfig(num_layers=1, num_heads=2, dropout=0.5, scan_layers=False))
    batch = jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], 2, axis=0), make_batch())
    step = partial(train_step, model, optax.sgd(0.0))
    state = new_state(model, optax.sgd(0.0))
    keys = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step), 2)
    _, metrics = jax.jit(partial(step, accumulate=2))(state, batch)
    row = jax.tree.map(lambda leaf: leaf[:1], batch)
    of_row = jax.jit(partial(loss, model))
    losses = [float(of_row(state.params, row, key)) for key in keys]
    assert losses[0] != losses[1]
    assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
