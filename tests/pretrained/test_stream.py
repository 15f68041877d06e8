"""Parameters as they arrive: bit by bit what NumPy makes of the same tensors, on one device and on several."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxfusion.errors import UserError
from jaxfusion.pretrained.checkpoint import open_checkpoint
from jaxfusion.pretrained.leaves import DeviceLeaf, HostLeaf, NotFiniteError
from jaxfusion.pretrained.stream import read_params
from jaxfusion.pretrained.table import Row, flatten
from tests.pretrained import tiny

ROOT = Path(__file__).parents[2]


def assert_equal(params, expected):
    leaves = flatten(params)
    assert leaves.keys() == expected.keys()
    for path, leaf in leaves.items():
        assert isinstance(leaf, jax.Array)
        assert leaf.dtype == expected[path].dtype
        np.testing.assert_array_equal(np.asarray(leaf), expected[path], err_msg=path)


@pytest.mark.parametrize("num_shards", [1, 4])
@pytest.mark.parametrize("source", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("target", [np.float32, ml_dtypes.bfloat16])
def test_every_leaf_is_there_bit_by_bit(tmp_path, num_shards, source, target):
    tensors = tiny.theirs(source)
    path = tiny.save(tmp_path, tensors, num_shards)
    params, report = read_params(open_checkpoint(path), tiny.ROWS, tiny.abstract(), target)
    assert_equal(params, {name: value.astype(target) for name, value in tiny.ours(tensors).items()})
    assert report.num_bytes == sum(x.nbytes for x in tensors.values())
    assert report.seconds > 0


def test_the_dtypes_are_those_of_the_shapes_where_none_is_given(tmp_path):
    shapes = tiny.abstract()
    shapes["decoder"] = tiny.abstract(dtype=jnp.bfloat16)["decoder"]
    params, _ = read_params(open_checkpoint(tiny.save(tmp_path, tiny.theirs())), tiny.ROWS, shapes)
    assert {path: leaf.dtype.name for path, leaf in flatten(params).items()} == {
        path: "bfloat16" if path.startswith("decoder") else "float32" for path in tiny.ours(tiny.theirs())
    }


def test_arrays_without_a_sharding_go_wherever_they_are_used(tmp_path):
    path = tiny.save(tmp_path, tiny.theirs())
    params, _ = read_params(open_checkpoint(path), tiny.ROWS, tiny.abstract(), np.float32)
    assert not any(leaf.committed for leaf in jax.tree.leaves(params))
    here = SingleDeviceSharding(jax.devices()[0])
    params, _ = read_params(open_checkpoint(path), tiny.ROWS, tiny.abstract(), np.float32, here)
    assert all(leaf.sharding == here for leaf in jax.tree.leaves(params))


def test_a_donated_parameter_is_no_longer_the_hosts(tmp_path):
    tensors = tiny.theirs()
    params, _ = read_params(open_checkpoint(tiny.save(tmp_path, tensors)), tiny.ROWS, tiny.abstract(), np.float32)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)
    assert_equal(step(step(params)), {path: 4 * leaf for path, leaf in tiny.ours(tensors).items()})


def test_new_words_are_the_mean_of_the_old_ones(tmp_path):
    tensors = tiny.theirs()
    path = tiny.save(tmp_path, tensors)
    params, report = read_params(open_checkpoint(path), tiny.ROWS, tiny.abstract(tiny.V + 5), np.float32)
    leaves = flatten(params)
    table, matrix = np.asarray(leaves["text_embedding/embedding"]), np.asarray(leaves["output/kernel"]).T
    for grown, name in ((table, "model.embed.weight"), (matrix, "lm_head.weight")):
        np.testing.assert_array_equal(grown[: tiny.V], tensors[name])
        mean = tensors[name].astype(np.float64).mean(0)
        np.testing.assert_allclose(grown[tiny.V :], np.tile(mean, (5, 1)), atol=1e-6)
    assert report.grown == {"model.embed.weight": 5, "lm_head.weight": 5}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["model.layers.1.kv.weight", "vision.scale", "model.embed.weight"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, bad, name):
    tensors = tiny.theirs()
    tensors[name].reshape(-1)[-1] = bad
    path = tiny.save(tmp_path, tensors, num_shards=4)
    checkpoint = open_checkpoint(path)
    for vocab_size in (tiny.V, tiny.V + 1):
        with pytest.raises(UserError) as caught:
            read_params(checkpoint, tiny.ROWS, tiny.abstract(vocab_size), np.float32)
        assert str(caught.value).startswith(f"{checkpoint.tensors[name].file}: {name} holds an infinity or a NaN")


@pytest.mark.parametrize("kind", [HostLeaf, DeviceLeaf])
def test_a_leaf_is_filled_in_any_order_of_its_layers(kind):
    value = np.random.default_rng(0).standard_normal((3, 4, 6)).astype(np.float32)
    leaf = kind(jax.ShapeDtypeStruct((3, 6, 4), jnp.bfloat16))
    for layer in (2, 0, 1):
        leaf.put(layer, value[layer].T)
    np.testing.assert_array_equal(leaf.finish(), value.swapaxes(1, 2).astype(jnp.bfloat16))


@pytest.mark.parametrize("kind", [HostLeaf, DeviceLeaf])
@pytest.mark.parametrize("value", [np.ones(()), np.arange(5.0), np.arange(6.0).reshape(2, 3).T], ids=np.shape)
def test_a_leaf_without_layers_is_filled_at_once(kind, value):
    leaf = kind(jax.ShapeDtypeStruct(value.shape, np.float32))
    leaf.put(None, value.astype(np.float32))
    np.testing.assert_array_equal(leaf.finish(), value)


@pytest.mark.parametrize("kind", [HostLeaf, DeviceLeaf])
def test_a_layer_that_is_not_finite_is_refused(kind):
    leaf = kind(jax.ShapeDtypeStruct((3, 2), np.float32))
    with pytest.raises(NotFiniteError, match="float32"):
        leaf.put(1, np.float32([0, np.nan]))


# --- several devices, in a process that has them ----------------------------------------------------------------------


def on_four_devices(path: Path) -> dict[str, bool]:
    """Leaves split along every one of their axes that four or two devices can share, and what came of it."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    expected = tiny.ours(tiny.theirs())
    checkpoint = open_checkpoint(path)
    good = {}
    for spec in ((), ("a",), (None, "a", "b"), ("b", "a"), (None, None, ("a", "b")), (None, ("b", "a"))):

        def sharding(leaf: jax.ShapeDtypeStruct, spec: tuple = spec) -> NamedSharding:
            axes = [
                name if name and size % (4 if isinstance(name, tuple) else 2) == 0 else None
                for name, size in zip(spec, leaf.shape, strict=False)
            ]
            return NamedSharding(mesh, PartitionSpec(*axes))

        shardings = jax.tree.map(sharding, tiny.abstract())
        params, _ = read_params(checkpoint, tiny.ROWS, tiny.abstract(), np.float32, shardings)
        placed = flatten(shardings)
        good[f"host {spec}"] = all(
            leaf.sharding == placed[path] and np.array_equal(leaf, expected[path])
            for path, leaf in flatten(params).items()
        )
        for kind in (HostLeaf, DeviceLeaf):
            shape = flatten(tiny.abstract())["decoder/query/kernel"]
            leaf = kind(jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding(shape)))
            for layer, value in enumerate(expected["decoder/query/kernel"]):
                leaf.put(layer, np.asfortranarray(value))
            good[f"{kind.__name__} {spec}"] = np.array_equal(leaf.finish(), expected["decoder/query/kernel"])

    def by_path(path: str, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec("a") if path == "text_embedding/embedding" else PartitionSpec())

    for name, leaf in flatten(read_params(checkpoint, tiny.ROWS, tiny.abstract(), None, by_path)[0]).items():
        good[name] = leaf.sharding == by_path(name, leaf) and np.array_equal(leaf, expected[name])
    try:
        read_params(checkpoint, tiny.ROWS, tiny.abstract(), None, NamedSharding(mesh, PartitionSpec("b")))
    except UserError as error:
        good["indivisible"] = "decoder/key/kernel of shape (3, 32, 4, 8)" in str(error) and "\n" not in str(error)
    six = jax.ShapeDtypeStruct((4, 6), np.float32, sharding=NamedSharding(mesh, PartitionSpec(("a", "b"))))
    for kind in (HostLeaf, DeviceLeaf):  # of which each device holds one layer
        leaf = kind(six)
        for layer in range(4):
            leaf.put(layer, np.full(6, layer, np.float32))
        good[f"{kind.__name__} by layers"] = np.array_equal(leaf.finish(), np.arange(4.0)[:, None] * np.ones(6))
    return good


