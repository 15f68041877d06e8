"""Prepared data on disk: records whose text is tokenised and whose picture is resized, or seen by a frozen tower, once.

A directory holds shards of array_record and `prepared.json`, which says what the records depend on. A record holds its
picture once and its *variants*: whatever a visit of it may teach (see `jaxfusion.data.visits`), as segments without the
picture, with what a teacher says of them where that was asked for. It is a file of safetensors in itself, so nothing
that is read is ever unpickled.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Int, Shaped

from jaxfusion.batch import TopK
from jaxfusion.data.messages import Sample
from jaxfusion.data.tokenise import PER_POSITION, Layout, Segment, tokenise
from jaxfusion.data.visits import groups_of, visits
from jaxfusion.errors import UserError
from jaxfusion.text.tokenizer import Tokenizer

ABOUT = "prepared.json"

Columns = dict[str, np.ndarray]
Setting = str | int | float | bool | list | None

# safetensors' names; its own NumPy side reads no bfloat16.
DTYPES = {
    "U8": np.uint8,
    "U16": np.uint16,
    "I32": np.int32,
    "F32": np.float32,
    "BF16": ml_dtypes.bfloat16,
    "BOOL": np.bool_,
}
TOLD = tuple(f"told_{name}" for name in TopK._fields)


# --- a record ---------------------------------------------------------------------------------------------------------


class Record(NamedTuple):
    """images: what the vision room takes, or the tower's features of it. groups: the number of each variant's group.
    names: of the samples that the variants begin with, for error messages."""

    images: Shaped[np.ndarray, "n ..."]
    groups: Int[np.ndarray, " v"]
    names: list[str]
    variants: list[Segment]

    def draw(self, rng: np.random.Generator) -> tuple[str, Segment]:
        """A variant's name and segment, with its picture: of any group with the same probability, then of any order."""
        group = rng.integers(self.groups.max() + 1)
        chosen = int(rng.choice(np.flatnonzero(self.groups == group)))
        return self.names[chosen], self.variants[chosen]._replace(images=list(self.images))


def columns_of(
    samples: Sequence[Sample], tokenizer: Tokenizer, layout: Layout, most: int, rng: np.random.Generator
) -> Columns:
    """A record's samples as the arrays that are stored. most: variants of a group, in order and answers."""
    found = [
        (number, variant.id, tokenise(variant, tokenizer, layout))
        for number, group in enumerate(groups_of(samples, layout))
        for variant in visits(group, most, rng)
    ]
    groups, names, segments = zip(*found, strict=True)
    images = segments[0].images  # the same in all: they are the record's
    return {
        "images": np.stack(images) if images else np.zeros(0, np.uint8),
        "groups": np.array(groups, np.int32),
        "names": np.frombuffer("\n".join(names).encode(), np.uint8),
        "lengths": np.array([len(segment.tokens) for segment in segments], np.int32),
    } | {name: np.concatenate([getattr(segment, name) for segment in segments]) for name in PER_POSITION}


def to_bytes(columns: Mapping[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(column) for name, column in columns.items()})


def with_told(columns: Columns, told: Sequence[TopK], num_classes: int) -> Columns:
    """The record with what a teacher says of each variant's positions that carry loss. Ids of 16 bits take two bytes.

    Logarithms are float32: half as many bits would be off by 0.4 % of a probability of 1 in 3,000.
    """
    ids, log_probs, log_rest = (np.concatenate(parts) for parts in zip(*told, strict=True))
    ids = ids.astype(np.uint16 if num_classes <= 1 << 16 else np.int32)
    return columns | dict(zip(TOLD, (ids, log_probs, log_rest), strict=True))


def variants_of(columns: Columns) -> list[Segment]:
    """The record's variants, without the picture."""
    ends = np.cumsum(columns["lengths"])[:-1]
    parts = zip(*(np.split(columns[name], ends) for name in PER_POSITION), strict=True)
    segments = [Segment(*part, images=[]) for part in parts]
    if TOLD[0] not in columns:
        return segments
    ends = np.cumsum([np.count_nonzero(segment.loss_weights) for segment in segments])[:-1]
    told = zip(*(np.split(columns[name], ends) for name in TOLD), strict=True)
    return [segment._replace(told=TopK(*said)) for segment, said in zip(segments, told, strict=True)]


def from_bytes(content: bytes, told: bool = False) -> Record:
    """told: with what a teacher says, where the record has that."""
    from safetensors import deserialize

    columns = {
        name: np.frombuffer(stored["data"], DTYPES[stored["dtype"]]).reshape(stored["shape"])
        for name, stored in deserialize(content)
        if told or name not in TOLD
    }
    names = columns["names"].tobytes().decode().split("\n")
    return Record(columns["images"], columns["groups"], names, variants_of(columns))


