"""The command line: one config, one workdir, and what to do with them."""

import argparse
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from jaxfusion.errors import UserError
from jaxfusion.modes import MODES

EPILOG = """\
Any value of the config can be set here: --config.train.num_steps=2000 --config.model.vision=vit-tiny
All of them, with defaults and what they mean: jaxfusion/config/run.py and jaxfusion/config/model.py; docs/config.md is
the way into them.

Decoding takes less memory, and answers change a little, with
  --config.generate.cache_dtype=int8    keys and values in 8 bits (or bfloat16)
  --config.generate.weights=int8        the decoder's linear layers in 8 bits
--mode serve answers programs by OpenAI's interface, and people by a chat page at the server's address.

examples:
  jaxfusion --config configs/quickstart.py
  jaxfusion --mode evaluate --workdir runs/quickstart
  jaxfusion --mode generate --workdir runs/quickstart --image scene.png
  jaxfusion --mode generate --workdir runs/moving_digits --video clip.mp4
  jaxfusion --mode generate --workdir RUN --example a.png=ace --example b.png=seven --image q.png
  jaxfusion --mode generate --workdir runs/quickstart --input photos/ --output captions.jsonl
  jaxfusion --mode export --workdir runs/joined --output joined-for-transformers
  jaxfusion --mode generate --workdir runs/digits_vqa --image scene.png --prompt "What is the sum of the digits?"
  jaxfusion --mode prepare --config configs/join.py --config.prepare.store=features --output prepared/join
  jaxfusion --config configs/join.py --config.data.prepared=prepared/join
  jaxfusion --mode serve --workdir runs/quickstart --config.serve.port=8000
  jaxfusion --mode chat --workdir runs/quickstart
  jaxfusion --mode plan --config configs/join.py --config.plan.hardware=h200 --config.plan.topology=1x1x8
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can mend."""
    debug, resumes = "--debug" in (sys.argv if argv is None else argv), False
    try:
        args, rest = _parser().parse_known_args(argv)
        mode, overrides = args.mode, _overrides(rest)
        _check_used(args, overrides)
        resumes = mode in ("train", "prepare") or args.input is not None
        _quieten(planning=mode == "plan")
        MODES[mode](args, overrides)
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"jaxfusion: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from what is saved" if resumes else ""
        print(f"jaxfusion: stopped{goes_on}", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


# What uses an option that is not of all modes; --config stands for its values, --config.NAME, too.
USED_BY = {
    "config": ("train", "evaluate", "generate", "prepare", "plan", "serve", "chat"),
    "workdir": ("train", "evaluate", "generate", "export", "inspect", "serve", "chat"),
    "checkpoint": ("serve", "chat"),
    "image": ("generate",),
    "video": ("generate",),
    "prompt": ("generate",),
    "example": ("generate",),
    "input": ("generate",),
    "shard": ("generate",),
    "output": ("generate", "export", "prepare", "plan"),
    "adapters": ("export",),
    "profile": ("train",),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="jaxfusion",
        description="Train, evaluate and use language models that see.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="the experiment: a Python file with get_config()")
    parser.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="where the run lives (default: runs/ and the config's name); the same command again continues the run",
    )
    parser.add_argument("--mode", choices=MODES, default="train", help="default: train")
    parser.add_argument(
        "--checkpoint",
        metavar="NAME",
        help="serve, chat: a checkpoint, as jaxfusion.load takes it (a hub id or a directory), in place of a run",
    )
    parser.add_argument(
        "--image", action="append", metavar="FILE", help="generate: an image to look at; may be given several times"
    )
    parser.add_argument(
        "--video",
        metavar="FILE",
        help="generate: a video to look at, in frames taken as config.data.frames and so on say",
    )
    parser.add_argument(
        "--example",
        action="append",
        metavar="FILE=TEXT",
        help="generate: an image and what would be right to answer, shown first; may be given several times",
    )
    parser.add_argument("--prompt", default="", help="generate: what to ask; nothing where the image is the prompt")
    parser.add_argument(
        "--input",
        type=Path,
        metavar="PATH",
        help="generate: a directory of pictures, a .jsonl, a .parquet or a .tar (WebDataset), each record of which is "
        "answered once; the same command again goes on",
    )
    parser.add_argument(
        "--shard", metavar="I/N", help="generate: this process's share of --input, I from 0 to N - 1, as in 0/4"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="export: a new directory, for transformers and servers to load; prepare: a directory for tokenised "
        "records with resized pictures or the frozen tower's features; plan: a JSON file for all numbers; "
        "generate: a .jsonl file for the answers to --input",
    )
    parser.add_argument(
        "--adapters", action="store_true", help="export: the LoRA adapters alone, as PEFT's files, not merged"
    )
    parser.add_argument(
        "--profile", action="store_true", help="train: leave a trace of a few steps in the workdir, for XProf to show"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _overrides(rest: Sequence[str]) -> dict[str, str]:
    """--config.a.b=value, or --config.a.b value, to {"a.b": "value"}."""
    overrides, arguments = {}, iter(rest)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not name.startswith("--config."):
            raise UserError(f"{argument}: no such option; see --help")
        if not equals:
            value = next(arguments, None)
            if value is None:
                raise UserError(f"{name}: a value is missing; write {name}=VALUE")
        overrides[name.removeprefix("--config.")] = value
    return overrides


def _check_used(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """Raises UserError for an option that the mode would not look at."""
    given = {f"--{name}": name for name in USED_BY if getattr(args, name) not in (None, "", False)}
    for option, name in (given | {f"--config.{key}": "config" for key in overrides}).items():
        if args.mode not in USED_BY[name]:
            raise UserError(
                f"{option}: --mode {args.mode} does not use it; leave it out, or choose --mode "
                f"{' or '.join(USED_BY[name])}"
            )


def _quieten(planning: bool) -> None:
    """The progress display is what people look at; libraries' notices go unless they are errors.

    Of programs that do not fit XLA tells at length, as warnings and errors, and a plan in a word.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # JAX sets that itself; any other is somebody's wish
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3" if planning else "2"
    logging.getLogger("absl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="orbax")


if __name__ == "__main__":
    sys.exit(main())