def in_a_process(num_devices: int, *arguments: str) -> str:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(num_devices),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_shards_arrive_on_their_devices(tmp_path):
    good = json.loads(in_a_process(4, "shards", str(tiny.save(tmp_path, tiny.theirs(), num_shards=2))))
    assert len(good) == 30
    assert all(good.values()), good


MESH = jax.make_mesh((1,), ("a",), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (NamedSharding(MESH, PartitionSpec(None, None, "a")), "decoder/norm/scale of shape"),
        (
            NamedSharding(jax.make_mesh((1,), ("a",), axis_types=(AxisType.Explicit,)), PartitionSpec()),
            r"decoder/key/kernel: its mesh has explicit axes, .* axis_types=\(jax\.sharding\.AxisType\.Auto",
        ),
        ({"decoder": {}}, "decoder/key/kernel: there is none for it; give one for every parameter"),
        (lambda path, leaf: PartitionSpec(), "decoder/key/kernel: P.* a jax Sharding is wanted"),
        (["x"], "a list is none; give a Sharding, a tree of them, or a function"),
    ],
)
def test_shardings_that_do_not_fit_are_refused_by_the_parameter(tmp_path, given, message):
    checkpoint = open_checkpoint(tiny.save(tmp_path, tiny.theirs()))
    with pytest.raises(UserError, match=f"^shardings: {message}") as caught:
        read_params(checkpoint, tiny.ROWS, tiny.abstract(), None, given)
    assert "\n" not in str(caught.value)