# --- a directory ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class About:
    """prepared.json.

    store:    what stands for a picture: "pixels" (whatever the vision room takes), or the tower's "features".
    records:  how many there are, when all are there.
    settings: what the records depend on, by the names that people know; see `jaxfusion.prepare.settings_of`.
    variants: the most of a conversation that is learned in random order, with one of several answers.
    tower:    a fingerprint of the tower's weights as it computed with them; "" for pixels.
    teacher:  where it has spoken: its name, a fingerprint of its files, top_k, temperature, dtype, and rows of its
              vocabulary.
    measured: milliseconds an image, one after the other; see `jaxfusion.prepare`.
    """

    store: Literal["pixels", "features"]
    records: int
    settings: dict[str, Setting]
    variants: int
    tower: str = ""
    teacher: dict[str, Setting] = field(default_factory=dict)
    complete: bool = False
    measured: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "About":
        """Raises UserError where there is none, or it cannot be read."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except OSError:
            raise UserError(
                f"config.data.prepared: there is no {path}; prepare the data by --mode prepare --output {path.parent}"
            ) from None
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: broken ({error}); prepare the data again in another --output") from None

    @property
    def gain(self) -> str:
        """What was measured, in words."""
        text = "{read_ms:.2f} ms to read back, {make_ms:.2f} ms to make from the data set"
        if "tower_ms" in self.measured:
            text += " and {tower_ms:.2f} ms for the tower on {device}"
        if "teacher_ms" in self.measured:
            text += " and {teacher_ms:.2f} ms for the teacher"
        return text.format(**self.measured)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Prepared(Sequence):
    """A finished directory's records, by their number in the data set's split. Threads and processes may share it."""

    def __init__(self, directory: str | Path, told: bool = False) -> None:
        """told: whether records bring what a teacher says, where it has spoken.

        Raises UserError for a directory that is not there, not finished, or lacks shards."""
        self.directory, self.told = Path(directory), told
        self.about = About.read(self.directory / ABOUT)
        if not self.about.complete:
            raise UserError(
                f"config.data.prepared: {directory} is not finished; go on with the --mode prepare that began it"
            )
        if len(self) != self.about.records:
            raise UserError(
                f"config.data.prepared: {directory} holds {len(self)} records and {ABOUT} speaks of "
                f"{self.about.records}; copy all of its files, or prepare the data again"
            )

    @property
    def features(self) -> bool:
        return self.about.store == "features"

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._paths)

    def __len__(self) -> int:
        return len(self._source) if self._paths else 0

    def __getitem__(self, place: int) -> Record:
        return from_bytes(self._source[place], self.told)

    @cached_property
    def _paths(self) -> list[Path]:
        return sorted(self.directory.glob("*.array_record"))

    @cached_property
    def _source(self) -> Sequence[bytes]:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        return ArrayRecordDataSource([str(path) for path in self._paths])


class Shard(NamedTuple):
    """A file that is there as a whole or not at all, and the records that go into it."""

    path: Path
    places: range

    def write(self, contents: Iterable[bytes]) -> None:
        """Raises UserError where the file system does not take it."""
        from array_record.python.array_record_module import ArrayRecordWriter

        partial = self.path.with_name(self.path.name + ".partial")
        with _written(self.path.parent):
            writer = ArrayRecordWriter(str(partial), "group_size:1")  # each record can be read without its neighbours
        try:
            for content in contents:
                with _written(self.path.parent):
                    writer.write(content)
        finally:
            with _written(self.path.parent):
                writer.close()
        with _written(self.path.parent):
            os.replace(partial, self.path)


@contextmanager
def _written(directory: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # array_record raises the latter for what the system refuses
        raise UserError(f"{directory}: cannot be written ({error}); make room there") from error


def shards_of(directory: Path, records: int, each: int) -> Iterator[Shard]:
    """All shards of a directory, those that are there already included."""
    starts = range(0, records, each)
    for number, start in enumerate(starts):
        path = directory / f"records-{number:05}-of-{len(starts):05}.array_record"
        yield Shard(path, range(start, min(start + each, records)))


def check_settings(
    theirs: Mapping[str, Setting], ours: Mapping[str, Setting], refuse: Callable[[str, Setting, Setting], str]
) -> None:
    """Raises UserError, in the words of `refuse`, for the first setting that differs."""
    for name in {**theirs, **ours}:
        if theirs.get(name) != ours.get(name):
            raise UserError(refuse(name, theirs.get(name), ours.get(name)))
