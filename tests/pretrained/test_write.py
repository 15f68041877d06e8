"""Files of ours, read by safetensors itself."""

import json
import os
import stat

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from jaxfusion.errors import UserError
from jaxfusion.pretrained.checkpoint import open_checkpoint
from jaxfusion.pretrained.stream import read_params
from jaxfusion.pretrained.table import unflatten
from jaxfusion.pretrained.write import write_params, write_safetensors
from tests.pretrained import tiny


def load_all(directory):
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (actual[name].shape, actual[name].dtype) == (tensor.shape, tensor.dtype), name
        assert actual[name].tobytes() == tensor.tobytes(), name


def write(directory, tensors, **settings):
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in tensors.items()}
    return write_safetensors(directory, shapes, tensors.__getitem__, **settings)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("max_shard_bytes", [5_000, 10**9])
def test_import_and_export_are_bit_by_bit_the_same_files(tmp_path, dtype, max_shard_bytes):
    tensors = tiny.theirs(dtype)
    tensors["model.embed.weight"][0, :2] = -0.0, ml_dtypes.finfo(dtype).smallest_subnormal
    path = tiny.save(tmp_path / "in", tensors, num_shards=3)
    params, _ = read_params(open_checkpoint(path), tiny.ROWS, tiny.abstract(), dtype)
    files = write_params(tmp_path / "out", tiny.ROWS, params, max_shard_bytes=max_shard_bytes)
    assert {file.name for file in files} == {file.name for file in (tmp_path / "out").iterdir()}
    assert (len(files) > 1) == (max_shard_bytes == 5_000)
    assert_bits(load_all(tmp_path / "out"), tensors)


def test_parameters_on_the_host_are_written_as_well(tmp_path):
    tensors = tiny.theirs()
    write_params(tmp_path, tiny.ROWS, unflatten(tiny.ours(tensors)))
    assert_bits(load_all(tmp_path), tensors)


def test_another_dtype(tmp_path):
    tensors = tiny.theirs()
    params = jax.tree.map(jnp.asarray, unflatten(tiny.ours(tensors)))
    write_params(tmp_path, tiny.ROWS, params, jnp.bfloat16)
    assert_bits(load_all(tmp_path), {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()})


def test_shards_hold_no_more_than_they_may_and_the_index_knows_them(tmp_path):
    tensors = tiny.theirs()
    files = write(tmp_path, tensors, max_shard_bytes=10_000)
    names = [f"model-{i:05}-of-{len(files) - 1:05}.safetensors" for i in range(1, len(files))]
    assert [file.name for file in files] == [*names, "model.safetensors.index.json"]
    index = json.loads(files[-1].read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors.values())
    for file in files[:-1]:
        held = load_file(file)
        assert {name for name, owner in index["weight_map"].items() if owner == file.name} == held.keys()
        assert sum(x.nbytes for x in held.values()) <= 10_000 or len(held) == 1
    assert_bits(load_all(tmp_path), tensors)


def test_the_metadata_is_what_transformers_asks_for_and_tensors_are_aligned(tmp_path):
    tensors = {"a": np.zeros(3, np.float16), "b": np.zeros(5, np.float32), "c": np.zeros((), ml_dtypes.bfloat16)}
    (file,) = write(tmp_path, tensors)
    with safe_open(file, "numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
    for stored in open_checkpoint(file).tensors.values():
        assert stored.start % tensors[stored.name].itemsize == 0


def test_files_of_an_earlier_write_give_way_and_others_stay(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"someone else's")
    write(tmp_path, tiny.theirs(), max_shard_bytes=10_000)
    write(tmp_path, tiny.theirs(seed=1))
    assert {file.name for file in tmp_path.iterdir()} == {"adapter_model.safetensors", "model.safetensors"}
    write(tmp_path, tiny.theirs(seed=2), max_shard_bytes=10_000)
    assert not (tmp_path / "model.safetensors").exists()
    (tmp_path / "adapter_model.safetensors").unlink()
    assert_bits(load_all(tmp_path), tiny.theirs(seed=2))


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    tensors = tiny.theirs()
    params = unflatten(tiny.ours(tensors))
    write_params(tmp_path, tiny.ROWS, params, max_shard_bytes=5_000)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    params["output"]["kernel"] = np.full_like(params["output"]["kernel"], np.nan)
    with pytest.raises(UserError, match="output/kernel: holds an infinity or a NaN; export an earlier"):
        write_params(tmp_path, tiny.ROWS, params, max_shard_bytes=9_000)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/out: cannot be written"):
        write(tmp_path / "file" / "out", tiny.theirs())


def test_everyone_may_read_the_files_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        files = write(tmp_path, tiny.theirs(), max_shard_bytes=10_000)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o644}
