"""Eight virtual devices, by mesh and by pmap, against one: the same losses, parameters and sums."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfusion.batch import Batch
from jaxfusion.config.model import LookupConfig, ModelConfig, TextEmbeddingConfig, TransformerDecoderConfig
from jaxfusion.config.run import ParallelConfig, TrainConfig
from jaxfusion.errors import UserError
from jaxfusion.models.encoder import BiLSTM
from jaxfusion.models.vlm import build, init
from jaxfusion.parallel import MeshParallel, make_parallel
from jaxfusion.planning import read_program
from jaxfusion.training.checkpoint import Checkpoints
from jaxfusion.training.distillation import Distillation
from jaxfusion.training.optimizer import make_optimizer
from jaxfusion.training.state import TrainState, create_state
from jaxfusion.training.step import eval_step, train_step

NUM_STEPS, ROWS, LENGTH, VOCAB, IMAGE = 20, 16, 6, 9, 8
MODEL = build(
    ModelConfig(
        width=8,
        text_embedding=TextEmbeddingConfig(vocab_size=VOCAB),
        vision=LookupConfig(num_images=5, width=4),
        decoder=TransformerDecoderConfig(num_layers=1, num_heads=2),
    )
)
OPTIMIZER = make_optimizer(TrainConfig(num_steps=NUM_STEPS, warmup_steps=3, learning_rate=0.01))


def make_batch(step: int) -> Batch:
    """Rows with an image id in front, of very different numbers of targets, some rows without any."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, IMAGE, (ROWS, LENGTH))
    tokens[:, 0] = IMAGE
    lengths = np.sort(rng.integers(1, LENGTH + 1, ROWS))
    batch = Batch.from_tokens(tokens, rng.integers(0, 5, (ROWS, 1)).astype(np.int32), IMAGE, lengths)
    return jax.tree.map(np.asarray, batch)


def run(strategy: str, initial: TrainState) -> dict:
    """Everything that must not depend on the devices, as JSON."""
    parallel, first = make_parallel(ParallelConfig(strategy=strategy)), jax.tree.leaves(initial.params)
    step = parallel.compile(partial(train_step, MODEL, OPTIMIZER), donate=True)
    state = parallel.put_state(initial)
    metrics = []
    for number in range(NUM_STEPS):
        state, numbers = step(state, parallel.put_batch(make_batch(number)))
        metrics.append({name: float(x) for name, x in parallel.unreplicate(numbers).items()})
    evaluate = parallel.compile(partial(eval_step, MODEL))
    sums = parallel.unreplicate(evaluate(state.params, parallel.put_batch(make_batch(99))))
    state = parallel.unreplicate(state)
    return {
        "devices": parallel.num_devices,
        "metrics": metrics,
        "sums": [float(sums.loss), float(sums.weight), float(sums.correct)],
        "unchanged": [i for i, leaf in enumerate(jax.tree.leaves(state.params)) if np.array_equal(leaf, first[i])],
        "params": [np.asarray(leaf).ravel().tolist() for leaf in jax.tree.leaves(state.params)],
        "step": int(state.step),
    }


def run_in_parts(strategy: str, initial: TrainState) -> dict:
    """The first steps' numbers, where a step takes its rows in two parts, and what is sent between the devices."""
    parallel = make_parallel(ParallelConfig(strategy=strategy))
    step = parallel.compile(partial(train_step, MODEL, OPTIMIZER, accumulate=2))
    state = parallel.put_state(initial)
    step = step.lower(state, parallel.put_batch(make_batch(0))).compile()
    metrics = []
    for number in range(4):
        state, numbers = step(state, parallel.put_batch(make_batch(number)))
        metrics.append({name: float(x) for name, x in parallel.unreplicate(numbers).items()})
    return {"metrics": metrics, "collectives": read_program(step).collectives}


