"""From a prepared data set to batches: a Grain pipeline whose place in the data can be saved and restored."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import grain
import numpy as np

from jaxfusion.batch import Batch
from jaxfusion.config.model import FeaturesConfig, LookupConfig, ModelConfig
from jaxfusion.config.run import DataConfig
from jaxfusion.data import augment
from jaxfusion.data.bad_records import BadRecords
from jaxfusion.data.best_fit import Room, images_per_row
from jaxfusion.data.dataset import Dataset
from jaxfusion.data.episodes import (
    ByClass,
    held_out_episodes,
    known_and_new,
    training_episode,
)
from jaxfusion.data.frames import frames_of
from jaxfusion.data.images import read_image, resize_image
from jaxfusion.data.kept import Kept
from jaxfusion.data.messages import Image, Sample
from jaxfusion.data.order import visits_of
from jaxfusion.data.packing import ImageSlots, pack
from jaxfusion.data.prepared import Columns, Prepared, columns_of
from jaxfusion.data.rows import BestFitRows
from jaxfusion.data.sources.mixture import Mixture
from jaxfusion.data.tasks import name_of, samples_of
from jaxfusion.data.tokenise import Layout, Segment, pieces, tokenise
from jaxfusion.data.visits import groups_of, visit
from jaxfusion.errors import RecordError, UserError
from jaxfusion.text.tokenizer import Tokenizer

# How many samples wait to be put in a row. With twice as many rows are no fuller; they are held in memory, pixels and
# all, and read again where a run goes on.
NUM_WAITING = 128

# Of pictures that episodes are made of, which are read again and again: small data are read once.
KEPT_BYTES = 2**26

# So many records tell how many images there are to a row's text.
LOOKED_AT = 1000


@dataclass(frozen=True)
class Reader:
    """What turns a record into samples: the task's settings, and pictures as the vision room takes them.

    pixels: what a checkpoint wants done to a picture, uint8[h, w, 3] -> uint8[H, W, 3]; None: it is resized.
    bad:    what becomes of records that nothing can be learned from.
    parts:  settings and names of classes for the records of a mixture's parts, see `Dataset`.
    drawn:  what becomes of pictures before they are resized; None: nothing. Training draws it once a visit.
    """

    data: DataConfig
    model: ModelConfig
    labels: tuple[str, ...]
    pixels: Callable[[np.ndarray], np.ndarray] | None = None
    bad: BadRecords = field(default_factory=BadRecords)
    parts: tuple[tuple[DataConfig, tuple[str, ...]], ...] = ()
    drawn: augment.Drawn | None = None

    def read(self, source: Sequence[Any], place: int, *, decode: bool = True) -> list[Sample]:
        """The samples of a source's record; none of one that is left out. Raises UserError where it may not be."""
        part = source.part_of(place) if isinstance(source, Mixture) else None
        try:
            return self.samples(source[place], part, decode=decode)
        except RecordError as error:
            self.bad.leave_out(error)
            return []

    def first(self, source: Sequence[Any], place: int, *, decode: bool = True) -> Sample | None:
        """The first sample of a source's record; None where the record is left out."""
        return next(iter(self.read(source, place, decode=decode)), None)

    def samples(self, record: Any, part: int | None = None, *, decode: bool = True) -> list[Sample]:
        """part: of a mixture, that the record is of. decode: False puts something without pixels in the pictures'
        place, where only sizes matter.

        Raises RecordError for a record, or a picture of it, that is broken."""
        data, labels = (self.data, self.labels) if part is None else self.parts[part]
        return samples_of(record, data, self._images(record, decode), list(labels))

    def _images(self, record: Any, decode: bool) -> list[Image] | None:
        if self.model.vision is None or "image" not in self.data.modalities:
            return None
        if isinstance(self.model.vision, LookupConfig):
            return [Image(self._image_id(record))]
        if isinstance(self.model.vision, FeaturesConfig):
            raise UserError(
                "config.model.vision: no data set here holds features; give them in Batch.images, or use a network"
            )
        if "images" in record:
            entries = record["images"]
        elif "image" in record:
            entries = [record["image"]]
        else:
            entries = []
        where = name_of(record, self.data)
        images = [Image(self._picture(entry, where) if decode else np.zeros(0, np.uint8)) for entry in entries]
        if record.get("video") is not None:
            video, times = record["video"], record.get("video_times")
            images += frames_of(video, times, self.data, self.model, self._see, where, decode=decode)
        return images

    def _picture(self, entry: Any, where: str) -> np.ndarray:
        try:
            return self._see(entry)
        except UserError as error:
            raise RecordError(where, str(error)) from error

    def _see(self, entry: Any) -> np.ndarray:
        """A file, its bytes, or pixels of any size, as the vision room takes them."""
        size, drawn = self.model.vision.image_size, self.drawn
        if isinstance(entry, np.ndarray):
            entry = drawn.of_pixels(entry) if drawn else entry
            return self.pixels(entry) if self.pixels else resize_image(entry, size)
        if self.pixels:
            return self.pixels(read_image(entry, change=drawn))
        enough = math.ceil(size / drawn.least) if drawn else size  # a crop is to have as many pixels as are asked for
        return read_image(entry, enough if self.data.scaled_decode else None, size, drawn)

    def _image_id(self, record: Any) -> np.ndarray:
        number, size = int(record["image_id"]), self.model.vision.num_images
        if number >= size:
            raise UserError(
                f"config.model.vision.num_images: no place for image {number} of {self.data.name} among {size}; "
                "raise it to the number of records"
            )
        return np.asarray(number, np.int32)


