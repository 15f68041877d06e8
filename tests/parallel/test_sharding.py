"""Which part of a parameter lies where, told by its path and shape; and what is refused."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxfusion.config.run import ParallelConfig, ShardingRule
from jaxfusion.errors import UserError
from jaxfusion.models.int8 import quantise_kernel
from jaxfusion.parallel import MeshParallel, make_mesh, make_parallel
from jaxfusion.parallel.sharding import check_rules, partition, shardings

SIZES = {"data": 2, "fsdp": 4, "tensor": 2}


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("decoder/layers/attention/query/kernel", (3, 64, 4, 16), (None, "fsdp", "tensor", None)),
        ("decoder/layers/attention/key/kernel", (3, 64, 1, 16), (None, "fsdp", None, None)),  # one head: whole
        ("decoder/layers/attention/out/kernel", (3, 4, 16, 64), (None, "tensor", None, "fsdp")),
        ("decoder/layers/attention/query/bias", (3, 4, 16), (None, "tensor", None)),
        ("vision/layers/mlp/up/kernel", (3, 64, 128), (None, "fsdp", "tensor")),
        ("vision/layers/mlp/down/kernel", (3, 128, 66), (None, "tensor", None)),  # 66 is no multiple of 4
        ("projector/up/kernel", (64, 128), ("fsdp", "tensor")),
        ("text_embedding/embedding", (1000, 64), ("tensor", "fsdp")),
        ("output/kernel", (64, 1001), ("fsdp", None)),
        ("decoder/layers/mlp_norm/scale", (3, 64), (None, None)),  # small
        ("vision/stage0/conv/kernel", (3, 3, 256, 512), (None, None, None, "fsdp")),
        ("vision/positions", (2049, 64), (None, "fsdp")),  # the longest that can be shared evenly
        ("opt_state/0/mu/decoder/layers/mlp/up/kernel", (3, 64, 128), (None, "fsdp", "tensor")),
        ("step", (), ()),
    ],
)
def test_a_path_says_what_an_array_s_axes_are(path, shape, expected):
    assert partition(path, shape, SIZES) == P(*expected)
    assert partition(path, shape, {"data": 16, "fsdp": 1, "tensor": 1}) == P()  # nothing but rows is shared out


def test_a_rule_goes_before_the_table_and_takes_the_optimizers_state_along():
    rules = (ShardingRule(globs=("vision/*",), axes=()), ShardingRule(globs=("*/up/kernel",), axes=("tensor", "")))
    for prefix in ("", "params/", "opt_state/0/nu/"):
        assert partition(f"{prefix}vision/layers/mlp/up/kernel", (3, 64, 128), SIZES, rules) == P(None, None, None)
        assert partition(f"{prefix}decoder/layers/mlp/up/kernel", (3, 64, 128), SIZES, rules) == P(None, "tensor", None)


def test_a_kernel_in_8_bits_lies_as_it_would_in_floats_and_its_scales_are_whole_along_the_inputs():
    kernel = {"decoder": {"mlp": {"up": {"kernel": jnp.ones((64, 128))}}}}
    kept = jax.tree.map(lambda leaf: quantise_kernel("decoder/mlp/up/kernel", leaf), kernel)
    mesh = SimpleNamespace(shape=SIZES)
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): partition(
            jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, mesh.shape
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(kept)
    }
    assert found == {
        "decoder/mlp/up/kernel/values": P("fsdp", "tensor"),
        "decoder/mlp/up/kernel/scale": P(None, "tensor"),
    }


def test_rules_that_mean_nothing_are_refused_by_name():
    params = {"vision": {"kernel": np.zeros((8, 8))}}
    check_rules(params, (ShardingRule(globs=("vision/*",), axes=("fsdp", "")),))
    with pytest.raises(UserError, match=r"config\.parallel\.rules\[0\]\.globs: no parameter fits 'tower/\*'"):
        check_rules(params, (ShardingRule(globs=("tower/*",)),))
    with pytest.raises(UserError, match=r"rules\[0\]\.axes: vision/kernel has 2 axes, and here are 3"):
        check_rules(params, (ShardingRule(globs=("vision/*",), axes=("fsdp", "", "")),))


def test_axes_must_come_to_the_number_of_devices():
    devices = list(range(8))
    assert dict(make_mesh(devices, ParallelConfig(fsdp=2)).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert dict(make_mesh(devices, ParallelConfig(data=2, fsdp=2, tensor=2)).shape) == SIZES | {"fsdp": 2}
    for wrong in (ParallelConfig(fsdp=3), ParallelConfig(data=2), ParallelConfig(data=2, fsdp=8)):
        with pytest.raises(UserError, match=r"config\.parallel: data .* is not the number of devices, 8"):
            make_mesh(devices, wrong)
    with pytest.raises(UserError, match=r"config\.parallel\.fsdp: under pmap each device holds the whole state"):
        make_parallel(ParallelConfig(strategy="pmap", fsdp=2))


def test_on_one_device_everything_is_whole():
    parallel = MeshParallel(make_mesh(jax.devices()[:1]))
    tree = {"text_embedding": {"embedding": jnp.ones((512, 64))}}
    assert jax.tree.leaves(shardings(tree, parallel.mesh))[0].spec == P()
    assert not parallel.shares_state and parallel.row_shares == 1
