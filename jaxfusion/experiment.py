"""One run from end to end: data, tokenizer, model, training, evaluation, report, all in a workdir."""

import base64
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

import jaxfusion
from jaxfusion.config import Config, to_dict
from jaxfusion.data.images import encode_png
from jaxfusion.data.loader import Dataset, Reader, open_dataset, train_iterator
from jaxfusion.data.messages import Sample
from jaxfusion.data.tasks import samples_of
from jaxfusion.evaluation.evaluate import Evaluation, evaluate, held_out_losses, held_out_samples
from jaxfusion.models.vlm import Model, Params, build
from jaxfusion.parallel import make_parallel
from jaxfusion.text.tokenizer import Tokenizer
from jaxfusion.training.loop import train
from jaxfusion.workdir import (
    CONFIG,
    EVALUATION,
    PREDICTIONS,
    TOKENIZER,
    check_run,
    load,
    make_workdir,
    resolve,
    write_json,
)

# The tokenizer learns from this many records; more change nothing about the words of a data set.
TOKENIZER_RECORDS = 5000


@dataclass(frozen=True)
class Experiment:
    """config: with all sizes settled. model: with its tokenizer. samples: the held-out ones to evaluate on."""

    config: Config
    model: Model
    dataset: Dataset
    reader: Reader
    workdir: Path

    @property
    def samples(self) -> list[Sample]:
        return held_out_samples(self.dataset.test, self.reader, self.config.evaluate.num_examples)


def open_experiment(config: Config, workdir: Path) -> Experiment:
    """Prepares the data where they are missing, and the tokenizer where the workdir has none; settles all sizes."""
    dataset = open_dataset(config.data)
    tokenizer_path = workdir / TOKENIZER
    if tokenizer_path.exists():
        tokenizer = Tokenizer.load(tokenizer_path)
    else:
        tokenizer = Tokenizer.train(_texts(config, dataset), config.data.vocab_size)
    config = resolve(config, tokenizer.vocab_size, len(dataset.labels))
    model = build(config, tokenizer)
    return Experiment(config, model, dataset, Reader(config.data, config.model, dataset.labels), workdir)


def train_run(config: Config, workdir: Path) -> dict[str, float]:
    """Trains, or goes on training, then evaluates and writes the report; returns the metrics."""
    parallel = make_parallel(config.parallel)
    parallel.check_batch_size("config.train.batch_size", config.train.batch_size)
    parallel.check_batch_size("config.evaluate.batch_size", config.evaluate.batch_size)
    make_workdir(workdir)
    experiment = open_experiment(config, workdir)
    config, model = experiment.config, experiment.model
    check_run(workdir, config)
    write_json(workdir / CONFIG, to_dict(config))
    model.tokenizer.save(workdir / TOKENIZER)
    iterator = train_iterator(
        experiment.dataset.train, experiment.reader, model.tokenizer, config.train.batch_size, config.train.seed
    )
    during = None
    if config.evaluate.every:
        held_out = experiment.samples

        def during(params: Params) -> dict[str, float]:
            return held_out_losses(config, model, params, held_out)

    state = train(config, model, iterator, workdir, evaluate=during)
    return _evaluate(experiment, state.params)


def evaluate_run(config: Config, workdir: Path) -> dict[str, float]:
    """Evaluates a trained workdir's newest checkpoint and writes the report anew; returns the metrics."""
    _, params = load(workdir)
    return _evaluate(open_experiment(config, workdir), params)


def _evaluate(experiment: Experiment, params: Params) -> dict[str, float]:
    from jaxfusion.evaluation.report import write_report

    config, workdir = experiment.config, experiment.workdir
    start = time.perf_counter()
    with Console(stderr=True).status("evaluating on held-out samples"):
        result = evaluate(config, experiment.model, params, experiment.samples, experiment.dataset.labels)
    _write_predictions(workdir / PREDICTIONS, result)
    record = {
        "metrics": result.metrics,
        "num_examples": len(result.samples),
        "step": config.train.num_steps,
        "seconds": round(time.perf_counter() - start, 2),
        "finished": time.strftime("%Y-%m-%d %H:%M"),
        "device": _device(),
        "versions": {"jaxfusion": jaxfusion.__version__, "python": platform.python_version()}
        | {name: version(name) for name in ("jax", "flax", "optax")},
    }
    if result.confusion is not None:
        record["confusion"] = {"labels": list(experiment.dataset.labels), "matrix": result.confusion.tolist()}
    write_json(workdir / EVALUATION, record)
    write_report(workdir)
    return result.metrics


def _texts(config: Config, dataset: Dataset) -> Iterator[str]:
    for index in range(min(TOKENIZER_RECORDS, len(dataset.train))):
        for sample in samples_of(dataset.train[index], config.data, None, list(dataset.labels)):
            yield from (message.text for message in sample.messages)


def _write_predictions(path: Path, result: Evaluation) -> None:
    with path.open("w") as file:
        for sample, prediction in zip(result.samples, result.predictions, strict=True):
            pictures = [np.asarray(image.value) for image in sample.messages[0].images]
            shown = pictures[0] if pictures and pictures[0].ndim == 3 else None
            row: dict[str, Any] = {
                "id": sample.id,
                "image": None if shown is None else base64.b64encode(encode_png(shown)).decode(),
                "prompt": sample.prompt,
                "reference": sample.reference,
                "prediction": prediction,
                "correct": prediction == sample.reference,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _device() -> str:
    devices = jax.local_devices()
    return f"{len(devices)} x {devices[0].device_kind}"
