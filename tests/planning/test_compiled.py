"""Whole plans of small runs, compiled for cards that are not there."""

import json
from dataclasses import replace

import pytest

from jaxfusion.config import Config, from_dict
from jaxfusion.errors import UserError
from jaxfusion.hardware import HARDWARE
from jaxfusion.main import main
from jaxfusion.planning.run import plan_run
from tests.planning.cuda import needs_cuda_build

MODEL = {
    "width": 64,
    "dtype": "bfloat16",
    "text_embedding": {"vocab_size": 300},
    "vision": {"kind": "vit", "image_size": 16, "patch_size": 4, "width": 64, "num_layers": 1, "num_heads": 1}
    | {"mlp_width": 64},
    "decoder": {"kind": "transformer", "num_layers": 1, "num_heads": 1},
}
BILSTM = {
    "width": 16,
    "vision": None,
    "fusion": "add",
    "encoder": {"kind": "bilstm", "implementation": "scan"},
    "decoder": "token-classifier",
}


def config_of(model: dict, **plan) -> Config:
    train = {"batch_size": 8, "trainable": ["decoder/*", "projector/*"] if model["vision"] else ["*"]}
    return from_dict(Config, {"model": model, "data": {"row_length": 128}, "train": train, "plan": plan})


@needs_cuda_build
def test_a_run_is_planned_for_several_cards():
    plan = plan_run(config_of(MODEL, hardware="h100", topology="1x1x2"))
    assert plan.fits and plan.devices == 2 and plan.rows == 8 and plan.attention_layers == 2
    assert plan.batch == 4 * (128 * (6 * 4 + 1) + 16 * 16 * 3 + 4)  # a card's half of the rows
    assert plan.program.argument_bytes == sum(plan.parameters.values()) + plan.optimizer + plan.batch
    assert plan.program.kernels["__cudnn$fmhaSoftmaxBackward"] == 1  # the tower is frozen
    trained = plan.parameters["decoder"] + plan.parameters["projector"]
    in_bfloat16 = trained / 2  # as products give gradients, before the float32 parameters take them
    assert plan.program.collective_bytes["all-reduce"] == pytest.approx(in_bfloat16, rel=0.02)


@needs_cuda_build
def test_a_recurrent_run_is_planned_as_a_loop():
    plan = plan_run(config_of(BILSTM), rows=4)
    assert plan.rows == 4 and plan.program.kernels.total() > 128  # at least one launch for each position


@needs_cuda_build
def test_fp8_products_read_8_bits():
    config = config_of(MODEL | {"vision": None}, hardware="h100")
    plan = plan_run(replace(config, train=replace(config.train, matmul="fp8")))
    assert {"f8e4m3fn", "f8e5m2"} <= {array.split("[")[0] for array in plan.program.arrays}
    assert plan.bounds["arithmetic"] == plan.flops / plan.devices / HARDWARE["h100"].fp8_flops


@needs_cuda_build
def test_fp8_is_refused_where_the_card_has_none():
    config = config_of(MODEL, hardware="a100")
    with pytest.raises(UserError, match=r"^config\.train\.matmul: NVIDIA A100-SXM4-80GB .* set it to 'compute'$"):
        plan_run(replace(config, train=replace(config.train, matmul="fp8")))


@needs_cuda_build
def test_rows_that_cannot_be_shared_are_refused():
    with pytest.raises(UserError, match=r"^config\.train\.batch_size: .* or change config\.plan\.topology$"):
        plan_run(config_of(MODEL, topology="1x1x8"), rows=4)


@needs_cuda_build
def test_the_command_shows_a_plan_and_writes_it(tmp_path, capsys):
    path = tmp_path / "tiny.py"
    path.write_text(
        "from jaxfusion.config import default_config\n\n\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.model.width = 64\n"
        "    config.model.vision = 'none'\n"
        "    config.model.decoder.num_layers = 1\n"
        "    return config\n"
    )
    numbers = tmp_path / "plan.json"
    options = ["--mode", "plan", "--config", str(path), "--output", str(numbers), "--config.plan.largest_batch=False"]
    assert main(options) == 0
    shown = capsys.readouterr()
    assert "64 rows a step: fits" in shown.out and "attention: XLA's, nothing fused, 1 layer" in shown.out
    assert shown.err == "compiling a step of 64 rows for h200, 1x1x1\n"
    found = json.loads(numbers.read_text())
    assert found["fits"] and found["largest_batch"] is None and found["hardware"] == "NVIDIA H200"
