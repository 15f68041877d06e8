"""How fast one training step is, how much memory it takes, how much of its arithmetic the model needed, and how that
compares with PyTorch's step of the same model.

python -m benchmarks.train_step --preset tiny_vlm --peer transformers
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import jax

from benchmarks.command_line import Parser, new_file, positive, show
from benchmarks.compare import compare, quartiles, set_memory
from benchmarks.ours import Ours, mfu
from benchmarks.plan import facts_of, plan_preset
from benchmarks.presets import PRESETS, Preset
from benchmarks.table import table
from benchmarks.turns import compiling, measure_to_the_end
from benchmarks.worker import LAYERS, read_preset
from jaxfusion.config.model import AttentionKernel
from jaxfusion.errors import UserError
from jaxfusion.files import write_json
from jaxfusion.hardware import HARDWARE
from jaxfusion.models.float8 import MatMul
from jaxfusion.models.remat import Remat
from jaxfusion.parallel import use_cpu_cores

PEERS = ("transformers", "torch_compile", "torch")

EPILOG = f"""\
presets:
{chr(10).join(f"  {name:<22}{preset.summary}" for name, preset in PRESETS.items())}

peers, each in a process of its own, in turn with ours (A B A B), at the same weights and on the same samples, of which
those of a packed preset stand padded in rows of their own; that the first losses agree is checked before any is timed:
  transformers   transformers' model of the same config.json, torch's SDPA and AdamW, eager
  torch_compile  the same through torch.compile
  torch          of the bilstm presets, in plain PyTorch with torch.nn.LSTM

examples:
  python -m benchmarks.train_step --preset tiny_vlm --peer transformers,torch_compile --json tiny_vlm.json
  python -m benchmarks.train_step --preset tiny_bilstm --peer torch --append benchmarks/RESULTS.md
  python -m benchmarks.train_step --preset nanovlm_222m --batch-size 128 --profile trace
  python -m benchmarks.train_step --preset vlm_1b --plan h200 --devices 8   # needs no GPU
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser().parse_args(argv)
        settings = vars(args) | {"json": None, "append": None, "profile": None, "turn": None}
        preset = read_preset(settings)
        _check(args, preset)
        if args.plan:
            jax.config.update("jax_platforms", "cpu")  # or JAX would look for the GPU that is not there
            result = {"plan": facts_of(preset, plan_preset(preset, args.plan, args.devices))}
        elif args.peer:
            result = with_rates(compare(settings, args.peer, args.rounds, args.steps, args.turn))
        else:
            set_memory(os.environ, args.turn)
            use_cpu_cores(preset.batch_size)
            with compiling(args.turn):
                ours = Ours(preset, args.strategy, args.count_flops)
            measure_to_the_end(args.turn)
            ours.begin()
            seconds = ours.seconds(args.steps, args.profile)
            result = with_rates({"ours": ours.facts() | {"step_seconds": quartiles(seconds)}})
    except UserError as error:
        return _refuse(error)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _refuse("--batch-size: the device's memory is too small for this step; use fewer rows")
    of_turns = {index for index, part in enumerate(argv) if part == "--turn" for index in (index, index + 1)}
    told = [part for index, part in enumerate(argv) if index not in of_turns]
    result = {"command": shlex.join(["python", "-m", "benchmarks.train_step", *told]), "preset": args.preset} | result
    show(result)
    if args.json is not None:
        write_json(args.json, result)
    if args.append is not None:
        with args.append.open("a") as stream:
            stream.write("\n" + table([result]))
    return 0


