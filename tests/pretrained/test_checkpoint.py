"""Files as they come: whole ones open, and every other is refused by name before a weight is read."""

import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxfusion.errors import UserError
from jaxfusion.pretrained.checkpoint import family_of, find_checkpoint, open_checkpoint, read_header
from jaxfusion.pretrained.family import Family
from tests.pretrained import tiny

ROOT = Path(__file__).parents[2]


def refusal(source: Path) -> str:
    """The one line that opening it ends in."""
    with pytest.raises(UserError) as caught:
        open_checkpoint(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_raw(file: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_directory_opens_with_all_that_its_files_hold(tmp_path, num_shards):
    tensors = tiny.theirs()
    path = tiny.save(tmp_path, tensors, num_shards, hidden_size=32)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == {"model_type": "tiny", "hidden_size": 32}
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, stored in checkpoint.tensors.items():
        assert (stored.name, stored.shape) == (name, tensors[name].shape)
        np.testing.assert_array_equal(stored.read(), load_file(stored.file)[name])


def test_a_single_file_opens_with_the_config_beside_it_or_none(tmp_path):
    path = tiny.save(tmp_path, tiny.theirs())
    assert open_checkpoint(path / "model.safetensors").config["model_type"] == "tiny"
    (path / "config.json").unlink()
    checkpoint = open_checkpoint(str(path / "model.safetensors"))
    assert (checkpoint.config, len(checkpoint.tensors)) == ({}, len(tiny.theirs()))


def test_every_float_dtype_and_tensors_without_elements_are_read(tmp_path):
    tensors = {"half": np.float16([1.5, -2]), "double": np.float64([[3]]), "empty": np.zeros((0, 4), np.float32)}
    save_file(tensors, tmp_path / "a.safetensors")
    found = {tensor.name: tensor for tensor in read_header(tmp_path / "a.safetensors")}
    for name, tensor in tensors.items():
        read = found[name].read()
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(read, tensor)
    write_raw(tmp_path / "b.safetensors", {"x": entry([2], 0, 4, "BF16")}, np.uint16([0x3FC0, 0xC000]).tobytes())
    np.testing.assert_array_equal(read_header(tmp_path / "b.safetensors")[0].read().astype(np.float32), [1.5, -2])


# --- what is missing --------------------------------------------------------------------------------------------------


def test_a_path_that_is_not_there(tmp_path):
    assert "no such file or directory; give" in refusal(tmp_path / "nothing")


def test_a_directory_without_weights_says_what_it_looked_for(tmp_path):
    assert "there is neither model.safetensors nor model.safetensors.index.json; give" in refusal(tmp_path)
    save_file(tiny.theirs(), tmp_path / "diffusion.safetensors")
    assert "name one file of it (diffusion.safetensors)" in refusal(tmp_path)


def test_a_directory_without_a_config(tmp_path):
    path = tiny.save(tmp_path, tiny.theirs())
    (path / "config.json").unlink()
    assert "there is no config.json" in refusal(path)


@pytest.mark.parametrize("text", ["{", "[1]", "\ufeff\x00"])
def test_a_config_that_is_no_json_object(tmp_path, text):
    path = tiny.save(tmp_path, tiny.theirs())
    (path / "config.json").write_text(text)
    assert f"{path / 'config.json'}: " in refusal(path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickled_weights_are_refused_with_advice_and_never_unpickled(tmp_path, name):
    ran = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(ran),)

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    for source in (tmp_path, tmp_path / name):
        message = refusal(source)
        assert f"{name}: pickled weights may run code and are never loaded" in message
        assert "save_pretrained" in message
    assert not ran.exists()
    tiny.save(tmp_path, tiny.theirs())  # beside safetensors they do no harm
    assert open_checkpoint(tmp_path).tensors


# --- what is broken ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1])
def test_a_truncated_file(tmp_path, keep):
    file = tiny.save(tmp_path, tiny.theirs()) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    message = refusal(tmp_path)
    assert f"{file}: truncated" in message
    assert "again" in message


def test_a_file_cut_within_its_weights_names_the_tensor(tmp_path):
    file = tiny.save(tmp_path, tiny.theirs()) / "model.safetensors"
    last = max(read_header(file), key=lambda tensor: tensor.start)
    os.truncate(file, file.stat().st_size - 1)
    assert f"truncated: {last.name} would end at byte" in refusal(tmp_path)


A, B = entry([2], 0, 8), entry([1], 8, 12)


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        (b"{not json", 0, "header is broken"),
        (b"\xff\xfe{}", 0, "header is broken"),
        (b"[" * 100_000, 0, "header is broken"),
        ([1], 0, "header is broken"),
        ({"a": 3}, 0, "header is broken"),
        ({"a": {"dtype": "F32"}}, 0, "header is broken ('shape')"),
        ({"a": entry([3], 0, 8)}, 8, "a: F32 of shape (3,) in 8 bytes"),
        ({"a": entry([-2], 0, 8)}, 8, "a: shape (-2,)"),
        ({"a": entry([2], 8, 0)}, 8, "a: shape (2,) at 8-0"),
        ({"a": entry([2], 0.0, 8)}, 8, "a: shape (2,) at 0.0-8"),
        ({"a": {**A, "data_offsets": [0, 8, 9]}}, 8, "header is broken"),
        ({"a": A, "b": entry([2], 4, 12)}, 12, "b does not begin where the tensor before it ends"),
        ({"a": A, "b": entry([1], 12, 16)}, 16, "b does not begin where the tensor before it ends"),
        ({"a": A, "b": B}, 20, "8 bytes at its end belong to no tensor"),
        ({"a": A, "b": B}, 11, "truncated: b would end at byte"),
        (b'{"a": %(A)s, "a": %(A)s}' % {b"A": json.dumps(A).encode()}, 8, "a is there twice"),
    ],
)
def test_a_broken_header(tmp_path, header, size, message):
    file = write_raw(tmp_path / "x.safetensors", header, bytes(size))
    assert f"{file}: " in refusal(file)
    assert message in refusal(file)


