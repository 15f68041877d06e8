"""The benchmark as it is run, on a checkpoint of a few megabytes, and its peer."""

import json

import pytest

from benchmarks import load_checkpoint, loaders
from benchmarks.load_checkpoint import compare, llama_config, main, summary, write_checkpoint


def test_a_run_writes_what_it_found(tmp_path, capsys):
    path = tmp_path / "result.json"
    arguments = ["--size", "8", "--rounds", "1", "--dtype", "bfloat16", "--no-peer", "--directory", str(tmp_path)]
    assert main([*arguments, "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert result["command"] in capsys.readouterr().out
    assert result["environment"]["versions"]["transformers"]
    assert result["checkpoint"]["bytes"] == pytest.approx(8e6, rel=0.2)
    assert result["checkpoint"]["files"] >= 4
    ours = result["ours"]
    assert 0 < ours["return_seconds"] <= ours["ready_seconds"] < ours["process_seconds"]
    assert ours["peak_bytes"] >= 0 and "transformers" not in result
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]  # the checkpoint is gone


def test_both_load_all_of_it(tmp_path):
    written = write_checkpoint(tmp_path, 0, "bfloat16")
    for load in loaders.LOADERS.values():
        assert sum(weight.nbytes for weight in load(tmp_path, "bfloat16")) == written["bytes"]


def test_both_take_turns_and_are_told_beside_each_other(tmp_path, capsys, monkeypatch):
    """In this process, which has imported all of both already."""
    calls = []

    def here(call):
        calls.append(call)
        eval(call, vars(loaders))
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        return told | {"peak_bytes": 1} if "peak_bytes" in told else told  # there is none after a process's highest

    monkeypatch.setattr(load_checkpoint, "_in_a_process", here)
    found = compare(0, "bfloat16", "bfloat16", 2, tmp_path)
    turns = [f"{how}({name!r}" for name in loaders.LOADERS for how in ("measure_start", "measure")]
    assert [call.partition(",")[0] for call in calls] == 2 * turns
    for name in loaders.LOADERS:
        assert 0 < found[name]["return_seconds"] <= found[name]["ready_seconds"] and found[name]["process_seconds"] > 0
    assert found["transformers_to_ours_ready_seconds"] > 0 and found["rounds"] == 2
    assert not list(tmp_path.iterdir())


def test_what_is_told_are_medians_and_their_ratios():
    keys = ("process_seconds", "ready_seconds", "return_seconds", "cpu_seconds", "peak_bytes")
    runs = {"ours": [1.0, 4.0, 2.0], "transformers": [5.0, 3.0, 50.0]}
    told = summary({name: [dict.fromkeys(keys, one) for one in values] for name, values in runs.items()}, 3 * 10**9)
    assert (told["ours"]["ready_seconds"], told["transformers"]["peak_bytes"]) == (2, 5)
    assert told["ours"]["ready_gigabytes_per_second"] == 1.5
    assert {told[f"transformers_to_ours_{key}"] for key in keys} == {2.5}


@pytest.mark.parametrize("parameters", [2_000_000, 500_000_000, 8_000_000_000])
def test_the_checkpoint_is_as_large_as_asked(parameters):
    config = llama_config(parameters)
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    heads = (config["num_attention_heads"] + config["num_key_value_heads"]) * 64
    held = 2 * config["vocab_size"] * width + layers * width * (2 * heads + 3 * config["intermediate_size"])
    assert held == pytest.approx(parameters, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
        (["--size", "0"], "--size: 0 is not a positive number"),
        (["--json", "no/such/place.json"], "--json: no/such is not a directory"),
        (["--directory", "no/such"], "--directory: no/such is not a directory"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