def with_rates(sides: dict[str, Any]) -> dict[str, Any]:
    """The environment, and each side's facts with what follows from its median: rates, and their time to ours.

    The lower quartiles' ratio stands beside: where others use the machine too, a side that waits for all its threads
    many times a step loses more to them, which says nothing of its arithmetic.
    """
    facts = sides["ours"]
    result = {"environment": facts.pop("environment")}
    for name, side in sides.items():
        median = side["step_seconds"]["median"]
        side["samples_per_second"] = facts["batch"]["samples"] / median
        side["real_tokens_per_second"] = facts["batch"]["real_tokens"] / median
        side["mfu"] = mfu(facts["flops"]["model_needed"] / median, facts | result)
        result[name] = side
    for name in list(sides)[1:]:
        for suffix, key in (("", "median"), ("_lower_quartile", "lower_quartile")):
            result[f"{name}_to_ours{suffix}"] = sides[name]["step_seconds"][key] / facts["step_seconds"][key]
    return result


def _refuse(reason: Any) -> int:
    print(f"benchmarks.train_step: {reason}", file=sys.stderr)
    return 2


# --- the command line -------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.train_step",
        description="Time a preset's training step on synthetic data, alone or in turn with peers of the same model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--preset", choices=PRESETS, required=True, help="a model and its batches; listed below")
    parser.add_argument("--peer", type=_peers, default=[], metavar="A,B", help="who else runs it; listed below")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="turns of each with peers (default: 3)")
    parser.add_argument("--steps", type=positive, default=20, metavar="N", help="steps to time in a turn (default: 20)")
    parser.add_argument("--batch-size", type=positive, metavar="B", help="rows a step, over all devices")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the computation")
    parser.add_argument("--attention", choices=get_args(AttentionKernel), help="kernel of ours (default: auto)")
    parser.add_argument("--strategy", choices=("mesh", "pmap"), default="mesh", help="of ours (default: mesh)")
    parser.add_argument("--layers", choices=LAYERS, help="of ours (default: laid out on a GPU, elsewhere in a loop)")
    parser.add_argument(
        "--remat",
        choices=get_args(Remat),
        help="what of a layer ours computes again (default: the preset's); where it is not none, peers do all of it",
    )
    parser.add_argument("--matmul", choices=get_args(MatMul), help="how ours multiplies (default: as it computes)")
    parser.add_argument("--count-flops", action="store_true", help="count XLA's operations too, which takes a while")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write everything that was found to FILE")
    parser.add_argument("--append", type=Path, metavar="FILE", help="append a table in Markdown to FILE")
    parser.add_argument(
        "--turn", type=new_file, metavar="FILE", help="compile beside others that name FILE, but measure alone"
    )
    parser.add_argument("--profile", type=Path, metavar="DIR", help="write a trace of the timed steps for XProf to DIR")
    parser.add_argument("--plan", choices=HARDWARE, help="compile for this GPU, run nothing; needs no GPU")
    parser.add_argument("--devices", type=positive, default=1, metavar="N", help="GPUs to plan for (default: 1)")
    return parser


def _peers(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in PEERS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(PEERS)}")
    return list(dict.fromkeys(names))


def _check(args: argparse.Namespace, preset: Preset) -> None:
    """Raises UserError for what cannot go together or is not there."""
    for name in ("json", "append"):
        path = getattr(args, name)
        if path is not None and not path.parent.is_dir():
            raise UserError(f"--{name}: {path.parent} is not a directory; make it first")
    for option in ("plan", "profile"):
        if args.peer and getattr(args, option):
            raise UserError(f"--{option}: it is of our step alone; leave out --peer")
    if args.append is not None and args.plan:
        raise UserError("--append: a plan has no times to put in a table; use --json")
    for peer in args.peer:
        fitting = ["torch"] if preset.checkpoint is None else ["transformers", "torch_compile"]
        if peer not in fitting:
            raise UserError(f"--peer: {peer} has no model for {args.preset}; choose from {', '.join(fitting)}")
        for package in ("torch", *(["transformers"] if peer != "torch" else [])):
            if find_spec(package) is None:
                raise UserError(f"--peer: {peer} needs {package}; pip install {package}")


if __name__ == "__main__":
    sys.exit(main())