def held_out(dataset: Dataset, reader: Reader, shots: Sequence[int], limit: int) -> dict[int, list[Sample]]:
    """Episodes of the held-out split, always the same, by how many examples of each class they have; limit 0: as many
    as there are records. A picture is read once for all."""
    config, first = reader.data.episodes, lru_cache(None)(reader.first)
    known, new = known_and_new(dataset.labels, config)
    return {number: held_out_episodes(dataset.test, known, new, config, number, first, limit) for number in shots}


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

    def to_batch(rows: Sequence[Any]) -> Batch:
        return pack(rows, data.row_length, layout.tokens_per_image, slots, packed=data.packing != "none")

    return _batches(source, reader, tokenizer, batch_size, seed, to_batch)


def names_in_batch(
    source: Sequence[Any], reader: Reader, tokenizer: Tokenizer, batch_size: int, seed: int, state: dict[str, Any]
) -> list[str]:
    """The names of the samples, row by row, in the batch that a `train_iterator` of the same arguments makes next.

    state: what its get_state() says before.
    """

    def to_names(rows: Sequence[Any]) -> list[str]:
        return [segment.name for row in rows for segment in row]

    batches = _batches(source, reader, tokenizer, batch_size, seed, to_names)
    batches.set_state(state)
    names = next(batches)
    if reader.data.num_workers:  # which would wait for more to be asked of them
        batches.close()
    return names


def _batches(
    source: Sequence[Any],
    reader: Reader,
    tokenizer: Tokenizer,
    batch_size: int,
    seed: int,
    of_rows: Callable[[Sequence[Any]], Any],
) -> grain.DatasetIterator:
    """of_rows: makes a batch of its rows, each of which is a list of segments."""
    data, segments = reader.data, _segments(source, reader, tokenizer, seed)
    reading = grain.ReadOptions(num_threads=data.num_threads, prefetch_buffer_size=2 * batch_size)
    if data.packing == "best-fit":
        if data.num_workers > 1:  # each would pack a share of the records that its saved state does not know of
            raise UserError("config.data.num_workers: with best-fit packing there can be 1 at most; raise num_threads")
        room = Room(data.row_length, data.images_per_row)
        rows = BestFitRows(segments, reading, room, NUM_WAITING)
    else:
        rows = segments.map(lambda segment: [segment]).to_iter_dataset(reading)
    batches = rows.batch(batch_size, drop_remainder=True, batch_fn=of_rows)
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
    layout, augmented = Layout.of(reader.model), augment.parse(reader.data.augment)

    def seeing(rng: np.random.Generator) -> Reader:
        return replace(reader, drawn=augmented.draw(rng)) if augmented.calls else reader

    def choose(place: int, rng: np.random.Generator) -> Segment:
        groups = groups_of(_good_samples(source, place, seeing(rng), rng, decode=decode), layout)
        sample = visit(groups[rng.integers(len(groups))], rng)
        segment = tokenise(sample, tokenizer, layout)
        if len(sample.messages) == 1:  # a document, of which a visit takes what a row can hold
            parts = pieces(segment, reader.data.row_length)
            segment = parts[rng.integers(len(parts))]
        _check_fit(sample.id, segment, reader)
        return segment._replace(name=sample.id)

    # An episode has many pictures. Augmented ones are others at each visit, and processes would keep their own.
    keeps = isinstance(source, ByClass) and not augmented.calls and not reader.data.num_workers
    kept = Kept(partial(reader.first, decode=decode), KEPT_BYTES) if keeps else None

    def compose(place: int, rng: np.random.Generator) -> Segment:
        first = kept or partial(seeing(rng).first, decode=decode)
        sample = training_episode(source, place, reader.data.episodes, first, rng)
        segment = tokenise(sample, tokenizer, layout)
        _check_fit(sample.id, segment, reader)
        return segment._replace(name=sample.id)

    def draw(place: int, rng: np.random.Generator) -> Segment:
        name, segment = source[place].draw(rng)
        _check_fit(name, segment, reader)
        return segment._replace(name=name)

    make = draw if isinstance(source, Prepared) else compose if isinstance(source, ByClass) else choose
    return visits_of(source, seed).random_map(make)


def _good_samples(
    source: Sequence[Any], place: int, reader: Reader, rng: np.random.Generator, *, decode: bool = True
) -> list[Sample]:
    """Those of a record, or, where it is left out, of another one at random. Raises UserError where all are bad."""
    first, number, section, data = 0, len(source), "config.data", reader.data
    if isinstance(source, Mixture):  # shares stay as they are
        part = source.part_of(place)
        first, number = source.start(part), len(source.parts[part])
        if part:
            section, data = f"config.data.others[{part - 1}]", reader.parts[part][0]
    for _ in range(100 + number):
        if samples := reader.read(source, place, decode=decode):
            return samples
        place = first + int(rng.integers(number))
    raise UserError(f"{section}.path: {data.path or data.name} has nothing but bad records; mend them")


def prepared_columns(
    source: Sequence[Any], places: Sequence[int], reader: Reader, tokenizer: Tokenizer, variants: int
) -> Iterator[Columns]:
    """What is stored of the records at these places, in order, by the threads and processes of `config.data`."""
    layout, data = Layout.of(reader.model), reader.data

    def prepare(place: int) -> Columns:
        rng = np.random.default_rng(place)  # the same, wherever the writing was interrupted
        return columns_of(_good_samples(source, place, reader, rng), tokenizer, layout, variants, rng)

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
