"""The benchmark as it is run: in a process where only the libraries that models need can be imported. So is our side
of `benchmarks.decode`."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ours import model_flops, xla_flops
from benchmarks.presets import PRESETS
from benchmarks.synthetic import synthetic_batch
from benchmarks.train_step import main
from jaxfusion.config.model import (
    AddFusionConfig,
    CrossAttentionFusionConfig,
    LinearProjectorConfig,
    PixelShuffleProjectorConfig,
)

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys
from dataclasses import replace

MISSING = {
    "array_record", "beartype", "grain", "jinja2", "matplotlib", "ml_collections", "orbax", "PIL", "rjieba", "sklearn",
    "stopwordsiso", "tensorboardX", "tensorflow", "tensorflow_datasets", "tokenizers", "torch", "transformers",
}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, Missing())

from benchmarks import decode, decode_worker
from benchmarks.decode_ours import Ours
from benchmarks.presets import PRESETS, Preset
from benchmarks.train_step import main
from jaxfusion.config.model import ModelConfig, TextEmbeddingConfig, TransformerDecoderConfig, VGGConfig

vision = VGGConfig(image_size=4, stage_depths=(1,), stage_widths=(8,))
text, decoder = TextEmbeddingConfig(vocab_size=20), TransformerDecoderConfig(num_layers=1)
model = ModelConfig(width=16, text_embedding=text, vision=vision, decoder=decoder)
PRESETS["tiny"] = Preset(summary="", model=model, batch_size=4, row_length=12, images_per_row=1)
code = main(sys.argv[1:])
generation = Ours(PRESETS["tiny"], 3, 5)
generation.ready(2)
print("generated", *generation.generate()[0].shape)
sys.exit(code)
"""


def run(*arguments: str, devices: int = 1) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", PROGRAM, "--preset", "tiny", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


def test_a_run_needs_only_the_libraries_of_the_models_and_writes_what_it_found(tmp_path):
    path, trace, devices = tmp_path / "result.json", tmp_path / "trace", 2
    results = tmp_path / "RESULTS.md"
    results.write_text("# Before\n")
    arguments = ["--steps", "3", "--strategy", "pmap", "--json", str(path), "--profile", str(trace)]
    arguments += ["--append", str(results), "--count-flops", "--layers", "unrolled", "--remat", "dots"]
    done = run(*arguments, devices=devices)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("generated 2 5\n")
    assert list(trace.rglob("*.xplane.pb"))
    result = json.loads(path.read_text())
    assert result["command"] in done.stdout
    assert result["environment"]["devices"] == devices
    assert result["environment"]["versions"]["jax"]
    ours = result["ours"]
    batch, step = ours["batch"], ours["step_seconds"]
    assert 6 * 4 <= batch["real_tokens"] <= 12 * 4
    assert step["steps"] == 3
    assert 0 < step["lower_quartile"] <= step["median"] <= step["upper_quartile"]
    assert ours["real_tokens_per_second"] == pytest.approx(batch["real_tokens"] / step["median"])
    assert ours["samples_per_second"] == pytest.approx(4 / step["median"])
    flops = ours["flops"]
    assert flops["model_needed"] < flops["model_dense"] < flops["xla_unrolled"]
    assert not flops["loops"]
    assert ours["mfu"] is None  # nobody knows a CPU's peak
    assert ours["memory"]["bytes"] > 0
    assert 2 < ours["loss"] < 5  # about ln(20)
    assert (ours["laid_out"], ours["remat"], ours["matmul"]) == (["decoder"], "dots", "compute")
    assert results.read_text().startswith("# Before\n\n2 x cpu; host ")
    assert f"\n\n    {result['command']}\n" in results.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "tiny_vml"], "--preset: invalid choice: 'tiny_vml'"),
        (["--preset", "tiny_vlm", "--steps", "none"], "--steps: invalid"),
        (["--preset", "tiny_vlm", "--json", "no/such/place.json"], "--json: no/such is not a directory"),
        (["--preset", "vlm_1b", "--plan", "h200", "--devices", "7"], "--batch-size: 8 rows cannot be shared"),
        (["--preset", "tiny_vlm", "--peer", "keras"], "--peer: 'keras' is not one of transformers, torch_compile"),
        (["--preset", "tiny_vlm", "--peer", "torch"], "--peer: torch has no model for tiny_vlm; choose from transf"),
        (["--preset", "tiny_vlm", "--peer", "transformers", "--plan", "h200"], "--plan: it is of our step alone"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_models_own_count_leaves_out_what_is_frozen():
    preset = PRESETS["tiny_vlm"]
    shallow = {room: replace(getattr(preset.model, room), num_layers=1) for room in ("vision", "decoder")}
    frozen = replace(preset, model=replace(preset.model, **shallow), trainable=("projector/*",))
    batch = synthetic_batch(frozen)
    assert 1 < xla_flops(frozen, batch)["xla_to_model_dense"] < 1.15
    counted = model_flops(frozen, batch)
    assert counted["model_needed"] < counted["model_dense"]


@pytest.mark.parametrize("fusion", ["place", "add", "cross-attention"])
def test_a_packed_batch_is_laid_out_as_packing_does_it(fusion):
    tiny = PRESETS["tiny_vlm"]
    projector = PixelShuffleProjectorConfig(factor=4)  # 4 tokens an image
    preset = replace(
        tiny,
        model=replace(tiny.model, projector=projector),
        batch_size=3,
        row_length=90,
        images_per_row=4,
        segments_per_row=2,
        shortest=0.8,
    )
    if fusion == "add":
        layout = {"fusion": AddFusionConfig(), "projector": LinearProjectorConfig(pool="mean")}
    else:
        layout = {"fusion": CrossAttentionFusionConfig()} if fusion == "cross-attention" else {}
    batch = synthetic_batch(replace(preset, model=replace(preset.model, **layout)))
    placed = 2 * preset.model.tokens_per_image  # in a segment of two images
    for row in range(3):
        for segment in (1, 2):
            (where,) = np.nonzero(batch.segment_ids[row] == segment)
            np.testing.assert_array_equal(batch.positions[row, where], np.arange(len(where)))
            np.testing.assert_array_equal(np.diff(where), 1)
            index = batch.visual_index[row, where]
            seen = {"place": np.arange(placed) + (segment - 1) * placed, "add": np.full(len(where), 2 * segment - 2)}
            np.testing.assert_array_equal(index[index >= 0], seen.get(fusion, []))
            learned = batch.loss_weights[row, where] > 0
            assert not learned[-1]  # nothing follows
            assert learned[:-1].any()
            np.testing.assert_array_equal(batch.targets[row, where][:-1], batch.tokens[row, where][1:])
    assert batch.segment_ids.max() == 2
    np.testing.assert_array_equal(batch.image_segment_ids, [[1, 1, 2, 2]] * 3)
    assert batch.packed
