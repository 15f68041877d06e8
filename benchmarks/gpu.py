"""Every preset with its peers in one call, on the machine at hand, and one JSON file and table of it all.

python -m benchmarks.gpu --directory results
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.command_line import Parser, positive
from benchmarks.compare import in_our_path
from benchmarks.presets import CPU_PRESETS, GPU_PRESETS, PRESETS
from benchmarks.table import table
from jaxfusion.errors import UserError

EPILOG = """\
What was measured is written after each preset, so that a call which is cut short leaves it, and the same call goes on
with the presets that are missing. A preset that does not run, for want of memory for example, is a row that says why.
Compiling takes most of the time: --at-once lets several presets compile together, and each measures alone. XLA tries
kernels on the card as it compiles, and beside others it may keep slower ones; a step that nearly fills the card had
best be alone.
It needs what `import jaxfusion` needs, and for peers torch, transformers and, for adapters, peft.

examples:
  python -m benchmarks.gpu --directory results
  python -m benchmarks.gpu --directory results --presets nanovlm_222m,vlm_1b,vlm_1b_packed --rounds 5 --at-once 3
  python -m benchmarks.gpu --directory results --presets tiny_vlm,tiny_bilstm     # on a CPU
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0 where every preset ran, 1 where one did not, or 2 for what the user can mend."""
    try:
        args = _parser().parse_args(list(sys.argv[1:] if argv is None else argv))
        if not args.directory.is_dir():
            raise UserError(f"--directory: {args.directory} is not a directory; make it first")
    except UserError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    failed: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(args.at_once) as threads:
        turn = Path(directory) / "turn" if args.at_once > 1 else None
        try:
            for done in as_completed([threads.submit(_result, name, args, turn) for name in args.presets]):
                failed += [result] if "error" in (result := done.result()) else []
                _write(args.directory, failed)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return int(bool(failed))


def _write(directory: Path, failed: list[dict[str, Any]]) -> None:
    """What is known by now."""
    known = [json.loads(path.read_text()) for name in PRESETS if (path := directory / f"{name}.json").is_file()]
    (directory / "all.json").write_text(json.dumps(known + failed, indent=2) + "\n")
    (directory / "RESULTS.md").write_text(table(known + failed))


def _result(name: str, args: argparse.Namespace, turn: Path | None) -> dict[str, Any]:
    file = args.directory / f"{name}.json"
    if file.is_file():
        print(f"{name}: {file} is there already", flush=True)
        return json.loads(file.read_text())
    print(f"{name}: {PRESETS[name].summary}", flush=True)
    result = _measure(name, args, file, turn)
    print(f"{name}: {result.get('error', 'measured')}", flush=True)
    return result


def _measure(name: str, args: argparse.Namespace, file: Path, turn: Path | None) -> dict[str, Any]:
    in_turn = [] if turn is None else ["--turn", str(turn)]
    options = ["--preset", name, "--rounds", str(args.rounds), "--steps", str(args.steps)]
    peers = _peers(name) if args.peers else []
    while True:
        command = [*options, *(["--peer", ",".join(peers)] if peers else [])]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.train_step", *command, "--json", str(file), *in_turn],
            capture_output=True,
            text=True,
            env=in_our_path(),
        )
        if done.returncode == 0:
            return json.loads(file.read_text())
        if done.returncode in (-signal.SIGINT, 128 + signal.SIGINT):
            raise KeyboardInterrupt
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"{name}: {reason}", flush=True)
        ours = done.returncode == 2 and "--peer" not in reason and not any(peer in reason for peer in peers)
        if ours or not peers:
            return {"command": f"python -m benchmarks.train_step {' '.join(command)}", "preset": name, "error": reason}
        peers.pop()  # compiled first, then the eager one: what fails in a peer need not cost our own figures


def _peers(name: str) -> list[str]:
    if PRESETS[name].checkpoint is None:
        return ["torch"] if find_spec("torch") else []
    return ["transformers", "torch_compile"] if find_spec("torch") and find_spec("transformers") else []


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.gpu",
        description="Measure every GPU preset with its peers, one after the other.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--directory", type=Path, required=True, metavar="DIR", help="for a file a preset and the table"
    )
    parser.add_argument(
        "--presets", type=_presets, default=GPU_PRESETS, metavar="A,B", help="default: all but the CPU's tiny ones"
    )
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="turns of each (default: 3)")
    parser.add_argument("--steps", type=positive, default=20, metavar="N", help="steps a turn (default: 20)")
    parser.add_argument(
        "--at-once", type=positive, default=1, metavar="N", help="presets that compile together (default: 1)"
    )
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="our steps alone")
    return parser


def _presets(text: str) -> list[str]:
    for name in (names := text.split(",")):
        if name not in PRESETS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join((*GPU_PRESETS, *CPU_PRESETS))}")
    return names


if __name__ == "__main__":
    sys.exit(main())
