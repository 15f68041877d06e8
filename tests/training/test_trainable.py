"""Frozen parameters keep their bits, cost no state and no arithmetic; "*" trains as if there were no freezing."""

import functools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfusion.batch import Batch
from jaxfusion.config import Config
from jaxfusion.config.model import ModelConfig, TextEmbeddingConfig, TransformerDecoderConfig, ViTConfig
from jaxfusion.config.run import TrainConfig
from jaxfusion.errors import UserError
from jaxfusion.models.vlm import build
from jaxfusion.training.checkpoint import Checkpoints
from jaxfusion.training.loop import train
from jaxfusion.training.losses import forward_loss, loss
from jaxfusion.training.optimizer import make_optimizer
from jaxfusion.training.state import create_state
from jaxfusion.training.step import train_step
from jaxfusion.training.trainable import join, split

VOCAB, IMAGE = 11, 10
MODEL = build(
    ModelConfig(
        width=16,
        text_embedding=TextEmbeddingConfig(vocab_size=VOCAB),
        vision=ViTConfig(
            image_size=8, patch_size=4, width=16, num_layers=1, num_heads=2, mlp_width=32, scan_layers=False
        ),
        decoder=TransformerDecoderConfig(num_layers=1, num_heads=2, scan_layers=False),
    )
)
TRAIN = TrainConfig(num_steps=20, warmup_steps=1, learning_rate=0.01, weight_decay=0.5, batch_size=4)
OPTIMIZER = make_optimizer(TRAIN)
PROJECTOR = ("projector/*",)


def make_batch(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    tokens = np.concatenate([np.full((4, 5), IMAGE), rng.integers(0, IMAGE, (4, 3))], axis=1)
    batch = Batch.from_tokens(tokens, rng.integers(0, 255, (4, 1, 8, 8, 3)).astype(np.uint8), IMAGE)
    return jax.tree.map(np.asarray, batch)


@functools.cache
def new_state(trainable=("*",)):
    return jax.jit(partial(create_state, MODEL, OPTIMIZER, trainable=trainable))(jax.random.key(0))


def paths(params) -> set[str]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves}


def sizes(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    "globs", [("*",), PROJECTOR, ("vision/*", "*_norm/*"), ("decoder/layer*/attention/*", "text_embedding/embedding")]
)
def test_every_parameter_is_in_one_part_and_joined_they_are_the_whole(globs):
    params = new_state().params
    trainable, frozen = split(params, globs)
    assert not paths(trainable) & paths(frozen)
    assert_same(join(trainable, frozen), params)


def test_globs_choose_by_path():
    trainable, frozen = split({"a": {"b": {"c": 1, "d": 2}}, "e": {"c": 3}}, ("a/*/c", "e*"))
    assert (trainable, frozen) == ({"a": {"b": {"c": 1}}, "e": {"c": 3}}, {"a": {"b": {"d": 2}}})
    assert split({"a": {"b": 1}}, ("*",)) == ({"a": {"b": 1}}, {})


@pytest.mark.parametrize(
    ("globs", "message"),
    [
        (
            ("*", "projecter/*"),
            r"config\.train\.trainable: no parameter fits 'projecter/\*'; did you mean 'projector/\*'",
        ),
        (("vision",), r"no parameter fits 'vision'; did you mean 'vision/\*'"),
        (("decoder/layers/atention/*",), r"did you mean 'decoder/layers/attention/\*'"),
        (("text_embedding/embeding",), r"did you mean 'text_embedding/embedding'"),
        (("#",), r"there are decoder/\*, projector/\*, text_embedding/\*, vision/\*"),
        ((), r"config\.train\.trainable: nothing would train"),
    ],
)
def test_a_glob_that_fits_nothing_is_named_with_what_is_near(globs, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(partial(create_state, MODEL, OPTIMIZER, trainable=globs), jax.random.key(0))


def test_frozen_parameters_keep_their_bits_and_their_type_and_the_others_learn():
    globs = ("projector/*", "decoder/*/attention/*")
    # A frozen tower needs no float32 copy; the gradient passes through what is frozen behind the projector.
    state = new_state(globs)
    vision = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params["vision"])
    state = state.replace(params=state.params | {"vision": vision})
    before, losses = state.params, []
    step = jax.jit(partial(train_step, MODEL, OPTIMIZER))
    for _ in range(20):
        state, metrics = step(state, make_batch())
        losses.append(float(metrics["loss"]))
    learned, frozen = split(state.params, globs)
    assert_same(frozen, split(before, globs)[1])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), learned, split(before, globs)[0])
    assert all(jax.tree.leaves(moved))
    assert losses[-1] < 0.95 * losses[0]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params["vision"])} == {"bfloat16"}


