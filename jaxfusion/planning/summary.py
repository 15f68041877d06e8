"""A plan in the words that people ask in, as JSON."""

from collections.abc import Sequence
from typing import Any

from jaxfusion.planning.step import StepPlan

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


def to_json(plan: StepPlan, tried: Sequence[StepPlan] = (), largest: StepPlan | None = None) -> dict[str, Any]:
    """Everything that was found, in bytes, operations and seconds.

    tried: plans of the same run with other numbers of rows. largest: of all the one to take, once that is known.
    """
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
        "tried": [{"rows": t.rows, "total": t.program.total_bytes, "fits": t.fits} for t in tried],
        "kernels": launches(plan),
        "attention_layers": plan.attention_layers,
        "collectives": {
            kind: {"launches": count, "bytes": program.collective_bytes[kind]}
            for kind, count in program.collectives.items()
        },
        "flops": plan.flops,
        "bound_seconds": plan.bounds,
    }


def launches(plan: StepPlan) -> dict[str, int]:
    """Launches a step, by what they are for."""
    found: dict[str, int] = {}
    for kernel, count in plan.program.kernels.items():
        part = next((name for prefix, name in _PARTS.items() if kernel.startswith(prefix)), "all other kernels")
        name = _NAMES.get(kernel, part)
        found[name] = found.get(name, 0) + count
    return dict(sorted(found.items()))
