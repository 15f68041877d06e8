"""Rates of a window by a clock of our own, and a metrics file that goes on where training does."""

import json

import pytest

from jaxfusion.training import metrics
from jaxfusion.training.metrics import MetricsLog, Window, read_metrics


def step_metrics(loss: float, tokens: int = 100, samples: int = 10) -> dict[str, float]:
    return {"loss": loss, "accuracy": loss / 2, "gradient_norm": 3.0, "tokens": tokens, "samples": samples}


@pytest.fixture
def clock(monkeypatch):
    times = []
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: times.pop(0))
    return times


def test_rates_leave_out_the_first_step_and_skipped_time(clock):
    window = Window(seconds=100.0)
    clock += [60.0, 60.5, 61.0]  # the first step took a minute to compile
    for loss in (4.0, 3.0, 2.0):
        window.add(step_metrics(loss))
    row = window.close()
    assert row["loss"] == 3.0 and row["accuracy"] == 1.5 and row["gradient_norm"] == 3.0
    assert (row["samples_per_second"], row["tokens_per_second"], row["steps_per_second"]) == (20.0, 200.0, 2.0)
    assert row["seconds"] == 101.0
    clock += [90.0, 90.25]  # an evaluation in between
    window.skip()
    window.add(step_metrics(1.0, tokens=50))
    row = window.close()
    assert (row["loss"], row["tokens_per_second"], row["seconds"]) == (1.0, 200.0, 101.25)


def test_a_window_of_the_first_step_alone_has_no_rates(clock):
    window = Window(seconds=0.0)
    clock += [60.0]
    window.add(step_metrics(4.0))
    row = window.close()
    assert row["samples_per_second"] is None and row["loss"] == 4.0 and row["seconds"] == 0.0


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
