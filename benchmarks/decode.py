"""How fast prompts are read and answers grow, how near that is to the memory's speed, and how it compares with
transformers' `generate` of the same model.

python -m benchmarks.decode --preset tiny_vlm --peer transformers
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.command_line import Parser, new_file, positive, report
from benchmarks.compare import TOLERANCE, Side, quartiles, take_turns
from benchmarks.presets import PRESETS, Preset
from benchmarks.synthetic import prompt_length
from benchmarks.worker import read_preset
from jaxfusion.errors import UserError
from jaxfusion.generation.decode import check_generates
from jaxfusion.hardware import find_hardware
from jaxfusion.models.vlm import build

PEERS = ("transformers", "torch_compile")
NAMES = [name for name, preset in PRESETS.items() if preset.checkpoint and not preset.packed and not preset.model.lora]

# Tokens of each answer that have to be a peer's in float32. Later ones may follow from rounding, where two are near.
FIRST = 4

EPILOG = f"""\
presets:
{chr(10).join(f"  {name:<16}{PRESETS[name].summary.partition(';')[0]}" for name in NAMES)}

Each side is a process of its own, in turn with the others (A B A B), at the same weights, of the same prompts (an image
and --text-tokens of text a row) and with as many new tokens; the most probable one is taken, and none ends an answer.
What is compiled, is compiled before it is timed. Prompts are read until the first token of all rows is there; steps are
all that comes after, as the host waits for it. bandwidth_share is the least time in which the device could read the
parameters and the filled part of the caches once a step, of the time a step takes; unknown where the device is. On a
GPU a side's process ends with its turn, and begins anew for the next.

peers:
  transformers   transformers' generate with a static cache, torch's SDPA, eager
  torch_compile  the same, its steps compiled by torch as transformers does it

examples:
  python -m benchmarks.decode --preset tiny_vlm --peer transformers,torch_compile --json decode.json
  python -m benchmarks.decode --preset llava_7b --peer transformers --batch-sizes 1,8 --rounds 2
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser().parse_args(argv)
        settings = {name: getattr(args, name) for name in ("preset", "dtype", "text_tokens", "new_tokens")}
        preset = read_preset(settings)
        _check(args, preset)
        result = compare(settings, args.peer, args.batch_sizes, args.rounds, args.repeats)
    except UserError as error:
        print(f"benchmarks.decode: {error}", file=sys.stderr)
        return 2
    prompt = prompt_length(preset, args.text_tokens)
    shape = {"preset": args.preset, "prompt_positions": prompt, "new_tokens": args.new_tokens}
    report("benchmarks.decode", argv, shape | with_rates(result, prompt, args.new_tokens), args.json)
    return 0


def compare(
    settings: dict[str, Any], peers: list[str], batch_sizes: list[int], rounds: int, repeats: int
) -> dict[str, Any]:
    """Each side's facts, and under "batches" what each has generated of each batch size, and its times.

    repeats: generations of a batch in a side's turn. Raises UserError where a side cannot run, or where the
    log-probabilities of a peer's first tokens are not ours, or in float32 its tokens.
    """
    sides = [Side(name, settings, "benchmarks.decode_worker") for name in ("ours", *peers)]
    batches: dict[int, dict[str, Any]] = {rows: {} for rows in batch_sizes}

    def generate(side: Side) -> None:
        for rows, found in batches.items():
            _generate(side, rows, repeats, found)
            _check_same(side.name, found, sides[0].facts["dtype"])

    take_turns(sides, rounds, generate)
    return {side.name: side.facts for side in sides} | {"batches": batches}


def _generate(side: Side, rows: int, repeats: int, found: dict[str, Any]) -> None:
    """Adds to what was found of the batch size. What has failed once is not tried again."""
    before = found.setdefault(side.name, {})
    if "failed" in before:
        return
    new = side.ask([rows, repeats])
    for times in ("prefill_seconds", "decode_seconds"):
        if times in new:
            new[times] = before.get(times, []) + new[times]
    before |= new
    told = new.get("failed") or f"{np.median(new['decode_seconds']):.4g} s for the steps"
    print(f"{side.name}, {rows} rows: {told}", file=sys.stderr, flush=True)