def test_a_header_that_claims_more_than_there_is_reads_none_of_it(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    assert "its header would be 4611686018427387904 of 10 bytes" in refusal(tmp_path / "x.safetensors")


def change_index(path: Path, change) -> None:
    file = path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))


def test_an_index_that_names_a_missing_file(tmp_path):
    path = tiny.save(tmp_path, tiny.theirs(), num_shards=2)
    (path / "model-00002-of-00002.safetensors").unlink()
    assert "index.json: it names model-00002-of-00002.safetensors, which is not there" in refusal(path)


@pytest.mark.parametrize("name", ["model.embed.weight", "no.such.tensor"])
def test_an_index_that_places_a_tensor_where_it_is_not(tmp_path, name):
    path = tiny.save(tmp_path, tiny.theirs(), num_shards=2)
    file = "model-00002-of-00002.safetensors"
    assert name not in load_file(path / file)
    change_index(path, lambda index: index["weight_map"].update({name: file}))
    assert f"it places {name} in {file}, which does not hold it" in refusal(path)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 3}, "x"])
def test_an_index_without_a_map(tmp_path, weight_map):
    path = tiny.save(tmp_path, tiny.theirs(), num_shards=2)
    change_index(path, lambda index: index.update(weight_map=weight_map))
    assert "weight_map must map tensors to files" in refusal(path)


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_that_leads_out_of_its_directory(tmp_path, file):
    path = tiny.save(tmp_path, tiny.theirs(), num_shards=2)
    change_index(path, lambda index: index["weight_map"].update({"vision.scale": file}))
    assert f"vision.scale: {file!r} is not a file's name" in refusal(path)


