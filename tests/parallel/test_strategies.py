"""A joined model with packed rows, adapters and accumulation: the same run under every strategy, on eight devices."""

import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfusion
from jaxfusion.batch import Batch
from jaxfusion.config import Config, from_dict
from jaxfusion.config.run import ParallelConfig, TrainConfig
from jaxfusion.data.packing import ImageSlots, pack
from jaxfusion.data.tokenise import Segment
from jaxfusion.parallel import make_parallel
from jaxfusion.planning import read_program
from jaxfusion.training.optimizer import make_optimizer
from jaxfusion.training.state import create_state
from jaxfusion.training.step import make_step

NUM_STEPS, ROWS, LENGTH, IMAGES, VOCAB, SIZE = 20, 16, 28, 2, 64, 16
# SigLIP's tower and Llama's decoder, small.
MODEL = {
    "width": 64,
    "text_embedding": {"vocab_size": VOCAB, "positions": "rotary"},
    "vision": {
        "kind": "vit", "image_size": SIZE, "patch_size": 8, "width": 64, "num_layers": 2, "num_heads": 4,
        "mlp_width": 128, "mlp": "gelu", "class_token": False,
    },
    "projector": {"kind": "mlp"},
    "decoder": {
        "kind": "transformer", "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "mlp": "swiglu", "mlp_width": 128,
        "norm": "rms", "qkv_bias": False, "out_bias": False, "mlp_bias": False, "tie_embeddings": False,
    },
    "lora": [{"rank": 4}],
}  # fmt: skip
TRAIN = TrainConfig(
    num_steps=NUM_STEPS,
    batch_size=ROWS,
    accumulate=2,
    warmup_steps=2,
    learning_rate=2e-3,
    trainable=("projector/*", "*/lora_?", "text_embedding/*"),
    eps=1e-4,  # a gradient that is zero but for rounding must not decide on an update
)
STRATEGIES = {
    "one device": ParallelConfig(),
    "pmap": ParallelConfig(strategy="pmap"),
    "data=8": ParallelConfig(data=8),
    "fsdp=8": ParallelConfig(fsdp=8),
    "data=2, fsdp=2, tensor=2": ParallelConfig(data=2, fsdp=2, tensor=2),
}
SMALL = ("vision/patches/kernel",)  # less to keep than to put together
ON_EIGHT = [name for name in STRATEGIES if name != "one device"]


def make_batch(step: int, model: Any) -> Batch:
    """Rows of two or three segments, with a picture or none, and of very different numbers of targets."""
    rng, per_image = np.random.default_rng(step), model.config.tokens_per_image

    def segment(pictures: int) -> Segment:
        length = pictures * per_image + int(rng.integers(2, 7))
        visual = np.full(length, -1, np.int32)
        visual[: pictures * per_image] = np.arange(pictures * per_image)
        tokens = rng.integers(1, VOCAB, length).astype(np.int32)
        return Segment(
            tokens=tokens,
            targets=np.roll(tokens, -1),
            loss_weights=(rng.random(length) * (visual < 0)).astype(np.float32),
            prompt_mask=visual >= 0,
            visual_index=visual,
            images=[rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for _ in range(pictures)],
        )

    rows = [[segment(int(n)) for n in rng.permutation([1, 0, 1][: rng.integers(2, 4)])] for _ in range(ROWS)]
    return pack(rows, LENGTH, per_image, ImageSlots.of(model.config, IMAGES), packed=True)