def test_the_trained_part_moves_by_its_own_gradient():
    """The clipping's norm, too, is of what trains alone."""
    state = new_state(PROJECTOR)
    new, metrics = jax.jit(partial(train_step, MODEL, OPTIMIZER))(state, make_batch())
    gradients = jax.jit(jax.grad(partial(loss, MODEL)))(state.params, make_batch())
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradients["projector"])))
    assert float(metrics["gradient_norm"]) == pytest.approx(float(norm), rel=1e-5)
    projector = state.params["projector"]
    updates, _ = OPTIMIZER.update(gradients["projector"], OPTIMIZER.init(projector), projector)
    expected = jax.tree.map(jnp.add, projector, updates)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), new.params["projector"], expected)


def test_the_optimizer_holds_two_moments_of_what_trains_and_two_counters():
    for globs in (PROJECTOR, ("*",)):
        state = new_state(globs)
        assert sizes(state.opt_state) == 2 * sizes(split(state.params, globs)[0]) + 2


def test_the_default_is_the_plain_step():
    """As if nothing could be frozen: the same numbers, and the same optimizer state, so older checkpoints fit."""

    def plain(state, batch):
        def summed(params):
            sums = forward_loss(MODEL, params, batch, dropout_rng)
            return sums.loss, sums

        dropout_rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        gradients, sums = jax.grad(summed, has_aux=True)(state.params)
        gradients = jax.tree.map(lambda g: g / jnp.where(sums.weight > 0, sums.weight, 1.0), gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        return jax.tree.map(jnp.add, state.params, updates), opt_state

    # A larger eps: the keys' biases have no gradient but rounding's, which AdamW would make whole steps of.
    optimizer = make_optimizer(replace(TRAIN, eps=1e-3))
    state = new_state()
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(optimizer.init(state.params))
    new, _ = jax.jit(partial(train_step, MODEL, optimizer))(state, make_batch())
    params, opt_state = jax.jit(plain)(state, make_batch())
    same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(same, new.params, params)
    jax.tree.map(same, new.opt_state, opt_state)


class Batches:
    """The n-th batch is of seed n, for ever."""

    def __init__(self):
        self.number = 0

    def __next__(self):
        self.number += 1
        return make_batch(self.number)

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


def test_a_run_with_frozen_parameters_goes_on_bit_for_bit(tmp_path):
    def run(num_steps: int, workdir: str, **settings):
        config = Config(model=MODEL.config, train=replace(TRAIN, num_steps=num_steps, trainable=PROJECTOR, **settings))
        return train(config, MODEL, Batches(), tmp_path / workdir)

    # A constant rate: the schedule's end is the one thing that a shorter run has otherwise.
    settings = {"warmup_steps": 100}
    run(3, "broken", **settings)
    continued, unbroken = run(6, "broken", **settings), run(6, "unbroken", **settings)
    assert_same(continued, unbroken)
    assert continued.trainable == PROJECTOR
    assert_same(split(continued.params, PROJECTOR)[1], split(new_state().params, PROJECTOR)[1])
    with Checkpoints(tmp_path / "broken", keep=2) as checkpoints, pytest.raises(UserError, match="absent in the check"):
        checkpoints.restore_latest(jax.eval_shape(new_state))
