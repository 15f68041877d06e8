"""What --mode inspect says of a run: its numbers are the model's own."""

import jax
import numpy as np
import pytest
from rich.console import Console

import jaxfusion
from jaxfusion.config import Config, from_dict, to_dict
from jaxfusion.errors import UserError
from jaxfusion.files import write_json
from jaxfusion.inspection import inspect_run
from jaxfusion.parallel.sharding import partition
from jaxfusion.workdir import CONFIG

MODEL = {
    "width": 64,
    "text_embedding": {"vocab_size": 512},
    "vision": {"kind": "vgg", "image_size": 8, "stage_depths": [1], "stage_widths": [4]},
    "decoder": {"kind": "transformer", "num_layers": 2, "num_heads": 4},
}


def said_of(workdir):
    console = Console(record=True, width=160)
    inspect_run(workdir, console)
    return console.export_text()


def test_it_tells_step_checkpoints_parameters_numbers_and_settings(tmp_path):
    config = from_dict(Config, {"model": MODEL, "train": {"trainable": ["projector/*"], "num_steps": 20}})
    write_json(tmp_path / CONFIG, to_dict(config))
    (tmp_path / "checkpoints/10").mkdir(parents=True)
    (tmp_path / "checkpoints/10/data").write_bytes(b"x" * 3000)
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 0.125}\n')
    text = said_of(tmp_path)
    assert "step 10 of 20" in text and "3 kB" in text and "0.125" in text
    params = jax.eval_shape(lambda rng: jaxfusion.init(jaxfusion.build(config), rng), jax.random.key(0))
    total = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    trained = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params["projector"]))
    (line,) = (line for line in text.splitlines() if line.strip("│ ").startswith("all "))
    assert f"{total:,}" in line and f"{trained:,}" in line and "each device" not in text
    assert "train.trainable" in text and "train.learning_rate" not in text


def test_it_tells_what_each_device_of_a_mesh_holds(tmp_path):
    config = from_dict(Config, {"model": MODEL | {"vision": None}, "parallel": {"fsdp": 4, "tensor": 2}})
    write_json(tmp_path / CONFIG, to_dict(config))
    params = jax.eval_shape(lambda rng: jaxfusion.init(jaxfusion.build(config), rng), jax.random.key(0))
    held = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = partition(name, leaf.shape, {"fsdp": 4, "tensor": 2})
        parts = [{"fsdp": 4, "tensor": 2, None: 1}[axis] for axis in axes]
        held += 4 * int(np.prod([size // part for size, part in zip(leaf.shape, parts, strict=False)], initial=1))
    assert held < 4 * sum(leaf.size for leaf in jax.tree.leaves(params)) / 6
    assert f"{held / 1e3:.3g} kB" in said_of(tmp_path)


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run in it"):
        inspect_run(tmp_path, Console())
