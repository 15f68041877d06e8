"""One run from end to end: data, tokenizer, model, training, evaluation, report, all in a workdir."""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

import jaxfusion
from jaxfusion.config import Config, to_dict
from jaxfusion.data.bad_records import BAD_RECORDS, BadRecords
from jaxfusion.data.dataset import Dataset, check_augment, check_lookup, open_dataset, with_classes
from jaxfusion.data.loader import Reader, held_out, names_in_batch, settle_images_per_row, train_iterator
from jaxfusion.data.messages import Sample
from jaxfusion.data.prepared import About, Prepared
from jaxfusion.data.tokenise import Layout
from jaxfusion.errors import UserError
from jaxfusion.evaluation.evaluate import (
    Evaluation,
    check_samples,
    evaluate,
    held_out_losses,
    held_out_samples,
    sampling_of,
)
from jaxfusion.evaluation.meter import Meter
from jaxfusion.evaluation.predictions import write_predictions
from jaxfusion.evaluation.shots import check_shots, evaluate_shots, shots_of
from jaxfusion.evaluation.support import candidates, with_support
from jaxfusion.files import write_json
from jaxfusion.generation.answer import Answer
from jaxfusion.models.vlm import Model, Params, init
from jaxfusion.parallel import Parallel, make_parallel
from jaxfusion.pretrained.load import fresh_and_frozen, read_rooms, with_room_for
from jaxfusion.pretrained.runs import origin_of
from jaxfusion.provenance import check_data, check_made_for, check_tower, check_unchanged
from jaxfusion.run_tokenizer import new_tokenizer, text_checkpoint
from jaxfusion.teacher import teacher_of, with_teachers_rows
from jaxfusion.text.tokenizer import Tokenizer, open_tokenizer
from jaxfusion.training.frozen import store
from jaxfusion.training.loop import all_steps_done, train
from jaxfusion.training.metrics import read_metrics
from jaxfusion.training.progress import Progress
from jaxfusion.workdir import (
    CONFIG,
    EVALUATION,
    LABELS,
    PREDICTIONS,
    PRETRAINED,
    check_run,
    claimed,
    has_checkpoint,
    latest_step,
    load_run_and_step,
    make_workdir,
    open_model,
    read_workdir_config,
    resolve,
    with_images_per_row,
)

# What a decoder other than a language model may be trained for.
SPECIALIST = {"fill": "tokens", "classify": "class"}

# The prepared.json of the data that the run began with, where it had any.
TRAINED_ON = "trained_on.json"

# How many records the data have that the run began with, and what is in them.
RECORDS = "records.json"

# Where a trace of a few training steps goes.
PROFILE = "profile"


@dataclass(frozen=True)
class Experiment:
    """config: with all sizes settled. model: with its tokenizer. samples: the held-out ones to evaluate on.
    reader: makes samples of the data set's records."""

    config: Config
    model: Model
    dataset: Dataset
    reader: Reader
    workdir: Path

    @cached_property
    def source(self) -> Sequence[Any]:
        """What training reads: the data set's own split, or what was prepared of it."""
        return _source(self.config, self.dataset)

    @cached_property
    def samples(self) -> list[Sample]:
        """The held-out ones, in episodes behind the most examples."""
        if self.config.data.episodes.ways:
            return self.episodes[max(self.episodes)]
        return held_out_samples(self.dataset.test, self.reader, self.config.evaluate.num_examples)

    @cached_property
    def episodes(self) -> dict[int, list[Sample]]:
        evaluated = self.config.evaluate
        return held_out(self.dataset, self.reader, shots_of(self.config), evaluated.num_examples)

    @cached_property
    def support(self) -> dict[str, list[Sample]]:
        """What solved examples are chosen from."""
        return candidates(self.dataset.train, self.reader, self.config.evaluate.support_records)

    def one_asked(self) -> list[Sample]:
        """A held-out sample behind the most examples, which tells whether there are any and whether they can be asked;
        those of RICES are others, which only a trained model chooses."""
        config, dataset, reader = self.config, self.dataset, self.reader
        if config.data.episodes.ways:
            most = max(shots_of(config))
            return held_out(dataset, reader, [most], 1)[most]
        samples = held_out_samples(dataset.test, reader, 1)
        if not config.evaluate.shots:
            return samples
        most = max(config.evaluate.shots)
        at_random = replace(config, evaluate=replace(config.evaluate, support="random"))
        return with_support(at_random, self.model, {}, samples, self.support, [most])[most]

    def evaluate(self, params: Params, tell: Callable[[Answer], None] = lambda answer: None) -> Evaluation:
        config, model, labels = self.config, self.model, self.dataset.labels
        shots = config.evaluate.shots
        if config.data.episodes.ways:
            asked, labels = self.episodes, config.data.episodes.names
        elif shots:
            asked = with_support(config, model, params, self.samples, self.support, shots)
        if shots:
            return evaluate_shots(config, model, params, asked, labels, tell)
        return evaluate(config, model, params, self.samples, labels, tell)


