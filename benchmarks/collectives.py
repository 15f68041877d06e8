"""What a step sends between GPUs, for each way to share a model out: the real step, compiled for described H200s.

JAX_PLATFORMS=cpu python -m benchmarks.collectives
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.command_line import Parser, new_file, report
from benchmarks.ours import train_settings
from benchmarks.presets import GPU_PRESETS, PRESETS, Preset
from benchmarks.synthetic import synthetic_batch
from jaxfusion.config.run import ParallelConfig
from jaxfusion.errors import UserError
from jaxfusion.planning.show import size
from jaxfusion.planning.step import StepPlan, plan_step

GPUS_A_HOST = 8
GPUS = (8, 64, 1024)
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

# By the number of GPUs: parameters are shared out within a host, and all else between hosts.
STRATEGIES = {
    "data": lambda gpus: ParallelConfig(data=gpus),
    "fsdp": lambda gpus: ParallelConfig(data=gpus // GPUS_A_HOST, fsdp=GPUS_A_HOST),
    "fsdp, tensor": lambda gpus: ParallelConfig(data=gpus // GPUS_A_HOST, fsdp=GPUS_A_HOST // 2, tensor=2),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser().parse_args(argv)
        rows = []
        print("| preset | strategy | GPUs | a card holds | needs | " + " | ".join(KINDS) + " |")
        print("|" + " --- |" * (5 + len(KINDS)))
        for name in args.presets:
            for strategy in args.strategies:
                for gpus in args.gpus:
                    plan = plan_strategy(PRESETS[name], strategy, gpus)
                    rows.append(facts_of(name, strategy, plan))
                    print(_row(rows[-1]), flush=True)
    except UserError as error:
        print(f"benchmarks.collectives: {error}", file=sys.stderr)
        return 2
    report("benchmarks.collectives", argv, {"rows": rows}, args.json)
    return 0


def plan_strategy(preset: Preset, strategy: str, gpus: int) -> StepPlan:
    """The step of as many rows as the preset has on 8 cards, or one a share where that is more.

    Its layers are in a loop: what is sent is the same, and it compiles in a minute.
    """
    parallel = STRATEGIES[strategy](gpus)
    shares = gpus // parallel.tensor
    model = preset.model
    looped = {"vision": replace(model.vision, scan_layers=True), "decoder": replace(model.decoder, scan_layers=True)}
    preset = replace(preset, model=replace(model, **looped), batch_size=max(preset.batch_size, shares))
    settings, batch = train_settings(preset), synthetic_batch(preset)
    topology = f"1x{gpus // GPUS_A_HOST}x{GPUS_A_HOST}"
    return plan_step(preset.model, settings, batch, "h200", topology, parallel=parallel)


def facts_of(name: str, strategy: str, plan: StepPlan) -> dict[str, Any]:
    """Bytes are of one card and step."""
    program = plan.program
    return {
        "preset": name,
        "strategy": strategy,
        "gpus": plan.devices,
        "rows": plan.rows,
        "parameter_bytes": sum(plan.parameters.values()),
        "total_bytes": program.total_bytes,
        "collectives": {
            kind: {"launches": program.collectives[kind], "bytes": program.collective_bytes[kind]} for kind in KINDS
        },
    }


def _row(facts: dict[str, Any]) -> str:
    sent = [
        f"{one['launches']:,}: {size(one['bytes'])}" if one["launches"] else "" for one in facts["collectives"].values()
    ]
    held = [size(facts["parameter_bytes"]), size(facts["total_bytes"])]
    return "| " + " | ".join([facts["preset"], facts["strategy"], f"{facts['gpus']:,}", *held, *sent]) + " |"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.collectives",
        description="What a step sends between GPUs, compiled for H200s that are not there.",
        epilog="Sizes are of the collectives' results on one card; a sum over cards counts once. It needs JAX's CUDA "
        "build (pip install -e '.[cuda]') and JAX_PLATFORMS=cpu, and a minute or two for each line.",
    )
    parser.add_argument("--presets", nargs="+", choices=GPU_PRESETS, default=["vlm_1b_packed", "llava_7b_packed"])
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES))
    parser.add_argument("--gpus", nargs="+", type=int, choices=GPUS, default=list(GPUS))
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write everything that was found to FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
