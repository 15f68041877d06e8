"""Soft targets against Hinton's formula in float64, in chunks and whole; what the teacher's step costs and keeps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxfusion.batch import Batch
from jaxfusion.config.model import ModelConfig, TextEmbeddingConfig, TransformerDecoderConfig
from jaxfusion.models.vlm import build, features, forward, init
from jaxfusion.training.cross_entropy import ON_CPU, ON_GPU, CrossEntropy, linear_cross_entropy
from jaxfusion.training.distillation import Distillation, SoftTargets, Told, ToldTopK, top_k
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
    "no targets": (CrossEntropy(z_loss=0.05, label_smoothing=0.1), SoftTargets(temperature=1.0, weight=1.0)),
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


def in_float64(options, soft, hidden, matrix, targets, weights, told, told_matrix, largest=0) -> tuple[float, float]:
    """(loss, divergence), as they are written in the paper. largest: so many of the teacher's classes; all others are
    one; 0: none are."""

    def probabilities(logits, temperature):
        powers = np.exp(logits / temperature)
        return powers / powers.sum(-1, keepdims=True)

    def bent(logits, cap):
        return cap * np.tanh(logits / cap) if cap else logits

    hidden, matrix, weights, told, told_matrix = map(np.float64, (hidden, matrix, weights, told, told_matrix))
    logits, theirs = bent(hidden @ matrix.T, options.softcap), bent(told @ told_matrix.T, soft.softcap)
    truth = (1 - options.label_smoothing) * np.eye(VOCAB)[np.asarray(targets)] + options.label_smoothing / VOCAB
    hard = -np.sum(truth * np.log(probabilities(logits, 1)), -1)
    normal = options.z_loss * np.log(np.exp(logits).sum(-1)) ** 2
    p, q = probabilities(theirs, soft.temperature), probabilities(logits, soft.temperature)
    if largest:
        p, q = grouped(p, p, largest), grouped(q, p, largest)
    divergence = np.sum(weights * soft.temperature**2 * np.sum(p * np.log(p / q), -1))
    return np.sum(weights * ((1 - soft.weight) * hard + normal)) + soft.weight * divergence, divergence


def grouped(probabilities, by, largest):
    """Those of the classes that are `by`'s largest, and the sum of all others."""
    order = np.argsort(-by, -1)
    sorted_ = np.take_along_axis(probabilities, order, -1)
    return np.concatenate([sorted_[..., :largest], sorted_[..., largest:].sum(-1, keepdims=True)], -1)


def say(soft, told, told_matrix, largest) -> ToldTopK:
    logits = jnp.einsum("bte,ve->btv", told, told_matrix)
    logits = soft.softcap * jnp.tanh(logits / soft.softcap) if soft.softcap else logits
    return ToldTopK(*top_k(logits, largest, soft.temperature), soft)


@pytest.mark.parametrize("largest", [0, 5])
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_hintons(name, limits, largest):
    (options, soft), given = CASES[name], arrays()
    hidden, matrix, targets, weights, *spoken = given
    told = say(soft, *spoken, largest) if largest else Told(*spoken, soft)

    @jax.jit
    def ours(hidden, matrix):
        def loss(hidden, matrix):
            sums = linear_cross_entropy(hidden, matrix, targets, weights, options, LIMITS[limits], told)
            return 3 * sums.loss, sums

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(hidden, matrix)

    (_, sums), gradients = ours(hidden, matrix)
    loss, divergence = in_float64(options, soft, *given, largest)
    assert float(sums.loss) == pytest.approx(loss, rel=1e-5)
    assert float(sums.divergence) == pytest.approx(divergence, rel=1e-5)
    assert (np.asarray(gradients[0])[np.asarray(weights) == 0] == 0).all()
    rng = np.random.default_rng(1)
    for index in (0, 1):  # in a random direction, from both sides
        way = rng.standard_normal(given[index].shape)
        either = (
            [np.float64(x) + step * way if i == index else x for i, x in enumerate(given)] for step in (1e-6, -1e-6)
        )
        above, below = (in_float64(options, soft, *moved, largest)[0] for moved in either)
        assert float(np.sum(gradients[index] * way)) == pytest.approx(3 * (above - below) / 2e-6, rel=1e-4)