def open_experiment(config: Config, workdir: Path, tokenizer: Tokenizer | None = None) -> Experiment:
    """Prepares the data where they are missing, and the tokenizer where the workdir has none; settles all sizes.

    tokenizer: for a run without a text checkpoint, in place of one that learns from the data.
    """
    dataset = open_dataset(config.data)
    bad = BadRecords(config.data.bad_records, config.data.max_bad_records, workdir / BAD_RECORDS)
    if config.data.episodes.ways:
        dataset = with_classes(dataset, config.data, max(shots_of(config)), bad)
    if has_checkpoint(workdir):
        tokenizer = open_tokenizer(workdir)
    else:
        tokenizer = tokenizer or new_tokenizer(config, dataset, bad)
        if text_checkpoint(config):
            config = replace(config, model=with_room_for(tokenizer, config.model))
        origin_of(named_checkpoints(config)).save(workdir / PRETRAINED)
    config = resolve(with_teachers_rows(config, workdir), tokenizer.vocab_size, len(dataset.labels))
    check_lookup(config.data, config.model)
    check_augment(config.data, config.model)
    _check_others(config, dataset)
    model = open_model(config, workdir, tokenizer)
    _check_task(config)
    check_shots(config)
    context = config.model.text_embedding.max_positions
    if config.data.packing == "none" and config.data.row_length > context:
        raise UserError(
            f"config.data.row_length: {config.data.row_length} is more than the model's context of {context}; lower it "
            "or raise config.model.text_embedding.max_positions"
        )
    reader = Reader(config.data, config.model, dataset.labels, model.pixels, bad, dataset.parts)
    if has_checkpoint(workdir):
        images = read_workdir_config(workdir).data.images_per_row
    else:
        source = _source(config, dataset)
        if isinstance(source, Prepared):
            check_made_for(source, config, model, len(dataset.train))
        images = settle_images_per_row(source, reader, tokenizer, config.train.seed)
    config = with_images_per_row(config, images)
    reader = replace(reader, data=config.data)
    return Experiment(config, model, dataset, reader, workdir)


def _source(config: Config, dataset: Dataset) -> Sequence[Any]:
    if not config.data.prepared:
        return dataset.train
    return Prepared(config.data.prepared, told=bool(config.distil.teacher))


def named_checkpoints(config: Config) -> dict[str, str]:
    """The checkpoints, or other runs, that the run's rooms begin with."""
    return {room: name for room, name in vars(config.pretrained).items() if name}


def _keep_prepared(experiment: Experiment) -> None:
    """Notes in the workdir which prepared data the run began with, and says what they save.

    Raises UserError where the run goes on with others.
    """
    source, workdir = experiment.source, experiment.workdir
    kept, prepared = workdir / TRAINED_ON, isinstance(source, Prepared)
    if not has_checkpoint(workdir):
        kept.unlink(missing_ok=True)
        if prepared:
            write_json(kept, source.about.as_json())
    elif prepared != kept.exists():
        began, here = ("the data set itself", source.directory) if prepared else ("prepared data", "none")
        raise UserError(
            f"config.data.prepared: the run in {workdir} began with {began}, and here it is {here}; "
            "go on as it began, or choose another --workdir"
        )
    elif prepared:
        check_unchanged(source, About.read(kept), workdir)
    if prepared and source.about.measured:
        text = f"training on {source.about.store} in {source.directory}, a record: {source.about.gain}"
        Console().print(text, markup=False, highlight=False, soft_wrap=True)


