"""Loss without logits against the plain loss: values and gradients, in chunks and whole, and the memory it takes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfusion.training.cross_entropy import ON_CPU, ON_GPU, CrossEntropy, chunk_size, linear_cross_entropy, logits_loss

ROWS, COLUMNS, WIDTH, VOCAB = 3, 400, 8, 37
OPTIONS = {
    "plain": CrossEntropy(),
    "z-loss": CrossEntropy(z_loss=0.1),
    "label smoothing": CrossEntropy(label_smoothing=0.2),
    "soft-cap": CrossEntropy(softcap=2.0),
    "all": CrossEntropy(softcap=3.0, z_loss=0.05, label_smoothing=0.1),
}
# Chunks of 256 positions, and the 37 classes in blocks; or of an eighth of all positions, and no blocks.
CHUNKED = ON_CPU._replace(max_logits=4096, min_positions=256)
WHOLE = ON_GPU._replace(min_positions=64, multiple=1)


def arrays(dtype="float32"):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((ROWS, COLUMNS, WIDTH)), dtype)
    matrix = jnp.float32(rng.standard_normal((VOCAB, WIDTH)))
    weights = rng.random((ROWS, COLUMNS)) * (rng.random((ROWS, COLUMNS)) < [[0.7], [0.1], [0.0]])
    return hidden, matrix, jnp.asarray(rng.integers(0, VOCAB, (ROWS, COLUMNS))), jnp.float32(weights)


def plain(options, hidden, matrix, targets, weights):
    """As it is written in a textbook."""
    logits = (hidden @ matrix.T).astype(jnp.float32)
    if options.softcap:
        logits = options.softcap * jnp.tanh(logits / options.softcap)
    log_p = jax.nn.log_softmax(logits)
    smooth = options.label_smoothing
    truth = (1 - smooth) * jax.nn.one_hot(targets, VOCAB) + smooth / VOCAB
    losses = -jnp.sum(truth * log_p, -1) + options.z_loss * jax.nn.logsumexp(logits, -1) ** 2
    return jnp.sum(weights * losses)


def distance(ours, theirs) -> float:
    return float(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs))


@pytest.mark.parametrize("limits", [CHUNKED, WHOLE], ids=["blocks", "whole"])
@pytest.mark.parametrize("name", OPTIONS)
def test_values_and_gradients_are_the_plain_losses(name, limits):
    options, (hidden, matrix, targets, weights) = OPTIONS[name], arrays()

    def ours(hidden, matrix):
        return 3 * linear_cross_entropy(hidden, matrix, targets, weights, options, limits).loss

    theirs = jax.value_and_grad(lambda h, m: 3 * plain(options, h, m, targets, weights), argnums=(0, 1))
    (value, gradients), (expected, wanted) = (
        jax.jit(f)(hidden, matrix) for f in (jax.value_and_grad(ours, argnums=(0, 1)), theirs)
    )
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert ours(hidden, matrix) == pytest.approx(float(expected), rel=1e-5)
    assert max(map(distance, gradients, wanted)) < 1e-5
    assert (np.asarray(gradients[0])[np.asarray(weights) == 0] == 0).all()


@pytest.mark.parametrize("limits", [CHUNKED, WHOLE], ids=["blocks", "whole"])
def test_the_other_sums(limits):
    hidden, matrix, targets, weights = arrays()
    targets = jnp.where(jnp.arange(COLUMNS) % 2, jnp.argmax(hidden @ matrix.T, -1), targets)
    sums = linear_cross_entropy(hidden, matrix, targets, weights, limits=limits)
    theirs = logits_loss(hidden @ matrix.T, targets, weights)
    assert sums.weight == theirs.weight
    assert 0.4 < sums.accuracy < 0.7
    assert sums.correct == pytest.approx(float(theirs.correct), rel=1e-6)


@pytest.mark.parametrize("limits", [CHUNKED, WHOLE], ids=["blocks", "whole"])
def test_positions_without_a_weight_are_not_computed(limits):
    hidden, matrix, targets, _ = arrays()
    # Two chunks full of them, mostly in one row.
    count = 2 * {CHUNKED: 256, WHOLE: ROWS * COLUMNS // 8}[limits]
    carry = np.sort(np.random.default_rng(1).permutation(count + 100)[:count])
    weights = jnp.zeros(ROWS * COLUMNS).at[carry].set(0.5).reshape(ROWS, COLUMNS)
    absent = jnp.where(weights[..., None] > 0, hidden, jnp.nan)

    def ours(hidden, matrix):
        return linear_cross_entropy(hidden, matrix, targets, weights, limits=limits).loss

    value, gradients = jax.value_and_grad(ours, argnums=(0, 1))(absent, matrix)
    expected, wanted = jax.value_and_grad(partial(plain, CrossEntropy()), argnums=(0, 1))(
        hidden, matrix, targets, weights
    )
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert max(map(distance, gradients, wanted)) < 1e-5


@pytest.mark.parametrize(
    ("positions", "vocab", "expected"), [(16_384, 128_256, 512), (32_768, 49_152, 1_280), (300, 128_256, 300)]
)
def test_a_gpus_chunk_is_large_and_laid_out_evenly(positions, vocab, expected):
    assert chunk_size(positions, vocab, ON_GPU) == expected


def test_the_first_of_equal_logits_is_the_models_choice():
    logits = jnp.zeros((2, 5)).at[:, 2:4].set(1.0)
    assert logits_loss(logits, jnp.array([2, 3]), jnp.ones(2)).correct == 1


def test_no_weight_at_all_is_no_loss_and_no_gradient():
    hidden, matrix, targets, weights = arrays()
    value, gradient = jax.value_and_grad(
        lambda matrix: linear_cross_entropy(hidden, matrix, targets, 0 * weights, limits=CHUNKED).loss
    )(matrix)
    assert value == 0
    assert not gradient.any()


def test_in_bfloat16_the_sums_are_still_float32():
    hidden, matrix, targets, weights = arrays("bfloat16")

    def ours(hidden, matrix):
        return linear_cross_entropy(hidden, matrix, targets, weights, limits=CHUNKED).loss

    value, (by_hidden, by_matrix) = jax.value_and_grad(ours, argnums=(0, 1))(hidden, matrix)
    assert (value.dtype, by_hidden.dtype, by_matrix.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    exact = jax.grad(partial(plain, CrossEntropy()), argnums=1)(hidden.astype(jnp.float32), matrix, targets, weights)
    assert distance(by_matrix, exact) < 1e-2


def dots(function, *arguments) -> int:
    return str(jax.make_jaxpr(function)(*arguments)).count("dot_general")


def test_what_is_frozen_is_not_computed():
    hidden, matrix, targets, weights = arrays()

    def ours(hidden, matrix):
        return linear_cross_entropy(hidden, matrix, targets, weights).loss

    assert dots(ours, hidden, matrix) == 1
    assert dots(jax.grad(ours, argnums=0), hidden, matrix) == 2
    assert dots(jax.grad(ours, argnums=1), hidden, matrix) == 2
    assert dots(jax.grad(ours, argnums=(0, 1)), hidden, matrix) == 3


def test_memory_does_not_grow_with_positions_times_vocabulary():
    positions, width, vocab = 8192, 1024, 131_072
    shapes = [((4, positions // 4, width), "float32"), ((vocab, width), "float32")]
    shapes += [((4, positions // 4), "int32"), ((4, positions // 4), "float32")]

    def ours(hidden, matrix, targets, weights):
        return linear_cross_entropy(hidden, matrix, targets, weights).loss

    step = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))
    compiled = step.lower(*(jax.ShapeDtypeStruct(*shape) for shape in shapes)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * 4 * positions * vocab
