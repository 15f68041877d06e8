"""The command line: one config, one workdir, and what to do with them."""

import argparse
import json
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from jaxfusion.errors import UserError

if TYPE_CHECKING:
    from jaxfusion.config import Config
    from jaxfusion.data.messages import Image

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
  jaxfusion --mode generate --workdir RUN --example a.png=dax --example b.png=blicket --image q.png
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
        if mode == "train":
            _train(args, overrides)
        elif mode == "evaluate":
            _evaluate(args, overrides)
        elif mode == "export":
            _export(args)
        elif mode == "prepare":
            _prepare(args, overrides)
        elif mode == "serve":
            _serve(args, overrides)
        elif mode == "chat":
            _chat(args, overrides)
        elif mode == "plan":
            _plan(args, overrides)
        elif mode == "inspect":
            _inspect(args)
        else:
            _generate(args, overrides)
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


MODES = ("train", "evaluate", "generate", "export", "prepare", "plan", "inspect", "serve", "chat")

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


def _train(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    from jaxfusion.compilation_cache import use_compilation_cache
    from jaxfusion.config import read_config
    from jaxfusion.experiment import train_run
    from jaxfusion.parallel import use_cpu_cores
    from jaxfusion.pretrained.join import expand

    if args.config is None:
        raise UserError("--config: none was given; name an experiment, for example --config configs/quickstart.py")
    config = read_config(args.config, overrides, expand)
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")  # as plans reckon; JAX's own default is 0.75
    use_cpu_cores(config.train.batch_size // config.train.accumulate)
    use_compilation_cache()
    workdir = args.workdir or Path("runs") / args.config.stem
    _show(train_run(config, workdir, profile=args.profile), workdir)


def _evaluate(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    from jaxfusion.compilation_cache import use_compilation_cache
    from jaxfusion.experiment import evaluate_run
    from jaxfusion.parallel import use_cpu_cores

    config, workdir = _trained(args, overrides)
    use_cpu_cores(config.evaluate.batch_size)
    use_compilation_cache()
    _show(evaluate_run(config, workdir), workdir)


def _generate(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    if args.input is not None:
        return _generate_all(args, overrides)
    for name in ("output", "shard"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name}: it belongs to --input, and none was given; leave it out")
    from jaxfusion.compilation_cache import use_compilation_cache
    from jaxfusion.data.request import as_asked
    from jaxfusion.data.tasks import prepare_text
    from jaxfusion.evaluation.evaluate import sampling_of
    from jaxfusion.generation.classify import classify
    from jaxfusion.generation.decode import decoding_params
    from jaxfusion.generation.generate import generate
    from jaxfusion.text.postprocess import postprocess
    from jaxfusion.workdir import load_run, read_labels

    config, workdir = _trained(args, overrides)
    use_compilation_cache()
    model, params = load_run(workdir)
    prompts = [as_asked(prepare_text(args.prompt, config.data.languages[0], config.data), config.data)]
    seen = [*(args.image or ()), *(_frames(args.video, config) if args.video else ())]
    images = [seen] if seen else None
    examples = [_example(text) for text in args.example or ()]
    if config.model.decoder.kind == "pooled-classifier":
        if examples:
            raise UserError("--example: a pooled-classifier reads none; leave it out")
        (text,) = classify(model, params, prompts, images, labels=read_labels(workdir))
    else:
        wanted = config.generate
        params = decoding_params(params, wanted.weights)
        (text,) = generate(
            model,
            params,
            prompts,
            images,
            max_new_tokens=wanted.max_new_tokens,
            sampling=sampling_of(wanted),
            seed=wanted.seed,
            stop=wanted.stop,
            cache_dtype=wanted.cache_dtype,
            examples=examples,
        )
    print(postprocess(text) if config.evaluate.postprocess else text)


def _example(text: str) -> tuple[str, str]:
    path, equals, answer = text.partition("=")
    if not (path and equals and answer):
        raise UserError(f"--example: {text} is no image with its answer; write FILE=TEXT, as in a.png=dax")
    return path, answer


def _frames(path: str, config: "Config") -> "list[Image]":
    """Of a video, as the run's data are read."""
    from jaxfusion.data.frames import frames_of

    return frames_of(path, None, config.data, config.model, lambda frame: frame, "--video")


def _generate_all(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    from jaxfusion.bulk.job import bulk_run
    from jaxfusion.compilation_cache import use_compilation_cache

    if args.output is None:
        raise UserError("--output: none was given; name a .jsonl file for the answers to --input")
    for name in ("image", "video", "example"):
        if getattr(args, name):
            raise UserError(f"--{name}: the pictures are those of --input; leave it out")
    config, workdir = _trained(args, overrides)
    use_compilation_cache()
    shard = None if args.shard is None else _shard(args.shard)
    bulk_run(config, workdir, args.input, args.output, prompt=args.prompt, shard=shard)


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--shard: {text} is no share; write I/N with I from 0 to N - 1, as in 0/4")
    return int(index), int(count)


def _export(args: argparse.Namespace) -> None:
    import jax

    import jaxfusion
    from jaxfusion.training.trainable import check_only_adapters_train
    from jaxfusion.workdir import load_run, read_workdir_config

    if args.workdir is None or args.output is None:
        missing = "--workdir" if args.workdir is None else "--output"
        raise UserError(f"{missing}: none was given; export takes --workdir of a run and --output, a new directory")
    config = read_workdir_config(args.workdir)
    if args.adapters and config.model.lora:
        shapes = jax.eval_shape(lambda rng: jaxfusion.init(jaxfusion.build(config), rng), jax.random.key(0))
        check_only_adapters_train(shapes, config.train.trainable)
    model, params = load_run(args.workdir)
    if args.adapters:
        if model.origin and "model" in model.origin.runs:
            raise UserError(
                f"--adapters: they belong to the weights of the run {config.pretrained.model}, which is no checkpoint; "
                "export them merged"
            )
        jaxfusion.save_adapters(model, params, args.output, base=config.pretrained.model)
    else:
        jaxfusion.save_pretrained(model, params, args.output)
    print(args.output)


def _prepare(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    from jaxfusion.compilation_cache import use_compilation_cache
    from jaxfusion.config import read_config
    from jaxfusion.parallel import use_cpu_cores
    from jaxfusion.prepare import prepare_run
    from jaxfusion.pretrained.join import expand

    if args.config is None or args.output is None:
        missing = "--config" if args.config is None else "--output"
        raise UserError(f"{missing}: none was given; prepare takes --config of an experiment and --output, a directory")
    config = read_config(args.config, overrides, expand)
    use_cpu_cores(config.train.batch_size)
    use_compilation_cache()
    prepare_run(config, args.output)


def _plan(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    from functools import partial

    import jax
    from rich.console import Console

    from jaxfusion.config import read_config
    from jaxfusion.planning.largest import largest_batch
    from jaxfusion.planning.run import plan_run
    from jaxfusion.planning.tell import tell_plan
    from jaxfusion.pretrained.join import expand

    if args.config is None:
        raise UserError("--config: none was given; name an experiment, for example --config configs/quickstart.py")
    if args.output is not None and (args.output.is_dir() or not os.access(args.output.parent, os.W_OK)):
        raise UserError(f"--output: cannot write {args.output}; name a file in a directory that is there")
    jax.config.update("jax_platforms", "cpu")  # or JAX would look for the GPUs that are not there
    config, console = read_config(args.config, overrides, expand), Console()
    wanted, unit = config.plan, config.train.accumulate
    text = f"compiling a step of {config.train.batch_size} rows for {wanted.hardware}, {wanted.topology}"
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
    first = plan_run(config)
    search = largest_batch(first, first.devices * unit, partial(plan_run, config)) if wanted.largest_batch else None
    tell_plan(first, search, console, args.output)


def _inspect(args: argparse.Namespace) -> None:
    from rich.console import Console

    from jaxfusion.inspection import inspect_run

    if args.workdir is None:
        raise UserError("--workdir: none was given; name the directory of a run, for example runs/quickstart")
    inspect_run(args.workdir, Console())


def _serve(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    from jaxfusion.serving import check_extra

    check_extra()
    from jaxfusion.serving.run import bind, serve

    config, name, load = _asked(args, overrides)
    with bind(config.serve.host, config.serve.port) as bound:
        model, params, prepare = load()
        serve(bound, model, params, config, name, prepare)


def _chat(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    from jaxfusion.chat import chat

    config, _, load = _asked(args, overrides)
    model, params, prepare = load()
    chat(model, params, config, prepare=prepare)


def _asked(args: argparse.Namespace, overrides: dict[str, str]):
    """The settings of a run or a checkpoint that people ask, its name, and what loads it: the model, its parameters for
    decoding, of which no others are kept, and what is to be done with what people write."""
    import jax

    import jaxfusion
    from jaxfusion.compilation_cache import use_compilation_cache
    from jaxfusion.config import Config, override
    from jaxfusion.data.tasks import prepare_text
    from jaxfusion.generation.decode import decoding_params
    from jaxfusion.workdir import load_run

    def load_trained():
        use_compilation_cache()
        data, language = config.data, config.data.languages[0]
        model, params = load_run(workdir)
        return model, decoding_params(params, config.generate.weights), lambda text: prepare_text(text, language, data)

    def load_checkpoint():
        use_compilation_cache()
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        model, params = jaxfusion.load(args.checkpoint, dtype=dtype)
        return model, decoding_params(params, config.generate.weights), lambda text: text

    if args.checkpoint is None:
        config, workdir = _trained(args, overrides)
        return config, workdir.name, load_trained
    if args.config is None and args.workdir is None:
        config = override(Config(), overrides)
        return config, Path(args.checkpoint).name, load_checkpoint
    raise UserError("--checkpoint: it stands in place of --config and --workdir; give one or the other")


def _trained(args: argparse.Namespace, overrides: dict[str, str]):
    """The config of a trained workdir, or the one given if it is of the same run, with values put over it."""
    from jaxfusion.config import override, read_config
    from jaxfusion.pretrained.join import expand
    from jaxfusion.workdir import check_run, read_workdir_config, resolve, with_images_per_row

    if args.workdir is None and args.config is None:
        raise UserError("--workdir: none was given; name the directory of a trained run, for example runs/quickstart")
    workdir = args.workdir or Path("runs") / args.config.stem
    theirs = read_workdir_config(workdir)
    config = override(theirs, overrides)
    if args.config is not None:
        sizes = theirs.model.text_embedding.vocab_size, getattr(theirs.model.decoder, "num_classes", 0)
        config = resolve(read_config(args.config, overrides, expand), *sizes)
        config = with_images_per_row(config, theirs.data.images_per_row)
    check_run(workdir, config)
    return config, workdir


def _show(metrics: dict[str, float], workdir: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from jaxfusion.workdir import EVALUATION

    intervals = json.loads((workdir / EVALUATION).read_text(encoding="utf-8"))["intervals"]
    table = Table("metric", "value", "95 % interval")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}", " – ".join(f"{end:.4f}" for end in intervals.get(name, ())))
    console = Console()
    console.print(table)
    console.print(f"report: {workdir / 'report.html'}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
