"""From a prepared data set to batches: a Grain pipeline whose place in the data can be saved and restored."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from jaxfusion.batch import Batch
from jaxfusion.config.model import FeaturesConfig, LookupConfig, ModelConfig
from jaxfusion.config.run import DataConfig
from jaxfusion.data import builtin
from jaxfusion.data.images import read_image, resize_image
from jaxfusion.data.messages import Image, Message, Sample
from jaxfusion.data.packing import pack
from jaxfusion.data.tasks import samples_of
from jaxfusion.data.tokenise import Layout, tokenise
from jaxfusion.errors import UserError
from jaxfusion.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Dataset:
    """A prepared data set's splits and the names of its classes (empty where the task has none)."""

    train: Sequence[Any]
    test: Sequence[Any]
    labels: tuple[str, ...]


def open_dataset(config: DataConfig) -> Dataset:
    """Prepares a built-in data set, or opens one that TFDS has prepared. Raises UserError where it cannot be had."""
    import tensorflow_datasets as tfds

    data_dir = config.data_dir or None
    if config.name in builtin.BUILTIN:
        builder = builtin.prepare(config.name, data_dir)
    else:
        try:
            builder = tfds.builder(config.name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError:
            near = difflib.get_close_matches(config.name, builtin.BUILTIN, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"built in are {', '.join(builtin.BUILTIN)}"
            raise UserError(f"config.data.name: there is no data set {config.name!r}; {hint}") from None
        except ImportError as error:  # some of TFDS's own builders are written with TensorFlow
            reason = " ".join(str(error).split())
            raise UserError(
                f"config.data.name: TFDS cannot describe {config.name} here ({reason}); "
                "prepare it where TensorFlow is installed, and give the prepared directory as config.data.data_dir"
            ) from error
        if not builder.data_path.exists():
            raise UserError(
                f"config.data.name: {config.name} is not prepared in {builder.data_path}; run `tfds build {config.name}"
                " --file_format=array_record` or set config.data.data_dir"
            )
    decoders = {"image": tfds.decode.SkipDecoding()} if "image" in builder.info.features else None
    sources = []
    for key in ("train_split", "test_split"):
        split = getattr(config, key)
        if split.split("[")[0] not in builder.info.splits:
            known = ", ".join(builder.info.splits)
            raise UserError(f"config.data.{key}: {config.name} has no split {split!r}; choose from {known}")
        try:
            sources.append(builder.as_data_source(split, decoders=decoders))
        except (ValueError, NotImplementedError) as error:  # a wrong slice, or files that are not array_record
            reason = " ".join(str(error).split())
            raise UserError(
                f"config.data.{key}: cannot read {split!r} of {config.name} ({reason}); change it"
            ) from error
    features = builder.info.features
    classes = features[config.label].names if config.label in features else ()
    return Dataset(*sources, labels=tuple(classes))


@dataclass(frozen=True)
class Reader:
    """What turns a record into samples: the task's settings, and the picture as the vision room takes it.

    pixels: what a checkpoint wants done to a picture, uint8[h, w, 3] -> uint8[H, W, 3]; None: it is resized.
    """

    data: DataConfig
    model: ModelConfig
    labels: tuple[str, ...]
    pixels: Callable[[np.ndarray], np.ndarray] | None = None

    def samples(self, record: Any) -> list[Sample]:
        return samples_of(record, self.data, self._image(record), list(self.labels))

    def _image(self, record: Any) -> np.ndarray | None:
        if self.model.vision is None or "image" not in self.data.modalities:
            return None
        if isinstance(self.model.vision, LookupConfig):
            return self._image_id(record)
        if isinstance(self.model.vision, FeaturesConfig):
            raise UserError(
                "config.model.vision: no data set here holds features; give them in Batch.images, or use a network"
            )
        if self.pixels:
            return self.pixels(read_image(record["image"]))
        size = self.model.vision.image_size
        return resize_image(read_image(record["image"], size if self.data.scaled_decode else None), size)

    def _image_id(self, record: Any) -> np.ndarray:
        number, size = int(record["image_id"]), self.model.vision.num_images
        if number >= size:
            raise UserError(
                f"config.model.vision.num_images: no place for image {number} of {self.data.name} among {size}; "
                "raise it to the number of records"
            )
        return np.asarray(number, np.int32)


def train_iterator(
    source: Sequence[Any], reader: Reader, tokenizer: Tokenizer, batch_size: int, seed: int
) -> grain.DatasetIterator:
    """Endless shuffled batches; `get_state()` and `set_state()` tell and set the place, exactly.

    Each visit of a record takes one of its samples at random, or, where a conversation is learned, all of them on the
    same picture in random order. The order of the batches depends on the number of worker processes, each of which has
    every n-th record; a place can only be set with as many as it was told with.
    """
    layout = Layout.of(reader.model)

    def choose(record: Any, rng: np.random.Generator) -> Any:
        samples = reader.samples(record)
        if layout.predict == "next":
            group = rng.choice(sorted({sample.group for sample in samples}))
            samples = [sample for sample in samples if sample.group == group]
            return tokenise(_dialogue([samples[i] for i in rng.permutation(len(samples))]), tokenizer, layout)
        return tokenise(samples[rng.integers(len(samples))], tokenizer, layout)

    def to_batch(segments: Sequence[Any]) -> Batch:
        return pack([[segment] for segment in segments], reader.data.row_length, layout.tokens_per_image)

    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(choose)
    reading = grain.ReadOptions(num_threads=reader.data.num_threads, prefetch_buffer_size=2 * batch_size)
    batches = dataset.to_iter_dataset(reading).batch(batch_size, drop_remainder=True, batch_fn=to_batch)
    return iter(_in_workers(batches, reader.data.num_workers) if reader.data.num_workers else batches)


def _in_workers(batches: grain.IterDataset, num_workers: int) -> grain.IterDataset:
    """Made in processes, and passed on in shared memory."""
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain asks for its flags where it starts processes; they keep their defaults
        flags.FLAGS.mark_as_parsed()
    return batches.mp_prefetch(grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=2))


def _dialogue(samples: list[Sample]) -> Sample:
    """Samples on the same picture as one conversation, in which the picture is shown once."""
    first, *rest = samples
    messages = list(first.messages)
    for sample in rest:
        question, reply = sample.messages
        text = tuple(part for part in question.parts if not isinstance(part, Image))
        messages += [Message("user", text), reply]
    return Sample(first.id, first.group, tuple(messages))
