"""Frozen parameters take their bytes once: on the device in the compute dtype or in 8 bits, on the disk once a run."""

import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from jaxfusion.batch import Batch
from jaxfusion.config.model import (
    LoraConfig,
    MLPProjectorConfig,
    ModelConfig,
    PerceiverProjectorConfig,
    TextEmbeddingConfig,
    TransformerDecoderConfig,
    ViTConfig,
)
from jaxfusion.config.run import TrainConfig
from jaxfusion.errors import UserError
from jaxfusion.models import lora
from jaxfusion.models.int8 import dequantise, has_int8, is_int8, quantise
from jaxfusion.models.kernels import MatrixAxes, matrix_axes
from jaxfusion.models.lora import merge
from jaxfusion.models.vlm import build, features, init
from jaxfusion.training.checkpoint import Checkpoints, restore_params
from jaxfusion.training.frozen import store
from jaxfusion.training.optimizer import make_optimizer
from jaxfusion.training.state import create_state
from jaxfusion.training.step import train_step
from jaxfusion.training.trainable import join, split

VOCAB, IMAGE = 11, 10
CONFIG = ModelConfig(
    width=32,
    text_embedding=TextEmbeddingConfig(vocab_size=VOCAB),
    vision=ViTConfig(image_size=8, patch_size=4, width=16, num_layers=1, num_heads=2, mlp_width=32),
    projector=MLPProjectorConfig(),
    decoder=TransformerDecoderConfig(num_layers=2, num_heads=4, num_kv_heads=2, mlp="swiglu", mlp_width=48),
    lora=(LoraConfig(layers="decoder/layers/*", rank=2),),
)
MODEL = build(CONFIG)
GLOBS = ("*/lora_?",)
OPTIMIZER = make_optimizer(TrainConfig(learning_rate=0.02, warmup_steps=1, num_steps=100))


def make_batch() -> Batch:
    rng = np.random.default_rng(0)
    tokens = np.concatenate([np.full((2, 4), IMAGE), rng.integers(0, IMAGE, (2, 5))], axis=1)
    batch = Batch.from_tokens(tokens, rng.integers(0, 255, (2, 1, 8, 8, 3)).astype(np.uint8), IMAGE)
    return jax.tree.map(np.asarray, batch)


