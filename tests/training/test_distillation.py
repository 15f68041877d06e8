"""Soft targets against Hinton's formula in float64, in chunks and whole; what the teacher's step costs and keeps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxfusion.batch import Batch
from jaxfusion.config.model import ModelConfig, TextEmbeddingConfig, TransformerDecoderConfig
from jaxfusion.models.vlm import build, forward, init
from jaxfusion.training.cross_entropy import ON_CPU, ON_GPU, CrossEntropy, linear_cross_entropy
from jaxfusion.training.distillation import Distillation, SoftTargets, Told
from jaxfusion.training.state import create_state
from jaxfusion.training.step import train_step

ROWS, COLUMNS, WIDTH, TEACHER_WIDTH, VOCAB = 2, 300, 8, 12, 37
# As in test_cross_entropy.py, but for half as many logits, since the teacher has the others.
LIMITS = {
    "blocks": ON_CPU._replace(max_logits=8192, min_positions=128),
    "whole": ON_GPU._replace(min_positions=64, multiple=1),
}
CASES = {
    "plain": (CrossEntropy(), SoftTargets(temperature=1.0, weight=0.5)),
    "warm": (CrossEntropy(), SoftTargets(temperature=3.0, weight=1.0)),
    "all": (
        CrossEntropy(softcap=3.0, z_loss=0.05, label_smoothing=0.1),
        SoftTargets(temperature=2.0, weight=0.7, softcap=2.0),
    ),
}


def arrays():
    rng = np.random.default_rng(0)
    hidden, told = (rng.standard_normal((ROWS, COLUMNS, width)) for width in (WIDTH, TEACHER_WIDTH))
    matrix, told_matrix = (rng.standard_normal((VOCAB, width)) for width in (WIDTH, TEACHER_WIDTH))
    weights = rng.random((ROWS, COLUMNS)) * (rng.random((ROWS, COLUMNS)) < [[0.6], [0.2]])
    targets = rng.integers(0, VOCAB, (ROWS, COLUMNS))
    return *map(jnp.float32, (hidden, matrix)), jnp.asarray(targets), *map(jnp.float32, (weights, told, told_matrix))


def in_float64(options, soft, hidden, matrix, targets, weights, told, told_matrix) -> tuple[float, float]:
    """(loss, divergence), as they are written in the paper."""

    def probabilities(logits, temperature):
        powers = np.exp(logits / temperature)
        return powers / powers.sum(-1, keepdims=True)

    def bent(logits, cap):
        return cap * np.tanh(logits / cap) if cap else logits

    hidden, matrix, weights, told, told_matrix = map(np.float64, (hidden, matrix, weights, told, told_matrix))
    logits, theirs = bent(hidden @ matrix.T, options.softcap), bent(told @ told_matrix.T, soft.softcap)
    truth = (1 - options.label_smoothing) * np.eye(VOCAB)[np.asarray(targets)] + options.label_smoothing / VOCAB
    hard = -np.sum(truth * np.log(probabilities(logits, 1)), -1)
    hard += options.z_loss * np.log(np.exp(logits).sum(-1)) ** 2
    p, q = probabilities(theirs, soft.temperature), probabilities(logits, soft.temperature)
    divergence = np.sum(weights * soft.temperature**2 * np.sum(p * np.log(p / q), -1))
    return (1 - soft.weight) * np.sum(weights * hard) + soft.weight * divergence, divergence


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_hintons(name, limits):
    (options, soft), given = CASES[name], arrays()
    hidden, matrix, targets, weights, *told = given

    @jax.jit
    def ours(hidden, matrix):
        def loss(hidden, matrix):
            sums = linear_cross_entropy(hidden, matrix, targets, weights, options, LIMITS[limits], Told(*told, soft))
            return 3 * sums.loss, sums

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(hidden, matrix)

    (_, sums), gradients = ours(hidden, matrix)
    loss, divergence = in_float64(options, soft, *given)
    assert float(sums.loss) == pytest.approx(loss, rel=1e-5)
    assert float(sums.divergence) == pytest.approx(divergence, rel=1e-5)
    assert (np.asarray(gradients[0])[np.asarray(weights) == 0] == 0).all()
    rng = np.random.default_rng(1)
    for index in (0, 1):  # in a random direction, from both sides
        way = rng.standard_normal(given[index].shape)
        either = (
            [np.float64(x) + step * way if i == index else x for i, x in enumerate(given)] for step in (1e-6, -1e-6)
        )
        above, below = (in_float64(options, soft, *moved)[0] for moved in either)
        assert float(np.sum(gradients[index] * way)) == pytest.approx(3 * (above - below) / 2e-6, rel=1e-4)


def test_a_model_is_not_off_from_itself_and_an_equal_teacher_moves_nothing():
    hidden, matrix, targets, weights, *_ = arrays()

    def ours(hidden, matrix, told, told_matrix):
        told = Told(told, told_matrix, SoftTargets(temperature=1.0, weight=1.0))
        return linear_cross_entropy(hidden, matrix, targets, weights, limits=LIMITS["blocks"], told=told).loss

    loss, gradients = jax.value_and_grad(ours, argnums=(0, 1, 2, 3))(hidden, matrix, hidden, matrix)
    assert abs(float(loss)) < 1e-3 * float(weights.sum())
    assert max(float(jnp.abs(gradient).max()) for gradient in gradients[:2]) < 1e-4
    assert not any(gradient.any() for gradient in gradients[2:])  # nothing ever flows into the teacher


def test_memory_does_not_grow_with_positions_times_vocabulary():
    positions, width, vocab = 4096, 256, 131_072
    floats = [(4, positions // 4, width), (vocab, width), (4, positions // 4)]
    hidden, matrix, weights = (jax.ShapeDtypeStruct(shape, "float32") for shape in floats)
    targets = jax.ShapeDtypeStruct(weights.shape, "int32")

    def ours(hidden, matrix, targets, weights, told, told_matrix):
        told = Told(told, told_matrix, SoftTargets(temperature=2.0))
        return linear_cross_entropy(hidden, matrix, targets, weights, told=told).loss

    step = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))
    compiled = step.lower(hidden, matrix, targets, weights, hidden, matrix).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.25 * 4 * positions * vocab


# --- the step ---------------------------------------------------------------------------------------------------------


def make_model(width: int, dtype: str = "float32"):
    decoder = TransformerDecoderConfig(num_layers=1, num_heads=2, dropout=0.0, scan_layers=False)
    text = TextEmbeddingConfig(vocab_size=11, max_positions=8)
    return build(ModelConfig(width=width, dtype=dtype, text_embedding=text, decoder=decoder))


def make_batch() -> Batch:
    tokens = (np.arange(8) + np.arange(4)[:, None]) * 3 % 11
    return Batch.from_tokens(tokens, lengths=np.array([8, 4, 6, 5]))


@pytest.fixture(scope="module")
def student():
    model = make_model(8)
    return model, jax.jit(partial(create_state, model, optax.sgd(1.0)))(jax.random.key(0))


@pytest.fixture(scope="module")
def teacher():
    model = make_model(16)
    params = init(model, jax.random.key(1))
    return Distillation(model, temperature=2.0, weight=0.75), jax.tree.map(lambda leaf: 3 * leaf, params)


@pytest.fixture(scope="module")
def taught(student, teacher):
    (model, state), (distillation, params) = student, teacher
    step = jax.jit(partial(train_step, model, optax.sgd(1.0), distillation=distillation), donate_argnums=0)
    return step, jax.tree.map(jnp.copy, state.replace(teacher=params))


def copied(state):
    return jax.tree.map(jnp.copy, state)


def test_a_step_learns_from_both_and_leaves_the_teacher_alone(student, teacher, taught):
    (model, _), (distillation, params), (step, state) = student, teacher, taught
    batch = make_batch()

    def textbook(learned):
        ours, theirs = forward(model, learned, batch), forward(distillation.teacher, params, batch)
        hard = -jnp.take_along_axis(jax.nn.log_softmax(ours), jnp.asarray(batch.targets)[..., None], -1)[..., 0]
        p = jax.nn.softmax(theirs / 2)
        soft = 4 * jnp.sum(p * (jnp.log(p) - jax.nn.log_softmax(ours / 2)), -1)
        weights = batch.loss_weights / batch.loss_weights.sum()
        return jnp.sum(weights * (0.25 * hard + 0.75 * soft)), jnp.sum(weights * soft)

    new, metrics = step(copied(state), batch)
    (loss, divergence), gradients = jax.jit(jax.value_and_grad(textbook, has_aux=True))(state.params)
    expected = jax.tree.map(lambda p, g: p - g, state.params, gradients)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), new.params, expected)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics["divergence"]) == pytest.approx(float(divergence), rel=1e-5)
    jax.tree.map(np.testing.assert_array_equal, new.teacher, params)


def test_the_step_compiles_once_and_keeps_the_teacher_where_it_is(taught):
    step, state = taught
    state = copied(state)
    for _ in range(3):
        before = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.teacher)}
        state, _ = step(state, make_batch())
        assert {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.teacher)} == before
    assert step._cache_size() == 1


def test_in_parts_the_taught_step_is_the_same(student, teacher, taught):
    (model, _), (distillation, _), (step, state) = student, teacher, taught
    whole, metrics = step(copied(state), make_batch())
    new, also = jax.jit(partial(train_step, model, optax.sgd(1.0), accumulate=2, distillation=distillation))(
        state, make_batch()
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), new.params, whole.params)
    assert {k: float(v) for k, v in also.items()} == pytest.approx({k: float(v) for k, v in metrics.items()}, 1e-5)
