"""What goes into a checkpoint comes out of it, bit for bit, or an error says why not."""

import shutil
from functools import partial

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxfusion.config.model import ModelConfig, TextEmbeddingConfig, TokenClassifierConfig
from jaxfusion.config.run import OptimizerRule, TrainConfig
from jaxfusion.errors import UserError
from jaxfusion.models.vlm import build
from jaxfusion.training.checkpoint import Checkpoints, restore_params
from jaxfusion.training.optimizer import make_optimizer
from jaxfusion.training.state import create_state

OPTIMIZER = make_optimizer(TrainConfig())


def new_state(width: int = 8, seed: int = 0):
    text = TextEmbeddingConfig(vocab_size=5)
    model = build(ModelConfig(width=width, text_embedding=text, decoder=TokenClassifierConfig()))
    return create_state(model, OPTIMIZER, jax.random.key(seed))


def at_step(step: int):
    """A state whose every leaf has values of its own."""
    state = new_state()
    leaves, structure = jax.tree.flatten(state)
    rng = np.random.default_rng(step)
    leaves = [(rng.random(leaf.shape) * 1e6).astype(leaf.dtype) for leaf in leaves]
    return jax.tree.map(jax.numpy.asarray, jax.tree.unflatten(structure, leaves)).replace(step=jax.numpy.int32(step))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_all_of_a_state_and_the_iterator_come_back(tmp_path):
    abstract = jax.eval_shape(new_state)
    iterator_state = {"next_index": 17, "parents": [{"epoch": 2}, {"epoch": 3}]}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore_latest(abstract) is None
        checkpoints.save(3, at_step(3), iterator_state)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        state, restored_iterator = checkpoints.restore_latest(abstract)
    assert_same(state, at_step(3))
    assert restored_iterator == iterator_state
    assert_same(restore_params(tmp_path, abstract.params), at_step(3).params)


def test_the_state_of_several_optimizers_comes_back(tmp_path):
    rules = (OptimizerRule(globs=("decoder/*",), optimizer="lion"),)
    optimizer = make_optimizer(TrainConfig(optimizer="muon", rules=rules))
    state = at_step(2)
    state = state.replace(opt_state=optimizer.update(state.params, optimizer.init(state.params), state.params)[1])
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(2, state, {})
        restored, _ = checkpoints.restore_latest(jax.eval_shape(lambda: state))
    assert_same(restored, state)


def test_a_save_in_the_background_is_of_the_state_that_was_given(tmp_path):
    """The step after it reuses the state's memory."""
    step = jax.jit(partial(jax.tree.map, lambda x: x + 1), donate_argnums=0)
    state = at_step(1)
    expected = jax.tree.map(np.array, state)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(5):
            state = step(state)
        restored, _ = checkpoints.restore_latest(jax.eval_shape(new_state))
    assert_same(restored, expected)


def test_the_newest_checkpoints_are_kept_and_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 3):
            checkpoints.save(step, at_step(step), {"step": step})
        checkpoints.wait()
        assert checkpoints.latest_step == 3
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]
    with pytest.raises(UserError, match=r"config\.train\.keep_checkpoints"):
        Checkpoints(tmp_path, keep=0)


def test_an_unfinished_checkpoint_is_passed_over(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(4, at_step(4), {"step": 4})
    # What a kill in the middle of Orbax's write leaves: the temporary name, and not all of the files.
    unfinished = tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp-123"
    shutil.copytree(tmp_path / "checkpoints" / "4", unfinished)
    shutil.rmtree(unfinished / "optimizer")
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        state, _ = checkpoints.restore_latest(jax.eval_shape(new_state))
    assert_same(state, at_step(4))


def test_another_models_checkpoint_is_refused_by_name(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, at_step(1), {})
        wider = jax.eval_shape(partial(new_state, 12))
        message = r"params/decoder/kernel is of shape \(8, 5\) .* \(12, 5\)"
        with pytest.raises(UserError, match=message):
            checkpoints.restore_latest(wider)
        with pytest.raises(UserError, match=message):
            restore_params(tmp_path, wider.params)
        plain = wider.replace(params=new_state().params, opt_state=optax.sgd(1.0).init(new_state().params))
        with pytest.raises(UserError, match=r"optimizer/opt_state.* absent in the config's"):
            checkpoints.restore_latest(plain)


def test_a_workdir_without_a_checkpoint_is_refused(tmp_path):
    params = jax.eval_shape(new_state).params
    with pytest.raises(UserError, match="no trained model"):
        restore_params(tmp_path, params)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no finished checkpoint"):
        restore_params(tmp_path, params)


def test_what_is_not_wanted_is_not_read(tmp_path, monkeypatch):
    """Of a large run one room alone, for another run that begins with it."""
    abstract, asked, restore = jax.eval_shape(new_state), [], ocp.Checkpointer.restore

    def watched(self, path, args):
        asked.extend(jax.tree.leaves(args.item))
        return restore(self, path, args=args)

    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(3, at_step(3), {})
    monkeypatch.setattr(ocp.Checkpointer, "restore", watched)
    found = restore_params(tmp_path, abstract.params, prefixes=("text_embedding/",))
    assert_same(found, {"text_embedding": at_step(3).params["text_embedding"]})
    assert len(asked) == len(jax.tree.leaves(found)) < len(jax.tree.leaves(abstract.params))
