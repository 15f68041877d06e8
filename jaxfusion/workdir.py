"""A run's directory: what is in it, whose run it is, and the model that comes out of it."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxfusion.config import Config, from_dict, to_dict
from jaxfusion.errors import UserError
from jaxfusion.models.vlm import Model, Params, build, init
from jaxfusion.text.tokenizer import Tokenizer, open_tokenizer

CONFIG, LABELS, PRETRAINED = "config.json", "labels.json", "pretrained"
EVALUATION, PREDICTIONS = "evaluation.json", "predictions.jsonl"
LOCK = ".lock"

# What may differ between two calls of one run: nothing that changes the parameters.
FREE = ("evaluate", "generate", "plan", "prepare", "serve", "parallel")
# Where data lie, which may be moved; as many records as there were must be in them, see `jaxfusion.provenance`.
PLACES = ("data_dir", "path", "image_root")
FREE_SETTINGS = (
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.max_skipped",
    "train.keep_every",
    "train.keep_best",
    "train.warn_stalled",
    "train.remat",
    *(f"model.{room}.scan_layers" for room in ("vision", "encoder", "decoder")),
    "data.prepared",  # what is in it must stay the same, see `jaxfusion.experiment`
    *(f"data.{name}" for name in PLACES),
    "data.test_path",
    "data.bad_records",  # whatever is left out, all other visits stay what they were
    "data.max_bad_records",
    "data.num_threads",
    "distil.teacher",  # which must be the same one, see `jaxfusion.teacher`
)


def make_workdir(workdir: Path, option: str = "--workdir") -> None:
    """Makes the directory and tries to write in it. Raises UserError, which names the option, where it cannot."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{workdir}: cannot write there ({reason}); choose another {option}") from error


@contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Keeps a second process out of the directory. Raises UserError where one is at work in it."""
    from filelock import FileLock, Timeout

    lock = FileLock(workdir / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{workdir}: another process is at work there; wait for it, or choose another directory"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def claimed(workdir: Path, begun: Callable[[Path], bool], option: str = "--workdir") -> Iterator[None]:
    """`make_workdir` and `held`; and work that is refused before it has begun leaves nothing behind.

    begun: whether the directory holds anything worth keeping. Where it does not when a UserError passes through, what
    was not there before is removed: the directory and its parents, or what is in it.
    """
    made = [path for path in (workdir, *workdir.parents) if not path.exists()]
    make_workdir(workdir, option)
    with held(workdir):
        was_empty = all(path.name == LOCK for path in workdir.iterdir())
        try:
            yield
        except UserError:
            if was_empty and not begun(workdir):
                _remove(workdir, made)
            raise


def _remove(workdir: Path, made: Sequence[Path]) -> None:
    # The lock goes last: without it another process may begin here.
    for path in sorted(workdir.iterdir(), key=lambda path: path.name == LOCK):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    with suppress(OSError):  # another process has put something there
        for path in made:
            path.rmdir()


def has_checkpoint(workdir: Path) -> bool:
    """Whether anything is trained in the directory: a run that failed before its first checkpoint left nothing."""
    return latest_step(workdir) > 0


def latest_step(workdir: Path) -> int:
    """The step of the newest finished checkpoint; 0 where there is none."""
    return max((int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()), default=0)


def check_run(workdir: Path, config: Config) -> None:
    """Raises UserError where the directory holds a run whose parameters come from other settings than the config's."""
    if not has_checkpoint(workdir):
        return
    theirs, ours = _flat(_without_places(read_workdir_config(workdir))), _flat(_without_places(config))
    for key in sorted(theirs.keys() | ours.keys()):
        free = key.split(".")[0] in FREE or key in FREE_SETTINGS
        if not free and theirs.get(key) != ours.get(key):
            raise UserError(
                f"{workdir}: it holds a run with config.{key} = {theirs.get(key)!r}, and here it is {ours.get(key)!r}; "
                "choose another --workdir, or the value it was started with"
            )


def _without_places(config: Config) -> dict[str, Any]:
    """The config without those of data that are trained on beside others."""
    others = tuple(replace(other, **dict.fromkeys(PLACES, "")) for other in config.data.others)
    return to_dict(replace(config, data=replace(config.data, others=others)))