def test_a_tensor_that_two_files_hold(tmp_path):
    path = tiny.save(tmp_path, tiny.theirs(), num_shards=2)
    tensors = load_file(path / "model-00001-of-00002.safetensors")
    extra = load_file(path / "model-00002-of-00002.safetensors")
    name = min(tensors)
    save_file(extra | {name: tensors[name]}, path / "model-00002-of-00002.safetensors")
    message = refusal(path)
    assert f"model-00002-of-00002.safetensors: {name} is in model-00001-of-00002.safetensors as well" in message


# --- model_type -------------------------------------------------------------------------------------------------------


def family(model_type: str) -> Family:
    return Family(model_type, "language", dict, list)


FAMILIES = {name: family(name) for name in ("bert", "llama", "qwen2", "qwen3", "gpt2")}


def test_the_family_is_that_of_the_model_type_whatever_code_comes_along(tmp_path):
    (tmp_path / "modeling_llama.py").write_text("raise SystemExit('this must never run')")
    path = tiny.save(tmp_path, tiny.theirs(), model_type="llama", auto_map={"AutoModel": "modeling_llama.Model"})
    assert family_of(open_checkpoint(path), FAMILIES) is FAMILIES["llama"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "qwen25"}, "unknown 'qwen25'; known are qwen2, qwen3, bert, gpt2, llama"),
        ({"model_type": ["llama"]}, "unknown ['llama']; known are"),
        ({"model_type": None}, "there is no model_type; known are bert, gpt2, llama, qwen2, qwen3"),
        ({"model_type": "mine", "auto_map": {}}, "unknown 'mine' (it comes as code, which is never run); known are"),
        (
            {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}},
            "config.json: quantization_config: weights quantised by gptq cannot be loaded; use the checkpoint",
        ),
    ],
)
def test_what_no_family_reads_is_named_with_the_mend(tmp_path, config, message):
    checkpoint = open_checkpoint(tiny.save(tmp_path, tiny.theirs(), **config))
    with pytest.raises(UserError) as caught:
        family_of(checkpoint, FAMILIES)
    assert message in str(caught.value)


# --- the hub ----------------------------------------------------------------------------------------------------------


FIND = """
import sys
from jaxfusion.errors import UserError
from jaxfusion.pretrained.checkpoint import open_checkpoint
try:
    print(len(open_checkpoint(sys.argv[1]).tensors))
except UserError as error:
    print(error)
"""


def find_offline(cache: Path, name: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", FIND, name], capture_output=True, text=True, env=environment, cwd=cache
    )


def test_a_hub_id_is_its_snapshot_in_the_cache(tmp_path):
    repo, revision = tmp_path / "models--someone--tiny", "0123456789abcdef0123456789abcdef01234567"
    tiny.save(repo / "snapshots" / revision, tiny.theirs())
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)
    done = find_offline(tmp_path, "someone/tiny")
    assert done.stdout.strip() == str(len(tiny.theirs())), done.stderr


def test_a_hub_id_without_safetensors_says_what_to_do(tmp_path):
    repo, revision = tmp_path / "models--someone--old", "0123456789abcdef0123456789abcdef01234567"
    (repo / "snapshots" / revision).mkdir(parents=True)
    (repo / "snapshots" / revision / "config.json").write_text("{}")  # whatever is pickled was not downloaded
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)
    done = find_offline(tmp_path, "someone/old")
    assert "someone/old: the repository holds no safetensors, and pickled" in done.stdout, done.stderr
    assert "save_pretrained" in done.stdout and done.stdout.count("\n") == 1


def test_a_hub_id_that_is_not_in_the_cache_is_one_line_offline(tmp_path):
    done = find_offline(tmp_path, "someone/other")
    assert "someone/other: no such directory, not in the hub's cache" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1
    assert "give a directory" in done.stdout


def test_what_is_no_hub_id_is_not_looked_for_there():
    for name in ("./llama", "a/b/c", "llama", "someone/../tiny"):
        with pytest.raises(UserError, match="no such file or directory"):
            find_checkpoint(name)
