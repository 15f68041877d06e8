"""What a bulk job reads: a directory of pictures, a .jsonl, a .parquet, or a .tar in WebDataset's layout.

found = open_input(Path("photos"))
for place, parse in found.read(range(len(found.ids))):
    fields = parse()  # {"image": ..., "prompt": ...}, or UserError where the record is broken
"""

import json
import tarfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxfusion.errors import UserError

Id = str | int
Fields = Mapping[str, Any]
Parse = Callable[[], Fields]

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
)  # of image files that `read_image` reads

# Of a record; whatever else it holds is left alone.
FIELDS = ("id", "image", "images", "prompt", "messages")

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
    below = (file.relative_to(path) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    names = sorted(file.as_posix() for file in below if not any(part.startswith(".") for part in file.parts))
    return Input(path, names, lambda places: ((place, partial(dict, image=names[place])) for place in places))


def _lines(path: Path) -> Input:
    """A JSON object each; one without an id is known by its line, counted from 1."""
    ids: list[Id] = []
    numbers, starts = array("Q"), array("Q")
    with path.open("rb") as file:
        start = 0
        for number, line in enumerate(file, 1):
            if line.strip():
                ids.append(_line_id(line, number))
                numbers.append(number)
                starts.append(start)
            start += len(line)

    def read(places: Sequence[int]) -> Iterator[tuple[int, Parse]]:
        with path.open("rb") as file:
            for place in places:
                file.seek(starts[place])
                yield place, partial(_object, file.readline(), f"{path.name}:{numbers[place]}")

    return Input(path.parent, ids, read)


def _line_id(line: bytes, number: int) -> Id:
    try:
        return _id(_object(line, "").get("id"), number)
    except UserError:  # which is said when its turn comes
        return number


def _id(value: Any, number: int) -> Id:
    return value if isinstance(value, Id) and not isinstance(value, bool) else number


def _object(text: bytes, where: str) -> Fields:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); correct it") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: a JSON object is wanted; write {{...}}")
    return value


def _rows(path: Path) -> Input:
    """A record each; one without an id is known by its row, counted from 1."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise UserError(f"--input: to read {path.name}, pip install 'jaxfusion[parquet]'") from None
    try:
        with ParquetFile(path) as file:
            columns = [name for name in FIELDS if name in file.schema_arrow.names]
            given = file.read(["id"])["id"].to_pylist() if "id" in columns else [None] * file.metadata.num_rows
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except ArrowException as error:
        raise UserError(f"--input: {path} is not a whole Parquet file ({error}); write it again") from error

    def read(places: Sequence[int]) -> Iterator[tuple[int, Parse]]:
        wanted, first = set(places), 0
        with ParquetFile(path) as file:
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
    records: dict[str, list[tuple[str, int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, slash, name = member.name.rpartition("/")
                stem, dot, ending = name.partition(".")
                if member.isfile() and stem and dot:
                    suffix = f".{ending.rpartition('.')[2].lower()}"
                    place = suffix, member.offset_data, member.size
                    records.setdefault(f"{folder}{slash}{stem}", []).append(place)
    except tarfile.TarError as error:
        raise UserError(f"--input: {path} is not a whole, uncompressed tar ({error}); write it again") from error
    names = list(records)

    def read(places: Sequence[int]) -> Iterator[tuple[int, Parse]]:
        with path.open("rb") as file:
            for place in places:
                parts = []
                for suffix, start, size in records[names[place]]:
                    file.seek(start)
                    parts.append((suffix, file.read(size)))
                yield place, partial(_together, parts, f"{path.name}:{names[place]}")

    return Input(path.parent, names, read)


def _together(parts: Sequence[tuple[str, bytes]], name: str) -> Fields:
    fields: dict[str, Any] = {}
    for suffix, content in parts:
        if suffix == ".json":
            fields |= _object(content, f"{name}.json")
    for suffix, content in parts:
        if suffix == ".txt" and not fields.keys() & {"prompt", "messages"}:
            try:
                fields["prompt"] = content.decode().strip()
            except UnicodeDecodeError as error:
                raise UserError(f"{name}.txt: not UTF-8 ({error}); write it again") from None
    pictures = [content for suffix, content in parts if suffix in SUFFIXES]
    return fields | ({"image": None, "images": pictures} if pictures else {})
