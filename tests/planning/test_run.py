"""A run's plan: what needs no GPU compiler. What XLA makes of real models is in test_presets.py."""

import io
import json
from collections import Counter
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from rich.console import Console

import jaxfusion
from jaxfusion.config import Config, from_dict
from jaxfusion.errors import UserError
from jaxfusion.hardware import HARDWARE
from jaxfusion.models.check import check_batch
from jaxfusion.planning import Program
from jaxfusion.planning.full_rows import full_rows
from jaxfusion.planning.largest import best_fit, largest_batch, next_rows
from jaxfusion.planning.run import plan_run
from jaxfusion.planning.show import show_plan, size
from jaxfusion.planning.step import StepPlan
from jaxfusion.planning.summary import to_json
from jaxfusion.planning.tell import tell_plan
from tests.planning.cuda import needs_cuda_build

VIT = {"kind": "vit", "image_size": 8, "patch_size": 4, "width": 8, "num_layers": 1, "num_heads": 2, "mlp_width": 8}


def make_plan(rows: int, gigabytes: float, devices: int = 1, flops: int = 10**12) -> StepPlan:
    size = int(gigabytes * 1e9)
    program = Program(
        argument_bytes=10**9,
        output_bytes=10**9,
        donated_bytes=10**9,
        temporary_bytes=size - 10**9,
        kernels=Counter({"__cudnn$fmhaSoftmax": 3, "flash_attention_forward": 2, "fusion": 7, "sort": 1}),
        collectives=Counter({"all-reduce": 4}),
        collective_bytes=Counter({"all-reduce": 8 * 10**9}),
        arrays={},
    )
    return StepPlan(HARDWARE["h200"], devices, rows, {"decoder": 4 * 10**8}, 5 * 10**8, 10**8, program, flops)


def test_bounds_are_what_each_part_takes_at_its_peak():
    bounds = make_plan(8, 20, devices=8, flops=8 * 9895 * 10**11).bounds
    assert bounds == pytest.approx({"arithmetic": 1.0, "memory": 1e9 / 4.8e12, "links": 8e9 * 7 / 8 / 450e9})


