"""How fast a sharded checkpoint becomes a model, and in how much memory, beside transformers' from_pretrained.

python -m benchmarks.load_checkpoint
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.command_line import Parser, environment, new_file, positive, report
from jaxfusion.errors import UserError
from jaxfusion.models.vlm import build, init
from jaxfusion.pretrained.families import FAMILIES
from jaxfusion.pretrained.table import flatten, tensors
from jaxfusion.pretrained.write import write_safetensors

ROOT = Path(__file__).parents[1]
DTYPES = ("bfloat16", "float32")
NUM_SHARDS = 4

EPILOG = """\
The two take turns, each in processes of its own, with the files in the page cache. "process" is what a user waits for:
from the start of python, imports and all, until a byte of every page of the weights has been read. The other times are
of loading alone, in a process that has loaded a tiny checkpoint before: "ready" until every page has been read,
"return" until the call returns. Where no dtype changes, from_pretrained only maps the files and returns before it has
read any.

examples:
  python -m benchmarks.load_checkpoint --json load.json
  python -m benchmarks.load_checkpoint --stored bfloat16 --dtype bfloat16
  python -m benchmarks.load_checkpoint --size 20 --rounds 1
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser().parse_args(argv)
        if args.directory is not None and not args.directory.is_dir():
            raise UserError(f"--directory: {args.directory} is not a directory; make it first")
        result = compare(args.size * 1_000_000, args.stored, args.dtype, args.rounds, args.directory, args.peer)
    except UserError as error:
        print(f"benchmarks.load_checkpoint: {error}", file=sys.stderr)
        return 2
    report("benchmarks.load_checkpoint", argv, {"environment": _environment(), **result}, args.json)
    return 0


def compare(
    num_bytes: int, stored: str, dtype: str, rounds: int, directory: Path | None = None, peer: bool = True
) -> dict[str, Any]:
    """Writes a random Llama of about num_bytes and loads it by both, turn by turn, `rounds` times each.

    stored: the files' dtype. dtype: the one to load it in. directory: where there is room for the files, for a while.
    peer: whether there is anything to compare with; without transformers and torch there is nothing.
    """
    room = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=directory))
    try:
        write_checkpoint(room / "tiny", 0, stored)
        written = write_checkpoint(room / "checkpoint", num_bytes, stored)
        for file in (room / "checkpoint").iterdir():  # into the page cache
            shutil.copyfile(file, os.devnull)
        loaders = ["ours"]
        if peer and all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
            loaders.append("transformers")
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in loaders}
        for _ in range(rounds):
            for name in loaders:
                runs[name].append(_measure(name, room, dtype))
    finally:
        shutil.rmtree(room)
    return {"checkpoint": written, "dtype": dtype, "rounds": rounds} | summary(runs, written["bytes"])


def summary(runs: dict[str, list[dict[str, float]]], num_bytes: int) -> dict[str, Any]:
    """The medians of each loader's runs, and transformers' to ours."""
    result: dict[str, Any] = {}
    for name, measured in runs.items():
        result[name] = {key: float(np.median([run[key] for run in measured])) for key in measured[0]}
        result[name]["ready_gigabytes_per_second"] = num_bytes / 1e9 / result[name]["ready_seconds"]
    if "transformers" in result:
        for key in ("process_seconds", "ready_seconds", "return_seconds", "cpu_seconds", "peak_bytes"):
            result[f"transformers_to_ours_{key}"] = result["transformers"][key] / result["ours"][key]
    return result


def write_checkpoint(directory: Path, num_bytes: int, dtype: str) -> dict[str, Any]:
    """A Llama with random weights in NUM_SHARDS files, as save_pretrained would have written it."""
    config = llama_config(num_bytes // jax.numpy.dtype(dtype).itemsize)
    family = FAMILIES["llama"]
    ours = family.read_config(config)
    model = build(ours)
    leaves = flatten(jax.eval_shape(lambda rng: init(model, rng), jax.random.key(0)))
    shapes = {
        t.name: jax.ShapeDtypeStruct(t.shape, jax.numpy.dtype(dtype)) for t in tensors(family.table(ours), leaves)
    }
    rng = np.random.default_rng(0)

    def read(name: str) -> np.ndarray:
        return (0.02 * rng.standard_normal(shapes[name].shape, np.float32)).astype(shapes[name].dtype)

    total = sum(leaf.size * leaf.dtype.itemsize for leaf in shapes.values())
    write_safetensors(directory, shapes, read, max_shard_bytes=-(-total // NUM_SHARDS))
    (directory / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
    return {
        "bytes": total,
        "files": len(list(directory.glob("*.safetensors"))),
        "tensors": len(shapes),
        "stored": dtype,
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
    }


def llama_config(parameters: int) -> dict[str, Any]:
    """config.json of a Llama of about so many parameters, an embedding and a head among them."""
    width = max(64, int((parameters / 150) ** 0.5) // 64 * 64)
    heads = width // 64
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 16 * width,
        "hidden_size": width,
        "intermediate_size": 11 * width // 4,
        "num_hidden_layers": max(1, round((parameters / width**2 - 32) / 11.25)),
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2 if heads % 2 == 0 else heads,
        "tie_word_embeddings": False,
    }


# --- in processes of their own ---------------------------------------------------------------------------------------


def _measure(loader: str, room: Path, dtype: str) -> dict[str, float]:
    tiny, checkpoint = str(room / "tiny"), str(room / "checkpoint")
    return _in_a_process(f"measure_start({loader!r}, {checkpoint!r}, {dtype!r}, {time.monotonic()})") | _in_a_process(
        f"measure({loader!r}, {tiny!r}, {checkpoint!r}, {dtype!r})"
    )


def _in_a_process(call: str) -> dict[str, float]:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}  # in the memory where the peer's is too
    code = f"from benchmarks.loaders import measure, measure_start; {call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{call} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


# --- the command line -------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.load_checkpoint",
        description="Time loading a generated checkpoint, by JaxFusion and by transformers, on the CPU.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--size", type=positive, default=1000, metavar="MB", help="of the files (default: 1000)")
    parser.add_argument("--stored", choices=DTYPES, default="bfloat16", help="the files' dtype (default: bfloat16)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="to load it in (default: float32)")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="of each loader (default: 5)")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="ours alone")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="for the files (default: the system's temporary)")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write everything that was found to FILE")
    return parser


def _environment() -> dict[str, Any]:
    found = environment()
    for name in ("torch", "transformers", "safetensors"):
        if importlib.util.find_spec(name):
            found["versions"][name] = metadata.version(name)
    return found


if __name__ == "__main__":
    sys.exit(main())