# --- memory -----------------------------------------------------------------------------------------------------------


BIG_ROWS = [
    Row("embed.weight", "text_embedding/embedding"),
    Row("layers.{layer}.up.weight", "decoder/up/kernel", "o i -> i o"),
    Row("layers.{layer}.down.weight", "decoder/down/kernel", "o i -> i o"),
]


def big_shapes(width: int, num_layers: int) -> dict[str, Any]:
    return {
        "text_embedding": {"embedding": jax.ShapeDtypeStruct((32 * width, width), jnp.bfloat16)},
        "decoder": {
            "up": {"kernel": jax.ShapeDtypeStruct((num_layers, width, 4 * width), jnp.bfloat16)},
            "down": {"kernel": jax.ShapeDtypeStruct((num_layers, 4 * width, width), jnp.bfloat16)},
        },
    }


def save_big(directory: Path, width: int, num_layers: int) -> Path:
    tensors = {"embed.weight": np.ones((32 * width, width), jnp.bfloat16)}
    for layer in range(num_layers):
        tensors[f"layers.{layer}.up.weight"] = np.ones((4 * width, width), jnp.bfloat16)
        tensors[f"layers.{layer}.down.weight"] = np.ones((width, 4 * width), jnp.bfloat16)
    return tiny.save(directory, tensors, num_shards=4)


def test_loading_takes_little_more_memory_than_the_parameters_themselves(tmp_path):
    width, num_layers = 1024, 9
    path = save_big(tmp_path, width, num_layers)
    found = json.loads(in_a_process(4, "memory", str(path), str(width), str(num_layers)))
    assert found["final"] == 2 * width**2 * (32 + 8 * num_layers)
    assert found["final"] <= found["peak"] + 32_000_000  # or it was not measured
    assert found["peak"] <= 1.3 * found["final"], found


def peak_on_four_devices(path: Path, width: int, num_layers: int) -> dict[str, int]:
    """Bytes that loading added to this process at its peak, and those that the parameters take."""
    mesh = jax.make_mesh((4,), ("a",), axis_types=(AxisType.Auto,))
    shapes = big_shapes(width, num_layers)
    split = jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 1), "a")), shapes)
    jnp.zeros(8).block_until_ready()
    before = peak_bytes()
    params, _ = read_params(open_checkpoint(path), BIG_ROWS, shapes, jnp.bfloat16, split)
    assert all(len(leaf.sharding.device_set) == 4 for leaf in jax.tree.leaves(params))
    return {"peak": peak_bytes() - before, "final": sum(leaf.nbytes for leaf in jax.tree.leaves(params))}


def peak_bytes() -> int:
    """Of physical memory, mapped files included, since the process began."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


if __name__ == "__main__":
    run = {"shards": on_four_devices, "memory": peak_on_four_devices}[sys.argv[1]]
    print(json.dumps(run(Path(sys.argv[2]), *map(int, sys.argv[3:]))))