def read_workdir_config(workdir: Path) -> Config:
    """The run's config. Raises UserError where the directory or its config.json is missing or broken."""
    workdir = workdir.expanduser()
    path = workdir / CONFIG
    if not workdir.is_dir():
        raise UserError(f"{workdir}: no such workdir; train first, or give the directory of a run")
    if not path.is_file():
        raise UserError(f"{workdir}: no run in it ({CONFIG} is missing); train first, or give the directory of a run")
    try:
        return from_dict(Config, json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}); restore the file") from error


def read_labels(workdir: Path) -> list[str]:
    """Names of the classes that the run's data set has."""
    return json.loads((workdir / LABELS).read_text(encoding="utf-8"))


def is_run(path: Path) -> bool:
    """Whether a directory is a run's, or at least no checkpoint of transformers, which has a config.json of its own."""
    path = path.expanduser()
    try:
        return "model" in json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return (path / "checkpoints").is_dir()


def open_model(config: Config, workdir: Path, tokenizer: Tokenizer) -> Model:
    """The model of a config, with what the workdir keeps of the checkpoints that its rooms came from."""
    from jaxfusion.pretrained.checkpoint import read_json
    from jaxfusion.pretrained.origin import Origin
    from jaxfusion.pretrained.pixels import read_pixels

    model = build(config, tokenizer)
    if not any(vars(config.pretrained).values()):
        return model
    kept = workdir / PRETRAINED
    # Of other runs there may be none.
    seen = next((room for room in ("vision", "model") if (kept / room).is_dir()), None)
    pixels = None
    if seen and config.model.vision is not None:
        pixels = read_pixels(kept / seen, read_json(kept / seen / "config.json")["model_type"])
    return replace(model, origin=Origin.load(kept), pixels=pixels)


def load_run(path: str | Path, prefixes: tuple[str, ...] = ("",)) -> tuple[Model, Params]:
    """The model of a run's directory and its newest parameters, on the first device.

    They are as they trained: float32 but for what was frozen, which is as `train.frozen_dtype` says.
    prefixes: of the paths of parameters that are wanted; the others are not read.

    Raises UserError where there is no run, or no finished checkpoint that is whole.
    """
    return load_run_and_step(path, prefixes)[:2]


def load_run_and_step(path: str | Path, prefixes: tuple[str, ...] = ("",)) -> tuple[Model, Params, int]:
    """As `load_run`, and the parameters' step: where the newest checkpoint is broken, that of the one before."""
    from jaxfusion.training.checkpoint import restore_newest
    from jaxfusion.training.frozen import store

    workdir = Path(path).expanduser()
    config = read_workdir_config(workdir)
    tokenizer = open_tokenizer(workdir)
    if config.data.task == "text" and not config.data.others and tokenizer.chat_template is None:
        tokenizer.prefix = (tokenizer.bos_id,)  # it has read texts alone, and goes on with a prompt
    model = open_model(config, workdir, tokenizer)
    trainable, dtype = config.train.trainable, config.train.frozen_dtype
    abstract = jax.eval_shape(lambda rng: store(model, init(model, rng), trainable, dtype), jax.random.key(0))
    return model, *restore_newest(workdir, abstract, trainable, prefixes)


def resolve(config: Config, vocab_size: int, num_classes: int) -> Config:
    """The config with the sizes that only the data know, where it leaves them open (0).

    Raises UserError where it sets them and they are too small: ids beyond a table would come out as NaN.
    """
    model = config.model
    if 0 < model.text_embedding.vocab_size < vocab_size:
        raise UserError(
            f"config.model.text_embedding.vocab_size: {model.text_embedding.vocab_size} is less than the tokenizer's "
            f"{vocab_size}; leave it at 0, or lower config.data.vocab_size"
        )
    classes = num_classes if model.decoder.kind == "pooled-classifier" else vocab_size
    if 0 < getattr(model.decoder, "num_classes", 0) < classes:
        raise UserError(
            f"config.model.decoder.num_classes: {model.decoder.num_classes} is less than the {classes} that the data "
            "have; leave it at 0"
        )
    if not model.text_embedding.vocab_size:
        model = replace(model, text_embedding=replace(model.text_embedding, vocab_size=vocab_size))
    if getattr(model.decoder, "num_classes", None) == 0:
        model = replace(model, decoder=replace(model.decoder, num_classes=classes))
    return replace(config, model=model)


def with_images_per_row(config: Config, number: int) -> Config:
    """The config with as many image slots a row, where it leaves them open (0)."""
    if config.data.images_per_row:
        return config
    return replace(config, data=replace(config.data, images_per_row=number))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: _plain(value)}
    return flat


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