def test_all_of_the_classes_said_beforehand_are_the_teacher_itself():
    hidden, matrix, targets, weights, *spoken = arrays()
    _, soft = CASES["all"]

    def ours(told):
        def loss(hidden, matrix):
            return linear_cross_entropy(hidden, matrix, targets, weights, limits=LIMITS["blocks"], told=told).loss

        return jax.value_and_grad(loss, argnums=(0, 1))(hidden, matrix)

    found, expected = ours(say(soft, *spoken, VOCAB)), ours(Told(*spoken, soft))
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-6)
    for one, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("mapped", [True, False])
def test_hidden_states_are_compared_by_their_cosine(mapped):
    rng = np.random.default_rng(2)
    student, told = rng.standard_normal((2, 5, WIDTH)), rng.standard_normal((2, 5, TEACHER_WIDTH if mapped else WIDTH))
    given = (student, rng.standard_normal((WIDTH, TEACHER_WIDTH))) if mapped else (student,)

    def in_float64(student, kernel=None):
        ours = student if kernel is None else student @ kernel
        return 1 - (ours * told).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(told, axis=-1)

    def ours(student, kernel=None):
        told_ = Told(jnp.float32(told), jnp.zeros((3, told.shape[-1])), SoftTargets(), 1.0, kernel)
        return told_.distances(student)

    arrays = tuple(map(jnp.float32, given))
    np.testing.assert_allclose(ours(*arrays), in_float64(*given), rtol=1e-5)
    gradients = jax.grad(lambda *arrays: ours(*arrays).sum(), argnums=tuple(range(len(given))))(*arrays)
    for index, gradient in enumerate(gradients):
        way = rng.standard_normal(given[index].shape)
        above, below = (
            in_float64(*(x + step * way if i == index else x for i, x in enumerate(given))).sum()
            for step in (1e-6, -1e-6)
        )
        assert float(np.sum(gradient * way)) == pytest.approx((above - below) / 2e-6, rel=1e-4)


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


def test_hidden_states_have_their_share_and_their_map_learns_along(student, teacher):
    (model, _), (_, params) = student, teacher
    distillation = Distillation(make_model(16), temperature=2.0, weight=0.75, features=2.0)
    assert distillation.map_shape(model) == (8, 16) and distillation.map_shape(distillation.teacher) is None
    new_state = partial(create_state, model, optax.sgd(1.0), map_shape=(8, 16))
    state, batch = jax.jit(new_state)(jax.random.key(0)).replace(teacher=params), make_batch()
    new, metrics = jax.jit(partial(train_step, model, optax.sgd(1.0), distillation=distillation))(state, batch)
    plain = Distillation(distillation.teacher, temperature=2.0, weight=0.75)
    _, without = jax.jit(partial(train_step, model, optax.sgd(1.0), distillation=plain))(state, batch)

    def textbook(kernel):
        ours, theirs = features(model, state.params, batch) @ kernel, features(distillation.teacher, params, batch)
        cosine = jnp.sum(ours * theirs, -1) / jnp.linalg.norm(ours, axis=-1) / jnp.linalg.norm(theirs, axis=-1)
        return jnp.sum(batch.loss_weights * (1 - cosine)) / batch.loss_weights.sum()

    distance, gradient = jax.jit(jax.value_and_grad(textbook))(state.feature_map["kernel"])
    assert float(metrics["feature_distance"]) == pytest.approx(float(distance), rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(float(without["loss"] + 2 * distance), rel=1e-5)
    moved = state.feature_map["kernel"] - 2 * gradient
    np.testing.assert_allclose(new.feature_map["kernel"], moved, rtol=1e-4, atol=1e-5)
    assert new.params.keys() == state.params.keys()


def test_what_it_says_beforehand_is_what_it_would_say(teacher):
    distillation, params = teacher
    batch = make_batch()
    logits = forward(distillation.teacher, params, batch)
    expected = top_k(logits, 3, 2.0)
    for at_once in (1 << 25, 11):  # logits
        said = jax.jit(partial(distillation.say, k=3, max_logits=at_once))(params, batch)
        np.testing.assert_array_equal(said.ids, expected.ids)
        np.testing.assert_allclose(said.log_probs, expected.log_probs, atol=1e-5)
        np.testing.assert_allclose(said.log_rest, expected.log_rest, atol=1e-5)
    np.testing.assert_allclose(np.exp(said.log_probs).sum(-1) + np.exp(said.log_rest), 1, rtol=1e-5)