def _check_task(config: Config) -> None:
    """Raises UserError where the model cannot learn what the task teaches."""
    predict, task = Layout.of(config.model).predict, config.data.task
    if predict != "next" and predict != SPECIALIST.get(task):
        kind = config.model.decoder.kind
        raise UserError(f"config.model.decoder: a {kind} cannot learn the task {task!r}; use a transformer")


def _check_trainable(config: Config) -> None:
    """Raises UserError where adapters would be trained beside all the weights that they spare."""
    if config.model.lora and config.train.trainable == ("*",):
        raise UserError(
            "config.train.trainable: with config.model.lora it must say what trains; "
            "set it to ('*/lora_?',) for the adapters alone, or add 'projector/*' and the like"
        )


def _warn_of_random_rooms(experiment: Experiment) -> None:
    """Says which rooms nothing has trained and nothing will; that may be meant, for one to compare with."""
    config = experiment.config
    if rooms := fresh_and_frozen(experiment.model, named_checkpoints(config), config.train.trainable):
        globs = ", ".join(f"'{room}/*'" for room in rooms)
        text = (
            f"warning: {', '.join(rooms)}: frozen, with parameters that are random; name a checkpoint in config.model, "
            f"or add {globs} to config.train.trainable"
        )
        Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def _check_others(config: Config, dataset: Dataset) -> None:
    """Raises UserError where the model cannot learn the data beside the others, or they were prepared without it."""
    if config.data.others and config.data.prepared:
        raise UserError("config.data.prepared: records are prepared of one data set; take config.data.others away")
    for number, (part, labels) in enumerate(dataset.parts[1:]):
        name = f"config.data.others[{number}]"
        predict = Layout.of(config.model).predict
        if predict != "next" and part.task != config.data.task:
            kind = config.model.decoder.kind
            raise UserError(f"{name}.task: a {kind} learns one task and not {part.task!r} as well; use a transformer")
        if predict == "class" and labels != dataset.labels:
            theirs, ours = ", ".join(labels), ", ".join(dataset.labels)
            raise UserError(f"{name}.labels: {theirs} here, and {ours} in the others; set the same labels in both")


def train_run(config: Config, workdir: Path, *, profile: bool = False) -> dict[str, float]:
    """Trains, or goes on training, then evaluates and writes the report; returns the metrics.

    profile: leave a trace of a few steps in the workdir.
    """
    make_parallel(config.parallel).check_training(config.train)
    sampling_of(config.generate)  # refused now, and not after the training
    with claimed(workdir, _has_begun):
        return _train(open_experiment(config, workdir), workdir, workdir / PROFILE if profile else None)


def _has_begun(workdir: Path) -> bool:
    return has_checkpoint(workdir) or bool(read_metrics(workdir))


