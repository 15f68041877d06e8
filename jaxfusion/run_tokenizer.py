"""A new run's tokenizer: a checkpoint's, a teacher's, that of prepared data, or one that learns from the data."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxfusion.config import Config
from jaxfusion.data.bad_records import BadRecords
from jaxfusion.data.dataset import Dataset
from jaxfusion.data.loader import Reader
from jaxfusion.data.prepared import Prepared
from jaxfusion.data.sources.mixture import Mixture
from jaxfusion.errors import UserError
from jaxfusion.pretrained.checkpoint import family_of, open_checkpoint
from jaxfusion.pretrained.families import FAMILIES
from jaxfusion.pretrained.load import open_family_tokenizer
from jaxfusion.teacher import teacher_tokenizer
from jaxfusion.text.tokenizer import Tokenizer, open_tokenizer
from jaxfusion.text.trained import TrainedTokenizer
from jaxfusion.workdir import is_run

# The tokenizer learns from this many records; more change nothing about the words of a data set.
TOKENIZER_RECORDS = 5000


def text_checkpoint(config: Config) -> str:
    """The checkpoint that the run's text embedding comes from; "" where there is none."""
    return config.pretrained.model or config.pretrained.decoder or config.pretrained.encoder


def new_tokenizer(config: Config, dataset: Dataset, bad: BadRecords) -> Tokenizer:
    """That of the text model's checkpoint; or else that of prepared data, or the teacher's; trained on the data where
    there is none of these. Raises UserError where one that is named has none."""
    name = text_checkpoint(config)
    if not name and config.data.prepared:
        home = Prepared(config.data.prepared).directory
        if not (home / "tokenizer.json").is_file():
            raise UserError(
                f"config.data.prepared: {config.data.prepared} was prepared with a checkpoint's tokenizer; name that "
                "checkpoint in config.pretrained, or prepare the data without one"
            )
        return open_tokenizer(home)
    if not name and config.distil.teacher:
        return teacher_tokenizer(config.distil.teacher)
    if not name:
        return TrainedTokenizer.train(_texts(config, dataset, bad), config.data.vocab_size)
    if is_run(Path(name)):
        return open_tokenizer(name)
    checkpoint = open_checkpoint(name)
    tokenizer = open_family_tokenizer(checkpoint.home, family_of(checkpoint, FAMILIES), config.model)
    if tokenizer is None:
        raise UserError(f"{name}: it holds no tokenizer; copy its tokenizer.json there")
    return tokenizer


def _texts(config: Config, dataset: Dataset, bad: BadRecords) -> Iterator[str]:
    unseen = tuple(name for name in config.data.modalities if name != "image")
    reader = Reader(replace(config.data, modalities=unseen), config.model, dataset.labels, bad=bad, parts=dataset.parts)
    number = len(dataset.train)
    places = range(min(TOKENIZER_RECORDS, number))
    if isinstance(dataset.train, Mixture):  # from all over it
        places = np.linspace(0, number - 1, len(places)).astype(int).tolist()
    for place in places:
        for sample in reader.read(dataset.train, place):
            yield from (message.text for message in sample.messages[:-1])
            # In episodes classes go by these names alone, told in a row and said by themselves.
            names = config.data.episodes.names if config.data.episodes.ways else ()
            yield from (", ".join(names), *names) if names else sample.references
