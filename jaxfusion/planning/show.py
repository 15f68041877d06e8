"""A plan as tables on the terminal."""

from rich.console import Console
from rich.table import Table

from jaxfusion.planning.step import USABLE, StepPlan
from jaxfusion.planning.summary import launches


def show_plan(plan: StepPlan, largest: StepPlan | None, console: Console) -> None:
    """Prints tables; `largest`: the plan of the largest batch that fits, where it was looked for."""
    title = f"memory of each of {plan.devices} x {plan.card.device_kind}, {plan.rows} rows a step"
    memory = Table(title=title, title_justify="left")
    memory.add_column("what")
    memory.add_column("GB", justify="right")
    program = plan.program
    rows = [(f"parameters: {room}", size) for room, size in plan.parameters.items()]
    rows += [("optimizer", plan.optimizer), ("batch", plan.batch)]
    rows += [("gradients, activations and all else", program.total_bytes - sum(size for _, size in rows))]
    for name, size in rows:
        memory.add_row(name, _gb(size))
    memory.add_section()
    memory.add_row("in all", _gb(program.total_bytes))
    memory.add_row(f"the card ({USABLE:.0%} of it can be used)", _gb(plan.card.memory_bytes))
    console.print(memory)
    verdict = "fits" if plan.fits else "does not fit: lower config.train.batch_size, or use more or larger cards"
    console.print(f"{plan.rows} rows a step: {verdict}", highlight=False)
    if largest is not None:
        found = f"{largest.rows} rows ({_gb(largest.program.total_bytes)} GB)" if largest.fits else "none"
        console.print(f"largest batch that fits: {found}", highlight=False)

    counts = Table(title="a step on one card", title_justify="left")
    counts.add_column("what")
    counts.add_column("launches", justify="right")
    counts.add_column("GB", justify="right")
    for name, count in launches(plan).items():
        counts.add_row(name, f"{count:,}", "")
    for kind, count in program.collectives.items():
        counts.add_row(f"collective: {kind}", f"{count:,}", _gb(program.collective_bytes[kind]))
    console.print(counts)

    console.print(f"model FLOPs a step, all cards: {plan.flops / 1e12:,.3f} TFLOP", highlight=False)
    parts = ", ".join(f"{name} {1e3 * seconds:,.3g} ms" for name, seconds in plan.bounds.items() if seconds)
    bound = f"{1e3 * max(plan.bounds.values()):,.3g} ms"
    console.print(
        f"a bound, not an estimate: no step of full rows can be faster than {bound} ({parts})", highlight=False
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:,.3f}" if size < 1e8 else f"{size / 1e9:,.1f}"
