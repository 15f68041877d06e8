"""What each --mode does with the arguments of the command line: one function a mode.

Whatever is large is imported where it is used, so that a mode does not wait for what others need.
"""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from jaxfusion.errors import UserError

if TYPE_CHECKING:
    from jaxfusion.config import Config
    from jaxfusion.data.messages import Image


def train_mode(args: argparse.Namespace, overrides: dict[str, str]) -> None:
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


def evaluate_mode(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    from jaxfusion.compilation_cache import use_compilation_cache
    from jaxfusion.experiment import evaluate_run
    from jaxfusion.parallel import use_cpu_cores

    config, workdir = _trained(args, overrides)
    use_cpu_cores(config.evaluate.batch_size)
    use_compilation_cache()
    _show(evaluate_run(config, workdir), workdir)


def generate_mode(args: argparse.Namespace, overrides: dict[str, str]) -> None:
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
    if examples and not images:
        raise UserError("--example: examples have pictures, and so must the question; give --image or --video as well")
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
        raise UserError(f"--example: {text} is no image with its answer; write FILE=TEXT, as in a.png=seven")
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


def export_mode(args: argparse.Namespace, overrides: dict[str, str]) -> None:
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


def prepare_mode(args: argparse.Namespace, overrides: dict[str, str]) -> None:
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


def plan_mode(args: argparse.Namespace, overrides: dict[str, str]) -> None:
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


def inspect_mode(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    from rich.console import Console

    from jaxfusion.inspection import inspect_run

    if args.workdir is None:
        raise UserError("--workdir: none was given; name the directory of a run, for example runs/quickstart")
    inspect_run(args.workdir, Console())


def serve_mode(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    from jaxfusion.serving import check_extra

    check_extra()
    from jaxfusion.serving.run import bind, serve

    config, name, load = _asked(args, overrides)
    with bind(config.serve.host, config.serve.port) as bound:
        model, params, prepare = load()
        serve(bound, model, params, config, name, prepare)


def chat_mode(args: argparse.Namespace, overrides: dict[str, str]) -> None:
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

    from jaxfusion.data.bad_records import BAD_RECORDS
    from jaxfusion.workdir import EVALUATION

    evaluation = json.loads((workdir / EVALUATION).read_text(encoding="utf-8"))
    intervals = evaluation["intervals"]
    table = Table("metric", "value", "95 % interval")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}", " – ".join(f"{end:.4f}" for end in intervals.get(name, ())))
    console = Console()
    console.print(table)
    if number := evaluation.get("bad_records"):
        console.print(f"bad records left out: {number:,}, listed in {workdir / BAD_RECORDS}", highlight=False)
    console.print(f"report: {workdir / 'report.html'}", highlight=False)


MODES = {
    "train": train_mode,
    "evaluate": evaluate_mode,
    "generate": generate_mode,
    "export": export_mode,
    "prepare": prepare_mode,
    "plan": plan_mode,
    "inspect": inspect_mode,
    "serve": serve_mode,
    "chat": chat_mode,
}