def random_params(model, deviation: float = 0.2):
    """NumPy's numbers, for XLA compiles its own slowly."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: init(model, key), jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.float32(deviation * rng.standard_normal(leaf.shape)), shapes)


def num_bytes(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def bytes_on_disk(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def leaves_of(params) -> dict:
    return traverse_util.flatten_dict(params, sep="/")


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for ours, theirs in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def new_state(frozen_dtype: str, model=MODEL, params=None):
    params = random_params(model) if params is None else params
    return create_state(model, OPTIMIZER, jax.random.key(0), GLOBS, params, frozen_dtype)


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, lora=(LoraConfig(layers="*"),)),
        replace(CONFIG, lora=(LoraConfig(layers="*"),), projector=PerceiverProjectorConfig(num_layers=1, num_heads=2)),
    ],
)
def test_the_axes_of_matrices_are_those_that_the_layers_multiply(config):
    """What the layers say when they are called, against what paths tell."""
    expected = {}

    def note(call, args, kwargs, context):
        layer = context.module
        if isinstance(layer, nn.Dense | nn.DenseGeneral) and context.method_name == "__call__":
            ins = 1 if isinstance(getattr(layer, "axis", -1), int) else len(layer.axis)
            outs = 1 if isinstance(layer.features, int) else len(layer.features)
            path = "/".join((*lora._prefix.get(), *layer.path))
            for name, (i, o) in {"kernel": (ins, outs), "lora_a": (ins, 1), "lora_b": (1, outs)}.items():
                axes = tuple(range(-i - o, 0))
                expected[f"{path}/{name}"] = MatrixAxes(axes[:i], axes[i:])
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        shapes = jax.eval_shape(lambda key: init(build(config), key), jax.random.key(0))
    found = {path: matrix_axes(path) for path in leaves_of(shapes) if matrix_axes(path)}
    assert found == expected and len(found) > 30


def test_what_is_no_linear_layer_has_no_axes():
    for path in ("output/kernel", "decoder/kernel", "vision/stem/conv/kernel", "encoder/layer_0_input_kernel"):
        assert matrix_axes(path) is None
    assert matrix_axes("decoder/layers/mlp/up/bias") is None


def test_8_bits_are_off_by_half_a_step_at_most():
    kernel = jnp.float32(np.random.default_rng(0).standard_normal((3, 5, 2, 4)) ** 3).at[0, :, 1, 2].set(0)
    stored = quantise(kernel, (-3,))
    assert stored.values.dtype == jnp.int8 and stored.scale.shape == (3, 1, 2, 4)
    largest = np.abs(kernel).max(axis=1, keepdims=True)
    assert np.all(np.abs(dequantise(stored) - kernel) <= largest / 127 / 2 * 1.001)
    assert not np.any(dequantise(stored)[0, :, 1, 2])
    assert dequantise({"a": stored, "b": kernel}, jnp.bfloat16)["a"].dtype == jnp.bfloat16


def test_a_layer_in_8_bits_computes_and_differentiates_as_its_float_kernel():
    model = build(replace(CONFIG, vision=None, decoder=replace(CONFIG.decoder, num_layers=1, scan_layers=False)))
    learned, frozen = split(store(model, random_params(model), GLOBS, "int8"), GLOBS)
    assert has_int8(frozen)

    batch = make_batch().replace(images=None, image_segment_ids=None)

    @jax.jit
    def outputs(learned, frozen):
        def summed(learned):
            out = features(model, join(learned, frozen), batch)
            return jnp.sum(out**2), out

        return jax.value_and_grad(summed, has_aux=True)(learned)

    (_, ours), by_ours = outputs(learned, frozen)
    (_, theirs), by_theirs = outputs(learned, dequantise(frozen))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    for a, b in zip(jax.tree.leaves(by_ours), jax.tree.leaves(by_theirs), strict=True):
        assert np.linalg.norm(a - b) < 1e-4 * np.linalg.norm(b)


def test_frozen_parameters_are_kept_as_asked_and_those_that_train_in_float32():
    model = build(replace(CONFIG, dtype="bfloat16"))
    params = random_params(model)
    for frozen_dtype, dtypes in {"compute": {"bfloat16"}, "float32": {"float32"}}.items():
        learned, frozen = split(new_state(frozen_dtype, model, params).params, GLOBS)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(learned)} == {"float32"}
        assert {leaf.dtype.name for leaf in jax.tree.leaves(frozen)} == dtypes
    learned, frozen = split(store(model, params, GLOBS, "int8"), GLOBS)
    kernels = {path for path in leaves_of(params) if path.endswith("/kernel")}
    assert {path for path, leaf in leaves_of(frozen).items() if is_int8(leaf)} == kernels
    others = {path: leaf.dtype.name for path, leaf in leaves_of(frozen).items() if path not in kernels}
    assert set(others.values()) == {"bfloat16"}
    floats = sum(leaves_of(params)[path].size for path in kernels)
    scales = sum(leaves_of(frozen)[path].scale.nbytes for path in kernels)
    assert sum(num_bytes(leaves_of(frozen)[path]) for path in kernels) == floats + scales
    assert_same(store(model, join(learned, frozen), GLOBS, "int8"), join(learned, frozen))  # once is enough


@pytest.fixture(scope="module")
def trained():
    """An int8 base, the state after each of some steps, and the program that made them."""
    state = jax.tree.map(jnp.array, new_state("int8"))
    step = jax.jit(partial(train_step, MODEL, OPTIMIZER), donate_argnums=0)
    compiled = step.lower(state, make_batch()).compile()
    states, losses = [jax.tree.map(np.array, state)], []
    for _ in range(12):
        state, metrics = compiled(state, make_batch())
        states.append(jax.tree.map(np.array, state))
        losses.append(float(metrics["loss"]))
    return states, losses, compiled


def test_adapters_learn_on_a_base_in_8_bits(trained):
    states, losses, _ = trained
    assert losses[-1] < 0.9 * losses[0]
    (before, base), (after, same) = (split(states[i].params, GLOBS) for i in (0, -1))
    assert_same(base, same)
    assert not any(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


def test_the_whole_state_is_donated_the_frozen_part_as_well(trained):
    states, _, compiled = trained
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == num_bytes(states[0])
    # Nothing is put into a frozen leaf's memory: each output is its own input.
    aliases = dict(re.findall(r"\{(\d+)\}: \((\d+), \{\}", compiled.as_text().splitlines()[0]))
    assert len(aliases) == len(jax.tree.leaves(states[0]))
    assert all(output == parameter for output, parameter in aliases.items())


def test_merged_a_base_in_8_bits_answers_as_with_its_adapters(trained):
    params = trained[0][-1].params
    plain = replace(MODEL, config=replace(CONFIG, lora=()))
    ours = jax.jit(partial(features, MODEL))(params, make_batch())
    theirs = jax.jit(partial(features, plain))(merge(params, CONFIG.lora), make_batch())
    assert jnp.linalg.norm(ours - theirs) < 1e-5 * jnp.linalg.norm(theirs)


WIDE = ModelConfig(
    width=256,
    text_embedding=TextEmbeddingConfig(vocab_size=4096),
    decoder=TransformerDecoderConfig(num_layers=1),
    lora=(LoraConfig(layers="decoder/layers/mlp/*", rank=4),),
)
METADATA = 100_000  # bytes of a checkpoint's own files, however few its parameters


@pytest.mark.parametrize("frozen_dtype", ["compute", "int8"])
def test_what_is_frozen_is_written_once_and_the_rest_in_proportion_to_what_trains(tmp_path, frozen_dtype):
    model = build(replace(WIDE, dtype="bfloat16"))
    state = new_state(frozen_dtype, model)
    learned, frozen = split(state.params, GLOBS)
    trained, moments, fixed = num_bytes(learned), num_bytes(state.opt_state), num_bytes(frozen)
    assert fixed > 20 * trained
    assert moments <= 2 * trained + 16
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state.replace(step=jnp.int32(step)), {})
        checkpoints.wait()
        restored, _ = checkpoints.restore_latest(jax.eval_shape(lambda: state))
    assert_same(restored, state.replace(step=jnp.int32(3)))
    assert_same(restore_params(tmp_path, jax.eval_shape(lambda: state.params), GLOBS), state.params)
    # All of this room is frozen but its adapters, or all of it: it is read alone.
    for room in ("text_embedding", "decoder"):
        one = restore_params(tmp_path, jax.eval_shape(lambda: state.params), GLOBS, (f"{room}/",))
        assert_same(one, {room: state.params[room]})
    directory = tmp_path / "checkpoints"
    assert sorted(path.name for path in directory.iterdir()) == ["2", "3"]
    for step in ("2", "3"):
        assert bytes_on_disk(directory / step) < trained + moments + METADATA < fixed
    assert 0.5 * fixed < bytes_on_disk(directory.parent / "frozen") < fixed + METADATA


def test_frozen_parameters_of_a_run_that_got_nowhere_are_written_over(tmp_path):
    first, second = (new_state("compute", params=random_params(MODEL, deviation)) for deviation in (0.1, 0.3))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, first, {})
    shutil.rmtree(tmp_path / "checkpoints" / "1")
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, second, {})
        restored, _ = checkpoints.restore_latest(jax.eval_shape(lambda: second))
    assert_same(restored, second)
    shutil.rmtree(tmp_path / "frozen")
    with pytest.raises(UserError, match="frozen: the run's frozen parameters are missing"):
        restore_params(tmp_path, jax.eval_shape(lambda: second.params), GLOBS)
