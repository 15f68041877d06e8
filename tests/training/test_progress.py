"""The plain lines of a log, and that a terminal gets a bar."""

import io

from rich.console import Console

from jaxfusion.training.progress import Progress, describe

ROW = {
    "loss": 0.12345,
    "samples_per_second": 1234.4,
    "tokens_per_second": 98765.0,
    "steps_per_second": 2.0,
    "model_flops_per_second": 31.4e9,
    "input_bound": 0.031,
}


def test_a_row_is_described_with_the_time_to_go():
    rates, rest = "loss 0.1235 · 1,234 samples/s · 98,765 tokens/s", "3% input-bound · 1:01:05 to go"
    assert describe(ROW, steps_to_go=2 * 3665) == f"{rates} · 31.4 GFLOP/s · {rest}"
    assert describe(ROW | {"mfu": 0.4123}, steps_to_go=2 * 3665) == f"{rates} · 41.2% MFU · {rest}"
    assert describe({"loss": 0.12345}, steps_to_go=5) == "loss 0.1235"


def show(terminal: bool) -> str:
    text = io.StringIO()
    with Progress(100, Console(file=text, force_terminal=terminal, width=60)) as progress:
        progress.step(0, "compiling")
        for step in (10, 20, 30, 100):
            progress.step(step)
            progress.row(step, ROW)
        progress.say("saved in runs/[new]/x, " + "a long line " * 6)
    return text.getvalue()


def test_without_a_terminal_there_are_few_whole_lines():
    lines = show(terminal=False).splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["10/100", "100/100"]
    assert lines[-1].startswith("saved in runs/[new]/x, a long line a long line a long line a long line a long line a")


def test_a_terminal_gets_a_bar():
    text = show(terminal=True)
    assert "100/100" in text and "━" in text