def run(name: str) -> dict[str, Any]:
    """Everything that must not depend on the strategy, as JSON; and what a device holds and sends."""
    model, optimizer = jaxfusion.build(from_dict(Config, {"model": MODEL})), make_optimizer(TRAIN)
    parallel = make_parallel(STRATEGIES[name])
    parallel.check_training(TRAIN)
    new = partial(create_state, model, optimizer, jax.random.key(0), TRAIN.trainable)
    shapes = parallel.abstract(jax.eval_shape(new))
    state = jax.jit(new, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, shapes))()
    state = parallel.put_state(state.replace(params=jax.tree.map(_without_zeros, state.params)))
    held = {
        jax.tree_util.keystr(path, simple=True, separator="/"): [leaf.addressable_shards[0].data.size, leaf.size]
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
    }
    step = parallel.compile(make_step(model, optimizer, TRAIN), donate=True)
    batches = [make_batch(number, model) for number in range(NUM_STEPS)]
    step = step.lower(state, parallel.put_batch(batches[0])).compile()
    losses = []
    for batch in batches:
        state, numbers = step(state, parallel.put_batch(batch))
        losses.append(float(parallel.unreplicate(numbers)["loss"]))
    params = [np.array(leaf) for leaf in jax.tree.leaves(parallel.unreplicate(state).params)]
    spoilt = batches[0].replace(loss_weights=batches[0].loss_weights.copy())
    spoilt.loss_weights[np.nonzero(spoilt.loss_weights)[0][0]] *= np.float32(np.nan)  # of one device's rows
    state, numbers = step(state, parallel.put_batch(spoilt))
    left = jax.tree.leaves(parallel.unreplicate(state).params)
    kept = [np.array_equal(ours, theirs) for ours, theirs in zip(left, params, strict=True)]
    return {
        "skipped": [int(parallel.unreplicate(numbers)["skipped_updates"]), all(kept)],
        "devices": parallel.num_devices,
        "losses": losses,
        "held": held,
        "params": [np.asarray(leaf).ravel().tolist() for leaf in params],
        "collectives": dict(read_program(step).collectives),
    }


def _without_zeros(leaf: jax.Array) -> jax.Array:
    """An adapter that is zero at first would train nothing beside it."""
    noise = 0.05 * np.random.default_rng(leaf.size).standard_normal(leaf.shape)
    return jnp.where(jnp.all(leaf == 0), noise.astype(leaf.dtype), leaf)


@pytest.fixture(scope="module")
def results():
    processes = {}
    for count, names in ((1, ["one device"]), (8, ON_EIGHT)):
        environment = {"JAX_NUM_CPU_DEVICES": str(count), "PYTHONPATH": os.pathsep.join(sys.path)}
        processes[count] = subprocess.Popen(
            [sys.executable, __file__, *names],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    outputs = [process.communicate(timeout=600) for process in processes.values()]
    assert [process.returncode for process in processes.values()] == [0, 0], outputs
    return {name: result for output, _ in outputs for name, result in json.loads(output.splitlines()[-1]).items()}


@pytest.mark.parametrize("name", ON_EIGHT)
def test_twenty_steps_are_those_of_one_device(results, name):
    one, many = results["one device"], results[name]
    assert (one["devices"], many["devices"]) == (1, 8)
    assert one["losses"][-1] < one["losses"][0]  # something is learned
    np.testing.assert_allclose(many["losses"], one["losses"], atol=1e-5)
    for ours, theirs in zip(many["params"], one["params"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_update_that_one_row_spoils_is_left_out_everywhere(results, name):
    assert results[name]["skipped"] == [1, True]


def test_no_device_holds_a_whole_matrix_where_parameters_are_shared_out(results):
    for name, shares in (("fsdp=8", 8), ("data=2, fsdp=2, tensor=2", 4)):
        matrices = {path: sizes for path, sizes in results[name]["held"].items() if path.endswith(("kernel", "ding"))}
        assert len(matrices) > 15
        for path, (part, whole) in matrices.items():
            assert part * (1 if path in SMALL else shares) == whole, (name, path, part, whole)
    assert all(part == whole for part, whole in results["data=8"]["held"].values())


def test_what_is_sent_is_what_the_strategy_needs(results):
    assert list(results["pmap"]["collectives"]) == list(results["data=8"]["collectives"]) == ["all-reduce"]
    assert results["fsdp=8"]["collectives"]["all-gather"] > 10  # of parameters, where they are used


if __name__ == "__main__":
    print(json.dumps({name: run(name) for name in sys.argv[1:]}))