def run_taught(strategy: str, parts: int = 1) -> list[dict]:
    """The first steps' numbers, with a wider teacher, whose hidden states count too."""
    parallel = make_parallel(ParallelConfig(strategy=strategy))
    teacher = build(replace(MODEL.config, width=12))
    params = jax.tree.map(lambda leaf: 2 * leaf, init(teacher, jax.random.key(1)))
    distillation = Distillation(teacher, temperature=2.0, features=0.5)
    new_state = partial(create_state, MODEL, OPTIMIZER, map_shape=distillation.map_shape(MODEL))
    state = parallel.put_state(jax.jit(new_state)(jax.random.key(0)).replace(teacher=params))
    settings = {"distillation": distillation, "accumulate": parts}
    step = parallel.compile(partial(train_step, MODEL, OPTIMIZER, **settings), donate=True)
    metrics = []
    for number in range(3):
        state, numbers = step(state, parallel.put_batch(make_batch(number)))
        metrics.append({name: float(x) for name, x in jax.device_get(parallel.unreplicate(numbers)).items()})
    return metrics


def recurrent_gradients() -> dict:
    """Of a BiLSTM by weights and input, on the mesh and without one: how far apart, and what the devices send."""
    module, ids = BiLSTM(2, "auto", jnp.dtype("float32")), np.tile(np.int32([1, 1, 1, 2, 2, 0]), (ROWS, 1))
    x = np.random.default_rng(0).standard_normal((*ids.shape, 8)).astype(np.float32)
    params = module.init(jax.random.key(0), x, ids, True)

    def loss(params: Any, inputs: tuple[Any, Any]) -> jax.Array:
        return jnp.sum(module.apply(params, *inputs, True) ** 2)

    parallel = make_parallel(ParallelConfig())
    on_mesh = parallel.compile(jax.grad(loss)).lower(params, (x, ids)).compile()
    ours = on_mesh(parallel.put_state(params), parallel.put_batch((x, ids)))
    distances = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), jax.device_get(ours), jax.grad(loss)(params, (x, ids))
    )
    sent = read_program(on_mesh).collectives
    return {"distance": max(jax.tree.leaves(distances)), "leaves": len(jax.tree.leaves(params)), "sent": sent}


@pytest.fixture(scope="module")
def results():
    """What each strategy gives on one and on eight devices, from processes that have so many."""
    processes = {}
    for count in (1, 8):
        environment = {"JAX_NUM_CPU_DEVICES": str(count), "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, __file__]
        processes[count] = subprocess.Popen(
            command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    outputs = {count: process.communicate(timeout=300) for count, process in processes.items()}
    assert [process.returncode for process in processes.values()] == [0, 0], outputs
    return {count: json.loads(output.splitlines()[-1]) for count, (output, _) in outputs.items()}


@pytest.mark.parametrize(("devices", "strategy"), [(8, "mesh"), (8, "pmap"), (1, "pmap")])
def test_the_devices_do_not_show_in_the_numbers(results, devices, strategy):
    expected, actual = results[1]["mesh"], results[devices][strategy]
    assert (expected["devices"], actual["devices"]) == (1, devices)
    for one, many in zip(expected["metrics"], actual["metrics"], strict=True):
        assert abs(one["loss"] - many["loss"]) < 1e-5
        assert many == pytest.approx(one, rel=1e-4)
        assert (many["tokens"], many["samples"]) == (one["tokens"], ROWS)
    assert actual["sums"] == pytest.approx(expected["sums"], rel=1e-5)
    for one, many in zip(expected["params"], actual["params"], strict=True):
        np.testing.assert_allclose(many, one, atol=1e-4)
    assert actual["step"] == NUM_STEPS


@pytest.mark.parametrize("strategy", ["mesh", "pmap"])
def test_neither_do_the_parts_that_a_step_takes_its_rows_in(results, strategy):
    whole, parts = results[1]["mesh"]["metrics"], results[8][f"{strategy} in parts"]
    for one, many in zip(whole, parts["metrics"], strict=False):  # the losses after the first tell of the updates
        assert abs(one["loss"] - many["loss"]) < 1e-5
        assert many == pytest.approx(one, rel=1e-4)
    assert list(parts["collectives"]) == ["all-reduce"]  # no row leaves its device
    # A loop's counts as often as it runs: under pmap they come after the last part.
    assert parts["collectives"] == results[8]["pmap in parts"]["collectives"]


def test_nor_does_a_teacher_depend_on_the_devices(results):
    (one,) = results[1]["taught"]
    assert len(results[8]["taught"]) == 2
    assert all(row["divergence"] > 1e-3 and row["feature_distance"] > 0.1 for row in one)
    for many in results[8]["taught"]:
        for ours, expected in zip(many, one, strict=True):
            assert ours == pytest.approx(expected, rel=1e-4)


def test_a_recurrent_layers_gradients_are_added_up_once_and_not_at_every_time_step(results):
    recurrent = results[8]["recurrent"]
    assert recurrent["distance"] < 1e-5
    assert list(recurrent["sent"]) == ["all-reduce"]
    assert recurrent["sent"]["all-reduce"] <= recurrent["leaves"]


@pytest.mark.parametrize("strategy", ["mesh", "pmap"])
def test_frozen_parameters_are_the_same_on_all_devices(results, strategy):
    expected, actual = results[1]["mesh frozen"], results[8][f"{strategy} frozen"]
    assert actual["unchanged"] == expected["unchanged"] and len(expected["unchanged"]) > 5
    for one, many in zip(expected["params"], actual["params"], strict=True):
        np.testing.assert_allclose(many, one, atol=1e-4)


def test_a_checkpoint_of_one_strategy_is_read_by_the_other_and_lands_on_every_device(results):
    assert results[8]["restored"] == {"mesh": True, "pmap": True}


def test_rows_that_cannot_be_shared_evenly_are_refused(results):
    assert results[8]["refused"] == (
        "config.train.batch_size: 12 rows cannot be shared evenly by 8 devices; use a multiple of 8"
    )


def test_one_device_takes_any_number_of_rows_but_none():
    parallel = MeshParallel(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1]))  # however many there are
    parallel.check_batch_size("config.train.batch_size", 7)
    with pytest.raises(UserError, match=r"config\.train\.batch_size: 0 rows"):
        parallel.check_batch_size("config.train.batch_size", 0)


