"""Tar shards in WebDataset's layout: `webdataset`. Files of one name up to its first dot are a record.

Pictures and videos by their endings; .txt is `text`, .cls `label`; a .json's fields are the record's own, as in `json`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxfusion.data.sources.files import PICTURES, VIDEOS, Reading
from jaxfusion.data.sources.index import Index, indexed
from jaxfusion.data.sources.joined import Finish, Record
from jaxfusion.data.sources.objects import parse_object
from jaxfusion.data.sources.tar import members_of
from jaxfusion.errors import RecordError

SUFFIXES = (".tar",)

Part = tuple[str, bytes]


class TarRecords(Sequence):
    """A shard's records: the endings and contents of their files. damaged: the bytes at which there is no header."""

    def __init__(self, path: Path, *, whole: bool = False) -> None:
        """whole: refuse a tar that is damaged anywhere. Raises OSError, and tarfile.TarError where it is none."""
        self.path, self._reading = path, Reading(path)
        kind = "whole tar" if whole else "tar"
        index = indexed(path, kind, lambda: _look_through(path, whole))
        self._names, self._name_ends = index["names"].tobytes(), index["name_ends"]
        self._firsts, self._starts, self._sizes = index["firsts"], index["starts"], index["sizes"]
        self.damaged = index["damaged"]
        self._endings, self._ending_of = index["endings"].tobytes().decode().split("\n"), index["ending_of"]

    def __len__(self) -> int:
        return len(self._name_ends)

    def name(self, place: int) -> str:
        start = int(self._name_ends[place - 1]) if place else 0
        return self._names[start : int(self._name_ends[place])].decode(errors="surrogateescape")

    def where(self, place: int) -> str:
        return f"{self.path}:{self.name(place)}"

    def __getitem__(self, place: int) -> list[Part]:
        """Raises RecordError where the shard ends within one of the files, or cannot be read any more."""
        parts = []
        for member in range(int(self._firsts[place]), int(self._firsts[place + 1])):
            ending, size = self._endings[self._ending_of[member]], int(self._sizes[member])
            where = f"{self.where(place)}.{ending}"
            content = self._reading.read(int(self._starts[member]), size, where)
            if len(content) < size:
                raise RecordError(where, "the tar ends within it; copy it again")
            parts.append((ending, content))
        return parts


def _look_through(path: Path, whole: bool) -> Index:
    records: dict[str, list[tuple[str, int, int]]] = {}
    damaged = []
    for member in members_of(path, whole=whole):
        if member.size < 0:
            damaged.append(member.start)
        folder, slash, name = member.name.rpartition("/")
        stem, dot, ending = name.partition(".")
        if stem and dot:
            records.setdefault(f"{folder}{slash}{stem}", []).append((ending, member.start, member.size))
    parts = [part for own in records.values() for part in own]
    endings = {ending: number for number, ending in enumerate(dict.fromkeys(part[0] for part in parts))}
    names = [name.encode(errors="surrogateescape") for name in records]
    return {
        "damaged": np.array(damaged, np.int64),
        "names": np.frombuffer(b"".join(names), np.uint8),
        "name_ends": np.cumsum([len(name) for name in names], dtype=np.int64),
        "firsts": np.cumsum([0, *(len(own) for own in records.values())], dtype=np.int64),
        "endings": np.frombuffer("\n".join(endings).encode(errors="replace"), np.uint8),
        "ending_of": np.array([endings[part[0]] for part in parts], np.int32),
        "starts": np.array([part[1] for part in parts], np.int64),
        "sizes": np.array([part[2] for part in parts], np.int64),
    }


class WebDataset(Sequence):
    """A shard's records, and, behind them, the places where it is damaged."""

    def __init__(self, path: Path, finish: Finish) -> None:
        self._records, self._finish = TarRecords(path), finish

    def __len__(self) -> int:
        return len(self._records) + len(self._records.damaged)

    def __getitem__(self, place: int) -> Record:
        if place >= len(self._records):
            at = self._records.damaged[place - len(self._records)]
            raise RecordError(f"{self._records.path}: byte {at}", "a file's header is broken; write the tar again")
        where = self._records.where(place)
        return self._finish(fields_of(self._records[place], where), where)


def fields_of(parts: Sequence[Part], where: str) -> dict[str, Any]:
    """The fields of a record's files. Raises RecordError, by the file, for one that is not what its ending says."""
    fields: dict[str, Any] = {}
    pictures = []
    for ending, content in parts:
        suffix = f".{ending.rpartition('.')[2].lower()}"
        if suffix == ".json":
            fields |= parse_object(content, f"{where}.{ending}")
        elif suffix == ".txt":
            fields.setdefault("text", _text(content, f"{where}.{ending}").strip())
        elif suffix == ".cls":
            text = _text(content, f"{where}.{ending}").strip()
            fields.setdefault("label", int(text) if text.isdecimal() else text)
        elif suffix in PICTURES:
            pictures.append(content)
        elif suffix in VIDEOS:
            fields.setdefault("video", content)
    return fields | ({"image": None, "images": pictures} if pictures else {})


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(where, f"not UTF-8 ({error}); write it again") from None
