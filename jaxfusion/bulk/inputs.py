"""What a bulk job reads: a directory of pictures, a .jsonl, a .parquet, or a .tar in WebDataset's layout.

found = open_input(Path("photos"))
for place, parse in found.read(range(len(found.ids))):
    fields = parse()  # {"image": ..., "prompt": ...}, or UserError where the record is broken
"""

import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxfusion.data.sources.files import PICTURES, files_below
from jaxfusion.data.sources.lines import Lines
from jaxfusion.data.sources.objects import parse_object
from jaxfusion.data.sources.parquet import import_parquet
from jaxfusion.data.sources.webdataset import Part, TarRecords, fields_of
from jaxfusion.errors import UserError

Id = str | int
Fields = Mapping[str, Any]
Parse = Callable[[], Fields]

# Of a record; whatever else it holds is left alone.
FIELDS = ("id", "image", "images", "video", "video_times", "prompt", "messages")

# Rows of a Parquet file that are in memory at once; they may hold pictures.
PARQUET_ROWS = 32


@dataclass(frozen=True)
class Input:
    """folder: what paths in records are relative to. ids: of all records, in order, no two alike.

    read: gives the records at some places, in increasing order, from one thread; what it gives may be parsed in any.
    """

    folder: Path
    ids: Sequence[Id]
    read: Callable[[Sequence[int]], Iterator[tuple[int, Parse]]]


def open_input(path: Path) -> Input:
    """Looks through the ids of all records. Raises UserError where the file is none of these, empty or broken as a
    whole, and where two records have the same id."""
    kinds = {".jsonl": _lines, ".parquet": _rows, ".tar": _members}
    if path.is_dir():
        found = _pictures(path)
    elif not path.exists():
        raise UserError(f"--input: there is no {path}; check the path")
    elif path.suffix.lower() not in kinds:
        raise UserError(f"--input: {path} is no directory of pictures, {', '.join(kinds)} file; name one of these")
    else:
        try:
            found = kinds[path.suffix.lower()](path)
        except OSError as error:
            raise UserError(f"--input: {path} cannot be read ({error.strerror or error}); check the file") from error
    if not found.ids:
        raise UserError(f"--input: {path} holds no records; name another")
    if len(set(found.ids)) < len(found.ids):
        twice = next(name for name, count in Counter(found.ids).items() if count > 1)
        raise UserError(f"--input: {path} has the id {twice!r} twice; give each record one of its own")
    return replace(found, read=partial(_read, path, found.read))


def _read(
    path: Path, read: Callable[[Sequence[int]], Iterator[tuple[int, Parse]]], places: Sequence[int]
) -> Iterator[tuple[int, Parse]]:
    try:
        yield from read(places)
    except (OSError, ValueError) as error:
        raise UserError(f"--input: {path} cannot be read any further ({error}); check the file") from error


def _pictures(path: Path) -> Input:
    """Each is a record, known by its path in the directory; what is hidden is left out."""
    names = sorted(file.relative_to(path).as_posix() for file in files_below(path, PICTURES))
    return Input(path, names, lambda places: ((place, partial(dict, image=names[place])) for place in places))


def _lines(path: Path) -> Input:
    """A JSON object each; one without an id is known by its line, counted from 1."""
    lines = Lines(path)
    ids = [_line_id(lines[place], lines.number(place)) for place in range(len(lines))]

    def read(places: Sequence[int]) -> Iterator[tuple[int, Parse]]:
        for place in places:
            yield place, partial(parse_object, lines[place], f"{path.name}:{lines.number(place)}")

    return Input(path.parent, ids, read)


def _line_id(line: bytes, number: int) -> Id:
    try:
        return _id(parse_object(line, "").get("id"), number)
    except UserError:  # which is said when its turn comes
        return number


def _id(value: Any, number: int) -> Id:
    return value if isinstance(value, Id) and not isinstance(value, bool) else number


def _rows(path: Path) -> Input:
    """A record each; one without an id is known by its row, counted from 1."""
    parquet = import_parquet(path, "--input: ")
    from pyarrow import ArrowException

    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in FIELDS if name in file.schema_arrow.names]
            given = file.read(["id"])["id"].to_pylist() if "id" in columns else [None] * file.metadata.num_rows
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except ArrowException as error:
        raise UserError(f"--input: {path} is not a whole Parquet file ({error}); write it again") from error

    def read(places: Sequence[int]) -> Iterator[tuple[int, Parse]]:
        wanted, first = set(places), 0
        with parquet.ParquetFile(path) as file:
            for group, size in enumerate(sizes):
                if wanted.isdisjoint(range(first, first + size)):
                    first += size
                    continue
                for batch in file.iter_batches(PARQUET_ROWS, row_groups=[group], columns=columns):
                    for row in range(batch.num_rows):
                        if first + row in wanted:
                            yield first + row, partial(dict, batch.slice(row, 1).to_pylist()[0])
                    first += batch.num_rows

    return Input(path.parent, [_id(value, number) for number, value in enumerate(given, 1)], read)


def _members(path: Path) -> Input:
    """Files of one name up to its first dot are a record, known by that name: pictures, the prompt as .txt, any fields
    as .json."""
    try:
        records = TarRecords(path, whole=True)
    except tarfile.TarError as error:
        raise UserError(f"--input: {path} is not a whole, uncompressed tar ({error}); write it again") from error
    names = [records.name(place) for place in range(len(records))]

    def read(places: Sequence[int]) -> Iterator[tuple[int, Parse]]:
        for place in places:
            yield place, partial(_together, records[place], f"{path.name}:{names[place]}")

    return Input(path.parent, names, read)


def _together(parts: Sequence[Part], where: str) -> Fields:
    texts = [(ending, content) for ending, content in parts if ending.rpartition(".")[2].lower() == "txt"]
    found = fields_of([part for part in parts if part not in texts], where)
    fields = {name: value for name, value in found.items() if name in FIELDS}
    if texts and not fields.keys() & {"prompt", "messages"}:
        fields["prompt"] = fields_of(texts, where)["text"]
    return fields
