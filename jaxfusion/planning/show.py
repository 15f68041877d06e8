"""A plan as a person reads it, and as JSON."""

from typing import Any

from rich.console import Console
from rich.table import Table

from jaxfusion.planning.run import USABLE, RunPlan

# What XLA calls the kernels that people ask for; all others are counted together.
_NAMES = {
    "__cudnn$fmhaSoftmax": "attention, cuDNN, forward",
    "__cudnn$fmhaSoftmaxBackward": "attention, cuDNN, backward",
    "flash_attention_forward": "attention, Pallas, forward",
    "flash_attention_backward_query": "attention, Pallas, backward (queries)",
    "flash_attention_backward_key_value": "attention, Pallas, backward (keys, values)",
}
_PARTS = {
    "__cublas": "matrix products, cuBLAS",
    "__cudnn$conv": "convolutions, cuDNN",
    "fusion __triton": "matrix products, Triton",
}


def to_json(plan: RunPlan, largest: RunPlan | None = None) -> dict[str, Any]:
    """Everything that was found, in bytes, operations and seconds."""
    program = plan.program
    return {
        "hardware": plan.card.device_kind,
        "devices": plan.devices,
        "rows": plan.rows,
        "memory": {
            "parameters": plan.parameters,
            "optimizer": plan.optimizer,
            "batch": plan.batch,
            "activations": program.temporary_bytes,
            "total": program.total_bytes,
            "card": plan.card.memory_bytes,
        },
        "fits": plan.fits,
        "largest_batch": largest.rows if largest is not None and largest.fits else None,
        "kernels": launches(plan),
        "collectives": {
            kind: {"launches": count, "bytes": program.collective_bytes[kind]}
            for kind, count in program.collectives.items()
        },
        "flops": plan.flops,
        "bound_seconds": plan.bounds,
    }


def launches(plan: RunPlan) -> dict[str, int]:
    """Launches a step, by what they are for."""
    found: dict[str, int] = {}
    for kernel, count in plan.program.kernels.items():
        part = next((name for prefix, name in _PARTS.items() if kernel.startswith(prefix)), "all other kernels")
        name = _NAMES.get(kernel, part)
        found[name] = found.get(name, 0) + count
    return dict(sorted(found.items()))


def show_plan(plan: RunPlan, largest: RunPlan | None, console: Console) -> None:
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
