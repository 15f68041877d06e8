"""A plan told as it is made: that of the batch that was asked for, then the search for the largest, line by line."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from jaxfusion.files import write_json
from jaxfusion.planning.largest import MAX_COMPILATIONS, best_fit
from jaxfusion.planning.show import show_plan, size
from jaxfusion.planning.step import StepPlan
from jaxfusion.planning.summary import to_json


def tell_plan(first: StepPlan, search: Iterable[StepPlan] | None, console: Console, output: Path | None = None) -> None:
    """Shows the plan and writes it, and then each of the search as it comes, so that an end at any time loses nothing.

    search: plans with other numbers of rows, see `largest_batch`; None: the largest batch is not wanted.
    output: a JSON file.
    """
    tried: list[StepPlan] = []
    largest = None

    def write() -> None:
        if output is not None:
            write_json(output, to_json(first, tried, largest))

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    show_plan(first, console)
    write()
    if search is None:
        return
    say(
        f"looking for the largest batch that fits, by up to {MAX_COMPILATIONS} more compilations; Ctrl-C ends that, "
        "and --config.plan.largest_batch=False leaves it out"
    )
    for plan in search:
        tried.append(plan)
        say(f"{plan.rows:,} rows: {size(plan.program.total_bytes)}, {'fits' if plan.fits else 'does not fit'}")
        write()
    largest = best_fit([first, *tried])
    found = f"{largest.rows:,} rows ({size(largest.program.total_bytes)})" if largest.fits else "none"
    say(f"largest batch that fits: {found}")
    write()