@pytest.mark.parametrize("unit", [1, 8])
@pytest.mark.parametrize("first", [8, 64, 4096])
@pytest.mark.parametrize("fixed, a_row", [(20e9, 1e9), (0, 3e8), (143e9, 1e7), (150e9, 1e6)])
def test_the_search_ends_at_the_largest_batch(unit, first, fixed, a_row):
    limit, known = 0.95 * HARDWARE["h200"].memory_bytes, {}

    def size(rows: int) -> int:
        return int(fixed + a_row * rows**1.02)  # not quite a straight line

    rows = first
    while rows is not None:
        assert rows % unit == 0 and rows not in known
        known[rows] = size(rows)
        assert len(known) < 14
        rows = next_rows(known, unit, limit)
    largest = max((rows for rows, size in known.items() if size <= limit), default=0)
    assert size(largest + max(unit, largest // 50) + unit) > limit


@needs_cuda_build
def test_cudnns_lstm_which_the_card_would_run_is_refused():
    model = {"width": 8, "text_embedding": {"vocab_size": 9}, "encoder": "bilstm", "decoder": "token-classifier"}
    data = {"row_length": 8, "packing": "none", "modalities": ["text"]}
    config = from_dict(Config, {"model": model, "data": data, "plan": {"topology": "1x1x2"}})
    with pytest.raises(UserError, match=r"config\.model\.encoder\.implementation: .*set 'scan'"):
        plan_run(config)


def test_the_search_plans_other_numbers_of_rows():
    found = list(largest_batch(make_plan(8, 18), 2, lambda rows: make_plan(rows, 10 + rows)))
    assert [plan.rows for plan in found] == [16, 132, 134] and best_fit(found).rows == 132


def test_the_best_fit_has_most_rows():
    plans = [make_plan(8, 20), make_plan(64, 150), make_plan(32, 80)]
    assert best_fit(plans).rows == 32
    assert not best_fit(plans[1:2]).fits


@pytest.mark.parametrize(
    "model, positions",
    [
        ({"vision": VIT}, 5),
        ({"vision": VIT, "fusion": "add", "projector": {"kind": "linear", "pool": "mean"}}, 0),
        ({"vision": VIT, "fusion": {"kind": "cross-attention", "num_heads": 2}}, 0),
        ({"vision": {"kind": "lookup", "num_images": 3}}, 1),
        ({"vision": {"kind": "features", "num_tokens": 2, "feature_width": 4}}, 2),
        ({"vision": None}, 0),
    ],
)
def test_full_rows_are_batches_of_the_model(model, positions):
    text = {
        "width": 8,
        "text_embedding": {"vocab_size": 11},
        "decoder": {"kind": "transformer", "num_layers": 1, "num_heads": 2},
    }
    config = from_dict(Config, {"model": text | model, "data": {"row_length": 12}})
    batch = full_rows(config, 3)
    check_batch(jaxfusion.build(config).config, batch)
    assert batch.tokens.shape == (3, 12) and (batch.segment_ids == 1).all()
    assert np.sum(batch.visual_index[0] >= 0) == (12 if "add" in str(model) else positions)


def test_full_rows_are_packed_and_have_the_images_that_the_config_says():
    data = {"row_length": 12, "packing": "best-fit", "images_per_row": 2}
    batch = full_rows(from_dict(Config, {"model": {"vision": VIT, "width": 8}, "data": data}), 3)
    assert batch.packed
    assert batch.images.shape[:2] == (3, 2)
    assert np.sum(batch.visual_index[0] >= 0) == 10


def test_prepared_features_stand_in_full_rows(tmp_path):
    about = {"store": "features", "records": 1, "settings": {}, "variants": 1}
    (tmp_path / "prepared.json").write_text(json.dumps(about))
    data = {"row_length": 12, "prepared": str(tmp_path)}
    model = {"vision": VIT, "width": 8, "dtype": "bfloat16"}
    batch = full_rows(from_dict(Config, {"model": model, "data": data}), 3)
    vision = from_dict(Config, {"model": model}).model.vision
    assert batch.images.shape == (3, 1, vision.num_tokens, vision.feature_width)
    assert batch.images.dtype == ml_dtypes.bfloat16


def test_a_row_that_is_too_short_for_its_image_is_refused():
    config = from_dict(Config, {"model": {"vision": VIT}, "data": {"row_length": 4}})
    with pytest.raises(UserError, match=r"^config\.data\.row_length: .*take 5 positions and it has 4; raise it$"):
        full_rows(config, 1)


def test_what_is_shown_and_written(tmp_path):
    out, path = io.StringIO(), tmp_path / "plan.json"
    search = [make_plan(16, 300), make_plan(12, 150.04), make_plan(14, 137)]
    tell_plan(make_plan(8, 20), search, Console(file=out, width=100), path)
    for line in (
        "attention, cuDNN, forward",
        "attention, Pallas, forward",
        "8 rows a step: fits",
        "16 rows: 300.0 GB, does not fit",
        "12 rows: 150.0 GB, does not fit",
        "largest batch that fits: 14 rows (137.0 GB)",
    ):
        assert line in out.getvalue()
    assert out.getvalue().index("largest_batch=False") < out.getvalue().index("16 rows")
    found = json.loads(path.read_text())
    assert found["memory"]["total"] == 20e9 and found["largest_batch"] == 14
    assert found["tried"][0] == {"rows": 16, "total": 300e9, "fits": False}
    assert found["kernels"] == {"all other kernels": 8, "attention, Pallas, forward": 2, "attention, cuDNN, forward": 3}
    assert found["collectives"] == {"all-reduce": {"launches": 4, "bytes": 8e9}}
    assert to_json(make_plan(8, 200), largest=make_plan(1, 200))["largest_batch"] is None


def test_a_search_that_is_stopped_loses_nothing(tmp_path):
    out, path = io.StringIO(), tmp_path / "plan.json"

    def search():
        assert json.loads(path.read_text())["rows"] == 8 and "8 rows a step: fits" in out.getvalue()
        yield make_plan(16, 30)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tell_plan(make_plan(8, 20), search(), Console(file=out, width=100), path)
    assert "16 rows: 30.0 GB, fits" in out.getvalue()
    found = json.loads(path.read_text())
    assert [tried["rows"] for tried in found["tried"]] == [16] and found["largest_batch"] is None


def test_sizes_are_in_units_that_show_them():
    assert [size(number) for number in (0, 50_000, 99_000_000, 100_000_000, 24e9)] == (
        ["0.0 MB", "0.1 MB", "99.0 MB", "0.1 GB", "24.0 GB"]
    )


@pytest.mark.parametrize("fused", [True, False])
def test_a_plan_says_where_no_attention_is_fused(fused):
    plan, out = make_plan(8, 20), io.StringIO()
    kernels = plan.program.kernels if fused else Counter({"fusion": 7})
    program = replace(plan.program, kernels=kernels)
    show_plan(replace(plan, program=program, attention_layers=3), Console(file=out, width=100))
    assert ("attention: XLA's, nothing fused, 3 layers" in out.getvalue()) == (not fused)
