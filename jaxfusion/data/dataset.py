"""A data set's splits, classes and parts, opened as the config says; and what cannot be learned from it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxfusion.config.model import LookupConfig, ModelConfig
from jaxfusion.config.run import DataConfig
from jaxfusion.data import augment
from jaxfusion.data.bad_records import BadRecords
from jaxfusion.data.episodes import by_class, check_names, check_numbers, known_and_new, most_of_a_class
from jaxfusion.data.request import check_prompt
from jaxfusion.data.sources import FORMATS, open_files, open_format, tfds
from jaxfusion.data.sources.mixture import Mixture, shares_of
from jaxfusion.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """A data set's splits and the names of its classes (empty where the task has none).

    parts: of what train is a mixture of, where it is one: settings and names of classes.
    """

    train: Sequence[Any]
    test: Sequence[Any]
    labels: tuple[str, ...]
    parts: tuple[tuple[DataConfig, tuple[str, ...]], ...] = ()


def open_dataset(config: DataConfig) -> Dataset:
    """Opens the files of a format, a data set that TFDS has prepared, or a built-in one, which is prepared where it is
    missing; with others beside it, if so set. Raises UserError where it cannot be had."""
    check_prompt(config, "config.data.prompt")
    train, test, labels = (open_format if config.name in FORMATS else tfds.open_splits)(config)
    main = Dataset(train, test, config.labels or labels)
    if not config.others:
        for name in ("weight", "epochs", "temperature"):
            if getattr(config, name) != getattr(DataConfig, name):
                raise UserError(f"config.data.{name}: it shares visits out with config.data.others, and there are none")
        return main
    sources, parts = [train], [(config, main.labels)]
    for number, other in enumerate(config.others):
        settings = {name: value for name, value in vars(other).items() if name not in ("weight", "epochs")}
        settings["data_dir"] = other.data_dir or config.data_dir
        part = replace(config, **settings, test_split=other.train_split, others=())
        section = f"config.data.others[{number}]"
        check_prompt(part, f"{section}.prompt")
        if part.name in FORMATS:
            source, labels = open_files(part, part.path, f"{section}.path", part.labels)
        else:
            source, _, labels = tfds.open_splits(part, section)
        sources.append(source)
        parts.append((part, part.labels or labels))
    shares = shares_of((config, *config.others), [len(source) for source in sources], config.temperature)
    return replace(main, train=Mixture(sources, shares), parts=tuple(parts))


def with_classes(dataset: Dataset, config: DataConfig, shots: int, bad: BadRecords) -> Dataset:
    """The data set as episodes are made of it: records with their classes, and to train on those of known ones alone.

    shots: examples of each class in held-out episodes, at most.
    Raises UserError where the data have no classes, too few of them, or too few records of one.
    """
    if config.task != "classify" or config.others or config.prepared:
        raise UserError(
            "config.data.episodes: they are of the task 'classify', of one data set that is not prepared; set ways to "
            "0, or change config.data.task, others or prepared"
        )
    check_names(config.episodes, dataset.labels)
    known, new = known_and_new(dataset.labels, config.episodes)
    train = by_class(dataset.train, config, dataset.labels, bad).only(known)
    check_numbers(train, known, dataset.labels, most_of_a_class(config.episodes), "config.data.episodes.shots")
    test = by_class(dataset.test, config, dataset.labels, bad)
    check_numbers(test, [*known, *new], dataset.labels, shots + 1, "config.evaluate.shots")
    return replace(dataset, train=train, test=test)


def check_lookup(data: DataConfig, model: ModelConfig) -> None:
    """Raises UserError where a table that knows images by their numbers would be asked for what it cannot know."""
    if not isinstance(model.vision, LookupConfig):
        return
    for name, other in (("config.data", data), *((f"config.data.others[{n}]", o) for n, o in enumerate(data.others))):
        if other.name in FORMATS:
            raise UserError(f"{name}.name: a lookup table knows no images of files ({other.name}); use a network")
    if data.others:
        raise UserError(
            "config.data.others: a lookup table knows images by their numbers, and those of other data have the same "
            "ones; take them away, or use a network"
        )
    if data.test_split != data.train_split:
        raise UserError(
            "config.data.test_split: a lookup table knows the images of the train split alone; set it to "
            f"{data.train_split!r}"
        )


def check_augment(data: DataConfig, model: ModelConfig) -> None:
    """Raises UserError for augmentations that are none, or that nothing could be done with."""
    if not augment.parse(data.augment).calls:
        return
    if data.prepared:
        raise UserError(
            "config.data.augment: prepared pictures are the same in each visit; take config.data.prepared away, or this"
        )
    if "image" not in data.modalities or not hasattr(model.vision, "image_size"):
        kind = getattr(model.vision, "kind", "none")
        raise UserError(f"config.data.augment: the model sees no pixels (its vision room: {kind}); take it away")
