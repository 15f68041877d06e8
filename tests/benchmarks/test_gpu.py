"""All presets in one call, here one that a CPU can run, and one that is there already."""

import json
import os

import pytest

from benchmarks import gpu

# Each process runs it as it starts: the preset as it is, but of few and short rows.
SITE = """
from dataclasses import replace

from benchmarks.presets import PRESETS

PRESETS["tiny_bilstm"] = replace(PRESETS["tiny_bilstm"], batch_size=2, row_length=8)
"""


def test_a_call_goes_on_with_what_is_missing_and_compares_in_turn(tmp_path, capsys, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    step = {"median": 0.5, "lower_quartile": 0.4, "upper_quartile": 0.6}
    batch, memory = {"real_tokens": 3, "tokens": 4}, {"bytes": 2e9}
    found = {"device": "a card", "devices": 1, "host_cpu": "x", "host_cores": 1, "load_average": 0.0, "versions": {}}
    ours = {"batch": batch, "step_seconds": step, "samples_per_second": 10.0, "mfu": 0.525, "memory": memory}
    known = {"command": "python old", "preset": "vlm_1b", "environment": found, "ours": ours}
    (tmp_path / "vlm_1b.json").write_text(json.dumps(known))
    options = ["--directory", str(tmp_path), "--rounds", "2", "--steps", "1"]
    assert gpu.main([*options, "--presets", "vlm_1b,tiny_bilstm", "--at-once", "2"]) == 0
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")
    assert gpu.main([*options, "--presets", "tiny_vlm", "--no-peers"]) == 1  # three devices cannot share its four rows
    said = capsys.readouterr().out
    assert "vlm_1b.json is there already" in said
    result = json.loads((tmp_path / "tiny_bilstm.json").read_text())
    assert result["ours"]["step_seconds"]["steps"] == result["torch"]["step_seconds"]["steps"] == 2
    ratio = result["torch"]["step_seconds"]["median"] / result["ours"]["step_seconds"]["median"]
    assert result["torch_to_ours"] == pytest.approx(ratio)
    everything = json.loads((tmp_path / "all.json").read_text())
    assert {one["preset"]: "error" in one for one in everything} == {
        "tiny_bilstm": False,
        "vlm_1b": False,
        "tiny_vlm": True,
    }
    table = (tmp_path / "RESULTS.md").read_text()
    assert "| vlm_1b | 75% | 500 ms (400 to 600) | 10 | 52.5% | 2 GB |" in table
    assert f"| {ratio:.2f} ({result['torch_to_ours_lower_quartile']:.2f}) |" in table
    assert "| tiny_vlm | did not run: benchmarks.train_step: --batch-size: 4 rows" in table
    assert result["command"] in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--directory", "no/such"], "--directory: no/such is not a directory"),
        (["--directory", ".", "--presets", "vlm"], "--presets: 'vlm' is not one of"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, arguments, message):
    assert gpu.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