def _train(experiment: Experiment, workdir: Path, profile: Path | None) -> dict[str, float]:
    config, model = experiment.config, experiment.model
    check_run(workdir, config)
    _check_trainable(config)
    _keep_prepared(experiment)
    check_data(config.data, experiment.dataset, workdir / RECORDS, begun=has_checkpoint(workdir))
    # It keeps the teacher's name that it began with: whether another one is the same is not known yet.
    began = read_workdir_config(workdir).distil if has_checkpoint(workdir) else config.distil
    write_json(workdir / CONFIG, to_dict(replace(config, distil=began)))
    if not has_checkpoint(workdir):
        _warn_of_random_rooms(experiment)
        model.tokenizer.save(workdir)
        write_json(workdir / LABELS, list(experiment.dataset.labels))
    if latest_step(workdir) >= config.train.num_steps:  # a teacher need not be there any more
        _, params, step = load_run_and_step(workdir)
        if step >= config.train.num_steps:
            Console().print(all_steps_done(workdir, step), markup=False, highlight=False, soft_wrap=True)
            return _evaluate(experiment, params, step)
        del params  # the last checkpoint is broken: its steps are trained again
    prepared = experiment.source if isinstance(experiment.source, Prepared) else None
    teacher = teacher_of(config, model, workdir, prepared)
    read = (experiment.source, experiment.reader, model.tokenizer, config.train.batch_size, config.train.seed)
    iterator = train_iterator(*read)
    # Read now, where they are needed: what is wrong with them is told before training.
    samples = experiment.samples if config.evaluate.every or config.evaluate.full_every else []
    check_samples(config, model, experiment.one_asked())

    def losses(params: Params) -> dict[str, float]:
        return held_out_losses(config, model, params, samples)

    def everything(params: Params) -> dict[str, float]:
        return experiment.evaluate(params).metrics

    named, init_params = named_checkpoints(config), None
    if named:

        def init_params(parallel: Parallel) -> Params:
            rng, settings = jax.random.key(config.train.seed), config.train
            kept = partial(store, model, trainable=settings.trainable)
            floats = "compute" if settings.frozen_dtype == "int8" else settings.frozen_dtype
            abstract = jax.eval_shape(lambda r: kept(init(model, r), frozen_dtype=floats), rng)
            params = kept(read_rooms(model, named, rng, abstract, parallel.place), frozen_dtype=settings.frozen_dtype)
            if prepared is not None and prepared.features:
                check_tower(prepared, params["vision"])
            return params

    state = train(
        config,
        model,
        iterator,
        workdir,
        evaluate=losses,
        evaluate_fully=everything,
        init_params=init_params,
        teacher=teacher,
        names=partial(names_in_batch, *read),
        profile=profile,
    )
    return _evaluate(experiment, state.params, int(state.step))


def evaluate_run(config: Config, workdir: Path) -> dict[str, float]:
    """Evaluates a trained workdir's newest checkpoint and writes the report anew; returns the metrics."""
    sampling_of(config.generate)
    make_workdir(workdir)
    _, params, step = load_run_and_step(workdir)
    return _evaluate(open_experiment(config, workdir), params, step)


def _evaluate(experiment: Experiment, params: Params, step: int) -> dict[str, float]:
    from jaxfusion.evaluation.report import write_report

    config, workdir = experiment.config, experiment.workdir
    start = time.perf_counter()
    number = len(experiment.samples)
    total = number * max(1, len(config.evaluate.shots))
    with Progress(total, Console(stderr=True), unit="sample") as progress:
        meter = Meter(progress, 0, "reading held-out samples")
        result = experiment.evaluate(params, lambda answer: meter.add({"num_tokens": len(answer.tokens)}))
        progress.step(total)
    write_predictions(workdir / PREDICTIONS, result)
    record = {
        "metrics": result.metrics,
        "intervals": result.intervals,
        "num_examples": number,
        "step": step,
        "seconds": round(time.perf_counter() - start, 2),
        "finished": time.strftime("%Y-%m-%d %H:%M"),
        "device": _device(),
        "versions": {"jaxfusion": jaxfusion.__version__, "python": platform.python_version()}
        | {name: version(name) for name in ("jax", "flax", "optax")},
    }
    if experiment.reader.bad:
        record["bad_records"] = len(experiment.reader.bad)  # left out so far, and listed in the workdir
    if result.confusion is not None and not config.data.episodes.ways:  # there a name means another class each time
        record["confusion"] = {"labels": list(experiment.dataset.labels), "matrix": result.confusion.tolist()}
    write_json(workdir / EVALUATION, record)
    write_report(workdir)
    return result.metrics


def _device() -> str:
    devices = jax.local_devices()
    return f"{len(devices)} x {devices[0].device_kind}"
