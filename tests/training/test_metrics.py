"""Rates of a window by a clock of our own, and a metrics file that goes on where training does."""

import json
import math

import pytest

from jaxfusion.config.model import FeaturesConfig, ModelConfig, TextEmbeddingConfig
from jaxfusion.training import metrics
from jaxfusion.training.meters import Meters
from jaxfusion.training.metrics import MetricsLog, Window, read_metrics
from jaxfusion.training.progress import describe

METERS = Meters(
    ModelConfig(
        width=8, text_embedding=TextEmbeddingConfig(vocab_size=5), vision=FeaturesConfig(num_tokens=2, feature_width=3)
    ),
    trainable=frozenset({"projector/linear/kernel"}),
    peak_flops=1e6,
)


def step_metrics(loss: float, tokens: int = 100, samples: int = 10, skipped: int = 0) -> dict[str, float]:
    sizes = {"tokens": tokens, "samples": samples, "positions": 125, "images": 3, "pictures": 3, "image_slots": 4}
    sizes |= {"targets": 50, "encoder_tokens": 0, "decoder_pairs": 0}
    return {"loss": loss, "accuracy": loss / 2, "gradient_norm": 3.0, "skipped_updates": skipped, **sizes}


@pytest.fixture
def clock(monkeypatch):
    times = []
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: times.pop(0))
    return times


def test_rates_leave_out_the_first_step_and_skipped_time(clock):
    window = Window(100.0, METERS)
    clock += [60.0, 60.5, 61.0]  # the first step took a minute to compile
    for loss in (4.0, 3.0, 2.0):
        window.add(step_metrics(loss))
    row = window.close()
    assert row["loss"] == 3.0 and row["accuracy"] == 1.5 and row["gradient_norm"] == 3.0
    assert (row["samples_per_second"], row["tokens_per_second"], row["steps_per_second"]) == (20.0, 200.0, 2.0)
    assert row["seconds"] == 101.0
    assert (row["useful_tokens"], row["filled_image_slots"], row["images_per_second"]) == (0.8, 0.75, 6.0)
    clock += [90.0, 90.25]  # an evaluation in between
    window.skip()
    window.add(step_metrics(1.0, tokens=50))
    row = window.close()
    assert (row["loss"], row["tokens_per_second"], row["seconds"]) == (1.0, 200.0, 101.25)


def test_a_window_of_the_first_step_alone_has_no_rates(clock):
    window = Window(0.0, METERS)
    clock += [60.0]
    window.add(step_metrics(4.0))
    row = window.close()
    assert row == {"loss": 4.0, "accuracy": 2.0, "gradient_norm": 3.0, "skipped_updates": 0, "seconds": 0.0}


def test_means_leave_out_skipped_updates_and_rates_do_not(clock):
    window = Window(0.0, METERS)
    clock += [0.0, 1.0, 2.0, 3.0]
    for loss, skipped in ((4.0, 0), (math.nan, 1), (2.0, 0)):
        window.add(step_metrics(loss, skipped=skipped))
    row = window.close()
    assert (row["loss"], row["skipped_updates"], row["steps_per_second"]) == (3.0, 1, 1.0)
    window.add(step_metrics(math.nan, skipped=1))
    row = window.close()
    assert (row["loss"], row["accuracy"], row["skipped_updates"]) == (None, None, 1)
    assert describe(row, 5).startswith("no update · 1 updates skipped · ")


def test_utilisation_is_of_what_trains_and_splits_into_vision_and_language(clock):
    window = Window(0.0, METERS)
    clock += [0.0, 2.0]
    for _ in range(2):
        window.add(step_metrics(1.0), waited=0.5)
    row = window.close()
    assert row["input_bound"] == 0.25
    projector = 2 * (3 * 2) * 3 * 8  # a product over the tokens of three images, and as much for its weights' gradient
    decoder = 2 * 100 * 2 * (4 * 8 * 8 + 2 * 8 * 32)  # two layers, forward, and as much for the activations' gradient
    output = 2 * 50 * 8 * 5
    assert row["vision_mfu"] == pytest.approx(2 * projector / 2 / 1e6)
    assert row["language_mfu"] == pytest.approx(2 * (decoder + output) / 2 / 1e6)
    assert row["mfu"] == pytest.approx(row["vision_mfu"] + row["language_mfu"])
    assert row["model_flops_per_second"] == pytest.approx(row["mfu"] * 1e6)


def test_rows_beyond_the_resumed_step_and_cut_ones_are_dropped(tmp_path):
    rows = [{"step": 10, "loss": 1.0, "seconds": 5.0}, {"step": 10, "test_loss": 2.0}, {"step": 20, "loss": 0.5}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 10, "loss": 0.')
    with MetricsLog(tmp_path, last_step=15) as log:
        assert log.seconds == 5.0
        log.write(20, {"loss": 0.25, "samples_per_second": None})
        assert read_metrics(tmp_path) == [*rows[:2], {"step": 20, "loss": 0.25, "samples_per_second": None}]
    with MetricsLog(tmp_path, last_step=0):
        assert read_metrics(tmp_path) == []
    assert list((tmp_path / "tensorboard").iterdir())
