"""What is shown beside the bar: rates from the first line on, which compiling goes before."""

import io

from rich.console import Console

from jaxfusion.evaluation import meter
from jaxfusion.training.progress import Progress


def test_rates_and_time_to_go_leave_out_what_goes_before_the_first_line(monkeypatch):
    now, text = 1000.0, io.StringIO()
    monkeypatch.setattr(meter.time, "monotonic", lambda: now)
    with Progress(12, Console(file=text), unit="record") as progress:
        meter_of_job = meter.Meter(progress, before=2)
        now += 500
        meter_of_job.add({"num_tokens": 64})
        now += 11
        for row in ({"num_tokens": 100}, {"error": "bad"}, {"num_tokens": 120}):
            meter_of_job.add(row)
        now += 11
        meter_of_job.add({"num_tokens": 0})
    lines = text.getvalue().splitlines()
    assert lines[0].split() == ["record", "3/12"]
    assert lines[-1] == "record 7/12  0.2 records/s · 10 tokens/s · 1 bad · 0:00:28 to go"
