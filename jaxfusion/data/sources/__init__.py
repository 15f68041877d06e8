"""Files that people have, as sequences of records that can be read at any place: one small file a format.

A record is a dict of fields that tasks read by name, with `images`, a list of paths and bytes of image files, and
`origin`, which names the file and the line or member of it. Threads and processes may share a source. `source[place]`
raises RecordError for what is broken; opening raises UserError where nothing in the file can be read.
"""

import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from jaxfusion.config.run import DataConfig, OtherDataConfig
from jaxfusion.data.fields import NAMES
from jaxfusion.data.sources import coco, objects, parquet, text, webdataset
from jaxfusion.data.sources.files import files_of
from jaxfusion.data.sources.folder import Folder
from jaxfusion.data.sources.joined import Blocks, Chosen, Finish, Joined, Record, names_of
from jaxfusion.data.sources.pictures import finished
from jaxfusion.errors import RecordError, UserError

# Where no test_path is given, each so-manieth record is held out.
HELD_OUT = 20

# What fields are called that tasks read; the names of Parquet's columns begin so.
FIELDS = ("id", "image", "video", "label", *(name for names in NAMES.values() for name in names))


@dataclass(frozen=True)
class Options:
    """root: the directory that pictures' paths start from; None: that of the file. label: the field with the class.
    labels: of the train split, for a held-out one. names: further ones for fields. setting: that paths are of."""

    root: Path | None
    label: str
    labels: tuple[str, ...]
    names: Mapping[str, str]
    setting: str

    def finish_of(self, path: Path) -> Finish:
        return partial(finished, root=self.root_of(path), names=self.names)

    def root_of(self, path: Path) -> Path:
        return self.root or path.parent


Open = Callable[[Sequence[Path], Options], Sequence[Record]]


@dataclass(frozen=True)
class Format:
    """suffixes: of the files that count, in a directory; (): the directories themselves are opened.
    any_fields: whether a record's fields are what its writer wanted."""

    suffixes: tuple[str, ...]
    open: Open
    any_fields: bool = False


class Unreadable(Sequence):
    """A file of which nothing can be read, as one bad record."""

    labels: tuple[str, ...] = ()
    blocks = Blocks(np.zeros(1, np.int64), parquet.MOST)

    def __init__(self, error: RecordError) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, place: int) -> Record:
        raise RecordError(self.error.where, self.error.reason)


def _each(open_one: Callable[[Path, Options], Sequence[Record]]) -> Callable[[Sequence[Path], Options], Joined]:
    """Opens files one by one; one that is not of its format is a bad record."""

    def open_all(paths: Sequence[Path], options: Options) -> Joined:
        return Joined([_opened(partial(open_one, path, options), path) for path in paths])

    return open_all


def _opened(open_file: Callable[[], Sequence[Record]], path: Path) -> Sequence[Record]:
    try:
        return open_file()
    except RecordError as error:
        return Unreadable(error)
    except (OSError, ValueError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        return Unreadable(RecordError(str(path), f"cannot be read ({reason}); write it again"))


def _open_parquet(paths: Sequence[Path], options: Options) -> Sequence[Record]:
    groups = parquet.Groups()
    parquet.import_parquet(paths[0])

    asked = {options.label, *(path.partition(".")[0] for path in options.names.values())}

    def wanted(name: str) -> bool:
        return name.startswith(FIELDS) or name in asked

    def open_one(path: Path, options: Options) -> Sequence[Record]:
        return parquet.Parquet(path, options.finish_of(path), wanted, options.label, groups)

    source = _each(open_one)(paths, options)
    groups.keep(source.blocks.window)  # the least of all files'
    return source


def _open_json(path: Path, options: Options) -> Sequence[Record]:
    own = (path.partition(".")[0] for path in options.names.values())
    return objects.open_objects(path, options.finish_of(path), (*FIELDS, options.label, *own))


def _open_coco(path: Path, options: Options) -> Sequence[Record]:
    return coco.Captions(path, options.root_of(path), options.setting)


def _open_webdataset(path: Path, options: Options) -> Sequence[Record]:
    return webdataset.WebDataset(path, options.finish_of(path))


def _open_text(path: Path, options: Options) -> Sequence[Record]:
    return text.TextLines(path)


FORMATS: dict[str, Format] = {
    "json": Format(objects.SUFFIXES, _each(_open_json), any_fields=True),
    "coco": Format(coco.SUFFIXES, _each(_open_coco)),
    "vqa": Format(coco.SUFFIXES, lambda paths, options: Joined(coco.open_vqa(paths, options.root, options.setting))),
    "folder": Format((), lambda paths, options: Joined([Folder(path, options.labels) for path in paths])),
    "webdataset": Format(webdataset.SUFFIXES, _each(_open_webdataset), any_fields=True),
    "parquet": Format(parquet.SUFFIXES, _open_parquet, any_fields=True),
    "text": Format(text.SUFFIXES, _each(_open_text)),
    "documents": Format(text.SUFFIXES, lambda paths, options: text.Documents(paths)),
}


def open_format(config: DataConfig) -> tuple[Sequence[Record], Sequence[Record], tuple[str, ...]]:
    """The records to train on, those that are held out, and the names of the classes.

    Raises UserError where the files are not there, or hold no records.
    """
    train, labels = open_files(config, config.path, "config.data.path", config.labels)
    if config.test_path:
        test, _ = open_files(config, config.test_path, "config.data.test_path", labels)
        return train, test, labels
    places = np.arange(len(train))
    held_out = places % HELD_OUT == HELD_OUT - 1
    if not held_out.any():
        raise UserError(
            f"config.data.test_path: {config.path} has {len(train)} records, of which none is held out; name held-out "
            "ones"
        )
    return Chosen(train, places[~held_out]), Chosen(train, places[held_out]), labels


def open_files(
    config: DataConfig | OtherDataConfig, pattern: str, setting: str, labels: tuple[str, ...]
) -> tuple[Sequence[Record], tuple[str, ...]]:
    """All records of the files that a pattern names, and the names of their classes. setting: that the pattern is of.

    labels: where they are known. Raises UserError where the files are not there, or hold no records.
    """
    section = setting.rpartition(".")[0]
    if not pattern:
        raise UserError(f"{setting}: {config.name!r} is a format; name its files")
    root = Path(config.image_root).expanduser() if config.image_root else None
    if root and not root.is_dir():
        raise UserError(f"{section}.image_root: there is no directory {root}; check the path")
    names = names_of(config.fields, f"{section}.fields")
    options = Options(root, config.label, labels, names, setting)
    form = FORMATS[config.name]
    if names and not form.any_fields:
        raise UserError(f"{section}.fields: records of {config.name!r} have the same fields always; take it away")
    paths = files_of(pattern, form.suffixes, setting) if form.suffixes else _directories(pattern, setting)
    source = form.open(paths, options)
    if not len(source):
        raise UserError(f"{setting}: {pattern} holds no records; name other files")
    return source, labels or tuple(getattr(source, "labels", ()))


def _directories(pattern: str, setting: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if not path.is_dir():
        raise UserError(f"{setting}: there is no directory {path}; check the path")
    return [path]