def _check_same(name: str, found: dict[str, Any], dtype: str) -> None:
    """In 16 bits another token may be the most probable one, but is so by little."""
    ours, theirs = found["ours"], found[name]
    if "failed" in ours or "failed" in theirs:
        return
    first = np.array([ours["first_logprobs"], theirs["first_logprobs"]])
    if not (apart := np.abs(first[1] / first[0] - 1).max()) <= TOLERANCE[dtype]:
        raise UserError(f"--peer: log-probabilities of {name} are {apart:.1%} from ours; not the same model")
    if dtype == "float32" and (share := equal(ours["tokens"], theirs["tokens"], FIRST)) < 1:
        raise UserError(
            f"--peer: of the first {FIRST} tokens of an answer {share:.1%} are the same of {name} and of ours; not the "
            "same model"
        )


def equal(ours: list[list[int]], theirs: list[list[int]], first: int | None = None) -> float:
    """The share of tokens that are equal; first: of each row's first ones."""
    return float(np.mean(np.array(ours)[:, :first] == np.array(theirs)[:, :first]))


def with_rates(result: dict[str, Any], prompt: int, new_tokens: int) -> dict[str, Any]:
    """What follows from the medians: tokens a second, the share of the bandwidth, peers' times to ours.

    prompt: positions of a prompt, of which its image takes a part.
    """
    facts = dict(result["ours"])
    shown: dict[str, Any] = {"environment": facts.pop("environment"), "ours": facts}
    shown |= {name: side for name, side in result.items() if name not in ("ours", "batches")}
    card = find_hardware(shown["environment"]["device"])
    for rows, sides in result["batches"].items():
        batch = shown[f"batch_{rows}"] = {}
        ours = sides["ours"]
        for name, side in sides.items():
            if "failed" in side:
                batch[name] = {"failed": side["failed"]}
                continue
            prefill, decode = (quartiles(side[f"{part}_seconds"]) for part in ("prefill", "decode"))
            step = decode["median"] / (new_tokens - 1)
            bound = ours["step_bytes"] / card.memory_bandwidth if card and "step_bytes" in ours else None
            batch[name] = {
                "prefill_tokens_per_second": rows * prompt / prefill["median"],
                "decode_tokens_per_second": rows / step,
                "bandwidth_share": bound and bound / step,
                "prefill_seconds": prefill,
                "decode_seconds": decode,
            }
            if name == "ours":
                batch[name]["step_bytes"] = ours["step_bytes"]
            elif "failed" not in ours:
                for part, of_both in (("prefill", prefill), ("decode", decode)):
                    batch[f"{name}_to_ours_{part}"] = of_both["median"] / batch["ours"][f"{part}_seconds"]["median"]
                batch[f"{name}_equal_first_tokens"] = equal(ours["tokens"], side["tokens"], FIRST)
                batch[f"{name}_equal_tokens"] = equal(ours["tokens"], side["tokens"])
    return shown


# --- the command line -------------------------------------------------------------------------------------------------


def _check(args: argparse.Namespace, preset: Preset) -> None:
    """Raises UserError for what cannot go together or is not there."""
    for option, least in (("text_tokens", 2), ("new_tokens", 2)):
        if getattr(args, option) < least:
            raise UserError(f"--{option.replace('_', '-')}: {getattr(args, option)} is too few; use {least} or more")
    check_generates(build(preset.model), prompt_length(preset, args.text_tokens), args.new_tokens)
    for peer in args.peer:
        for package in ("torch", "transformers"):
            if find_spec(package) is None:
                raise UserError(f"--peer: {peer} needs {package}; pip install {package}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.decode",
        description="Time a preset's generation, alone or in turn with transformers' of the same model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    number = {"type": positive, "metavar": "N"}
    parser.add_argument("--preset", choices=NAMES, required=True, help="a model; listed below")
    parser.add_argument("--peer", type=_peers, default=[], metavar="A,B", help="who else runs it; listed below")
    parser.add_argument(
        "--batch-sizes", type=_sizes, default=[1, 8, 64], metavar="A,B", help="rows that grow at once (default: 1,8,64)"
    )
    parser.add_argument("--text-tokens", default=64, help="of a prompt beside its image (default: 64)", **number)
    parser.add_argument("--new-tokens", default=128, help="of an answer (default: 128)", **number)
    parser.add_argument("--rounds", default=3, help="turns of each (default: 3)", **number)
    parser.add_argument("--repeats", default=3, help="generations of a batch in a turn (default: 3)", **number)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of parameters, computation and caches")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write everything that was found to FILE")
    return parser


def _peers(text: str) -> list[str]:
    for name in (names := text.split(",")):
        if name not in PEERS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(PEERS)}")
    return list(dict.fromkeys(names))


def _sizes(text: str) -> list[int]:
    return sorted({positive(part) for part in text.split(",")})


if __name__ == "__main__":
    sys.exit(main())
