"""The live display of a training run; where there is no terminal, a plain line now and then."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column

from jaxfusion.training.metrics import Row

SECONDS_BETWEEN_LINES = 10.0
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class Progress:
    """How far something is, in steps or in what `unit` says, and a few words on it. A context manager."""

    def __init__(self, num_steps: int, console: Console | None = None, unit: str = "step") -> None:
        self.num_steps, self.unit = num_steps, unit
        self.console = console or Console()
        self._text = ""
        self._last_line = -SECONDS_BETWEEN_LINES
        self._bars = None
        if self.console.is_terminal:
            # In a narrow terminal the bar gives way first, then the end of the text, never the step.
            count = MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=len(f"{num_steps}/{num_steps}")))
            columns = (count, BarColumn(bar_width=None), TextColumn("{task.description}"))
            self._bars = Bars(*columns, console=self.console, expand=True)
            self._task = self._bars.add_task("starting", total=num_steps)

    def __enter__(self) -> "Progress":
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def step(self, step: int, description: str | None = None) -> None:
        """Moves the bar; the description stays until there is another."""
        if self._bars:
            self._bars.update(self._task, completed=step, description=description)

    def row(self, step: int, row: Row) -> None:
        """Shows a training row of metrics.jsonl: loss, rates of what is real, and time to go."""
        self.show(step, describe(row, self.num_steps - step))

    def show(self, step: int, text: str) -> None:
        """Moves the bar and shows the text beside it; without a terminal, a line now and then and at the end."""
        if self._bars:
            self.step(step, text)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES or step == self.num_steps:
            self._last_line = time.monotonic()
            self.say(f"{self.unit} {step}/{self.num_steps}  {text}")

    def say(self, text: str) -> None:
        """A line that stays, above the bar where there is one."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def describe(row: Row, steps_to_go: int) -> str:
    """A row in words: loss 0.1234 · 980 samples/s · 25,310 tokens/s · 41.2% MFU · 0% input-bound · 0:01:10 to go."""
    parts = ["no update" if row["loss"] is None else f"loss {row['loss']:.4f}"]
    if row.get("skipped_updates"):
        parts.append(f"{row['skipped_updates']} updates skipped")
    if "steps_per_second" in row:
        parts += [f"{row['samples_per_second']:,.0f} samples/s", f"{row['tokens_per_second']:,.0f} tokens/s"]
        # A share of the peak where it is known, else the operations themselves.
        flops = row["model_flops_per_second"]
        parts.append(f"{row['mfu']:.1%} MFU" if "mfu" in row else f"{scaled(flops)}FLOP/s")
        parts.append(f"{row['input_bound']:.0%} input-bound")
        parts.append(to_go(steps_to_go / row["steps_per_second"]))
    return " · ".join(parts)


def to_go(seconds: float) -> str:
    seconds = round(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} to go"


def scaled(value: float) -> str:
    """With a prefix of the SI: 31.4 G."""
    prefix = next(((unit, name) for unit, name in PREFIXES if value >= unit), (1.0, ""))
    return f"{value / prefix[0]:.3g} {prefix[1]}"
