"""The benchmark as it is run, on a checkpoint of a few megabytes."""

import json

import pytest

from benchmarks.load_checkpoint import llama_config, main


def test_a_run_compares_the_two_and_writes_what_it_found(tmp_path, capsys):
    path = tmp_path / "result.json"
    arguments = ["--size", "8", "--rounds", "1", "--dtype", "bfloat16", "--directory", str(tmp_path)]
    assert main([*arguments, "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert result["command"] in capsys.readouterr().out
    assert result["environment"]["versions"]["transformers"]
    assert result["checkpoint"]["bytes"] == pytest.approx(8e6, rel=0.2)
    assert result["checkpoint"]["files"] >= 4
    for name in ("ours", "transformers"):
        assert 0 < result[name]["return_seconds"] <= result[name]["ready_seconds"]
        assert result[name]["peak_bytes"] >= 0
    ratio = result["transformers"]["ready_seconds"] / result["ours"]["ready_seconds"]
    assert result["transformers_to_ours_ready_seconds"] == pytest.approx(ratio)
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]  # the checkpoint is gone


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
