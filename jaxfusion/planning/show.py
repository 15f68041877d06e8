"""A plan as tables on the terminal."""

from rich.console import Console
from rich.table import Table

from jaxfusion.planning.step import USABLE, StepPlan
from jaxfusion.planning.summary import launches


def show_plan(plan: StepPlan, console: Console) -> None:
    title = f"memory of each of {plan.devices} x {plan.card.device_kind}, {plan.rows} rows a step"
    memory = Table(title=title, title_justify="left")
    memory.add_column("what")
    memory.add_column("size", justify="right")
    program = plan.program
    rows = [(f"parameters: {room}", taken) for room, taken in plan.parameters.items()]
    rows += [("optimizer", plan.optimizer), ("batch", plan.batch)]
    rows += [("gradients, activations and all else", program.total_bytes - sum(taken for _, taken in rows))]
    for name, taken in rows:
        memory.add_row(name, size(taken))
    memory.add_section()
    memory.add_row("in all", size(program.total_bytes))
    memory.add_row(f"the card ({USABLE:.0%} of it can be used)", size(plan.card.memory_bytes))
    console.print(memory)
    verdict = "fits" if plan.fits else "does not fit: lower config.train.batch_size, or use more or larger cards"
    console.print(f"{plan.rows} rows a step: {verdict}", highlight=False)

    counts = Table(title="a step on one card", title_justify="left")
    counts.add_column("what")
    counts.add_column("launches", justify="right")
    counts.add_column("size", justify="right")
    kernels = launches(plan)
    if plan.attention_layers and not any(name.startswith("attention") for name in kernels):
        layers = "1 layer" if plan.attention_layers == 1 else f"{plan.attention_layers} layers"
        counts.add_row(f"attention: XLA's, nothing fused, {layers}", "", "")
    for name, count in kernels.items():
        counts.add_row(name, f"{count:,}", "")
    for kind, count in program.collectives.items():
        counts.add_row(f"collective: {kind}", f"{count:,}", size(program.collective_bytes[kind]))
    console.print(counts)

    console.print(f"model FLOPs a step, all cards: {plan.flops / 1e12:,.3f} TFLOP", highlight=False)
    parts = ", ".join(f"{name} {1e3 * seconds:,.3g} ms" for name, seconds in plan.bounds.items() if seconds)
    bound = f"{1e3 * max(plan.bounds.values()):,.3g} ms"
    console.print(
        f"a bound, not an estimate: no step of full rows can be faster than {bound} ({parts})", highlight=False
    )


def size(number: int) -> str:
    """Bytes in words: GB, or MB below a tenth of one."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e8 else f"{number / 1e6:,.1f} MB"
