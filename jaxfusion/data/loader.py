"""From a prepared data set to batches: a Grain pipeline whose place in the data can be saved and restored."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from jaxfusion.batch import Batch
from jaxfusion.config.model import FeaturesConfig, LookupConfig, ModelConfig
from jaxfusion.config.run import DataConfig
from jaxfusion.data import builtin
from jaxfusion.data.best_fit import Room, images_per_row
from jaxfusion.data.images import read_image, resize_image
from jaxfusion.data.messages import Sample
from jaxfusion.data.packing import ImageSlots, pack
from jaxfusion.data.prepared import Columns, Prepared, Record, columns_of
from jaxfusion.data.rows import BestFitRows
from jaxfusion.data.tasks import samples_of
from jaxfusion.data.tokenise import Layout, Segment, tokenise
from jaxfusion.data.visits import groups_of, visit
from jaxfusion.errors import UserError
from jaxfusion.text.tokenizer import Tokenizer

# How many samples wait to be put in a row. With twice as many rows are no fuller; they are held in memory, pixels and
# all, and read again where a run goes on.
NUM_WAITING = 128

# So many records tell how many images there are to a row's text.
LOOKED_AT = 1000


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

    def samples(self, record: Any, *, decode: bool = True) -> list[Sample]:
        """decode: False puts something without pixels in the pictures' place, where only sizes matter."""
        return samples_of(record, self.data, self._image(record, decode), list(self.labels))

    def _image(self, record: Any, decode: bool) -> np.ndarray | None:
        if self.model.vision is None or "image" not in self.data.modalities:
            return None
        if not decode:
            return np.zeros(0, np.uint8)
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
    """Endless shuffled batches of one shape; `get_state()` and `set_state()` tell and set the place, exactly.

    source: a data set's split, or what was prepared of it.

    Each visit of a record takes one of its samples at random, or, where a conversation is learned, all of them on the
    same picture in random order; of a sample's answers, where it has several, one. Each visit is in one row, by itself
    or, with best-fit packing, beside others. The order of the batches depends on the number of worker processes, each
    of which has every n-th record; a place can only be set with as many as it was told with.
    """
    data, layout = reader.data, Layout.of(reader.model)
    features = isinstance(source, Prepared) and source.features
    slots = ImageSlots.of(reader.model, data.images_per_row, features=features)
    segments = _segments(source, reader, tokenizer, seed)
    reading = grain.ReadOptions(num_threads=data.num_threads, prefetch_buffer_size=2 * batch_size)
    if data.packing == "best-fit":
        if data.num_workers > 1:  # each would pack a share of the records that its saved state does not know of
            raise UserError("config.data.num_workers: with best-fit packing there can be 1 at most; raise num_threads")
        room = Room(data.row_length, data.images_per_row)
        rows = BestFitRows(segments, reading, room, NUM_WAITING)
    else:
        rows = segments.map(lambda segment: [segment]).to_iter_dataset(reading)

    def to_batch(rows: Sequence[Any]) -> Batch:
        return pack(rows, data.row_length, layout.tokens_per_image, slots, packed=data.packing != "none")

    batches = rows.batch(batch_size, drop_remainder=True, batch_fn=to_batch)
    return iter(_in_workers(batches, data.num_workers) if data.num_workers else batches)


def settle_images_per_row(source: Sequence[Any], reader: Reader, tokenizer: Tokenizer, seed: int) -> int:
    """The image slots that rows of these data need, or fill best, by a look at what training reads first.

    One sample a row: as many as any of them has. Raises UserError for a sample that is too long.
    """
    data = reader.data
    if reader.model.vision is None or "image" not in data.modalities:
        return 0
    segments = _segments(source, reader, tokenizer, seed, decode=False)
    sizes = np.array([segments[place].size for place in range(min(LOOKED_AT, len(source)))])
    if data.packing == "best-fit":
        return images_per_row(sizes, data.row_length, NUM_WAITING)
    return int(sizes[:, 1].max(initial=0))


def _segments(
    source: Sequence[Any], reader: Reader, tokenizer: Tokenizer, seed: int, *, decode: bool = True
) -> grain.MapDataset:
    """What training learns from, visit by visit, without end. Raises UserError for a sample that no row can hold."""
    layout = Layout.of(reader.model)

    def choose(record: Any, rng: np.random.Generator) -> Segment:
        groups = groups_of(reader.samples(record, decode=decode), layout)
        sample = visit(groups[rng.integers(len(groups))], rng)
        segment = tokenise(sample, tokenizer, layout)
        _check_fit(sample.id, segment, reader)
        return segment

    def draw(record: Record, rng: np.random.Generator) -> Segment:
        name, segment = record.draw(rng)
        _check_fit(name, segment, reader)
        return segment

    take = draw if isinstance(source, Prepared) else choose
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(take)


def prepared_columns(
    source: Sequence[Any], places: Sequence[int], reader: Reader, tokenizer: Tokenizer, variants: int
) -> Iterator[Columns]:
    """What is stored of the records at these places, in order, by the threads and processes of `config.data`."""
    layout, data = Layout.of(reader.model), reader.data

    def prepare(place: int) -> Columns:
        rng = np.random.default_rng(place)  # the same, wherever the writing was interrupted
        return columns_of(reader.samples(source[place]), tokenizer, layout, variants, rng)

    reading = grain.ReadOptions(num_threads=data.num_threads, prefetch_buffer_size=max(2 * data.num_threads, 16))
    columns = grain.MapDataset.source(places).map(prepare).to_iter_dataset(reading)
    return iter(_in_workers(columns, data.num_workers) if data.num_workers else columns)


def _in_workers(batches: grain.IterDataset, num_workers: int) -> grain.IterDataset:
    """Made in processes, and passed on in shared memory."""
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain asks for its flags where it starts processes; they keep their defaults
        flags.FLAGS.mark_as_parsed()
    return batches.mp_prefetch(grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=2))


def _check_fit(name: str, segment: Segment, reader: Reader) -> None:
    """Raises UserError, by the sample's name, where no row can hold it: nothing is ever cut off."""
    data, (length, images) = reader.data, segment.size
    context = reader.model.text_embedding.max_positions
    if length > data.row_length:
        raise UserError(
            f"config.data.row_length: sample {name} of {data.name} needs {length} positions, images included, and "
            f"a row has {data.row_length}; set it to at least {length}"
        )
    if length > context:
        raise UserError(
            f"config.model.text_embedding.max_positions: sample {name} of {data.name} needs {length} positions, "
            f"images included, and the model's context is {context}; raise it, or leave the sample out"
        )
    if images > data.images_per_row > 0:
        raise UserError(
            f"config.data.images_per_row: sample {name} of {data.name} has {images} images and a row has places "
            f"for {data.images_per_row}; set it to at least {images}"
        )