def restore_everywhere(original: TrainState) -> dict[str, bool]:
    """Saves by each strategy and restores by the other."""
    same = {}
    for ours, theirs in (("mesh", "pmap"), ("pmap", "mesh")):
        save_with, restore_with = (make_parallel(ParallelConfig(strategy=name)) for name in (ours, theirs))
        state = save_with.unreplicate(save_with.put_state(original))
        with tempfile.TemporaryDirectory() as workdir, Checkpoints(Path(workdir), keep=1) as checkpoints:
            checkpoints.save(1, state, {})
            restored, _ = checkpoints.restore_latest(restore_with.abstract(original))
        on_devices = restore_with.put_state(restored)
        everywhere = all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(on_devices))
        equal = jax.tree.map(np.array_equal, restore_with.unreplicate(on_devices), original)
        same[ours] = everywhere and all(jax.tree.leaves(equal))
    return same


def refused() -> str:
    try:
        make_parallel(ParallelConfig()).check_batch_size("config.train.batch_size", 12)
    except UserError as error:
        return str(error)
    return "nothing"


if __name__ == "__main__":
    fresh, frozen = (
        jax.tree.map(np.array, jax.jit(partial(create_state, MODEL, OPTIMIZER, trainable=globs))(jax.random.key(0)))
        for globs in (("*",), ("projector/*", "*/attention/*"))
    )
    numbers = {strategy: run(strategy, fresh) for strategy in ("mesh", "pmap")} | {"mesh frozen": run("mesh", frozen)}
    kinds = [("mesh", 2), ("pmap", 1)] if jax.device_count() > 1 else [("mesh", 1)]
    numbers["taught"] = [run_taught(*kind) for kind in kinds]
    if jax.device_count() > 1:
        numbers["pmap frozen"] = run("pmap", frozen)
        numbers |= {f"{strategy} in parts": run_in_parts(strategy, fresh) for strategy in ("mesh", "pmap")}
        numbers |= {"recurrent": recurrent_gradients(), "restored": restore_everywhere(fresh), "refused": refused()}
    print(json.dumps(numbers))
