"""The file of a bulk job's answers: a JSON line for each record, in the order in which they are done.

Beside it stands what the job was begun with, so that nothing else is added to it. A line that was torn when the job was
killed is cut off, and its record is done anew.
"""

import glob
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from jaxfusion.bulk.inputs import Id
from jaxfusion.data.prepared import Setting, check_settings
from jaxfusion.errors import UserError
from jaxfusion.files import write_json

ABOUT = ".about.json"


class Answers:
    """done: ids that have a line. errors: how many of these lines are of records that could not be answered."""

    def __init__(self, path: Path, file: BinaryIO, done: set[Id], errors: int) -> None:
        self.path, self.done, self.errors = path, done, errors
        self._file = file

    def write(self, id: Id, row: Mapping[str, Any]) -> None:
        """Adds a line; once this returns, a killed job does not lose it. Raises UserError where there is no room."""
        # A lone surrogate, which file names and JSON may hold, becomes the escape that JSON has for it.
        line = json.dumps({"id": id, **row}, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); make room there and run the same command again"
            ) from error
        self.done.add(id)
        self.errors += "error" in row


@contextmanager
def open_answers(
    path: Path, settings: Mapping[str, Setting], defaults: Mapping[str, Setting] = MappingProxyType({})
) -> Iterator[Answers]:
    """The file with what it holds already.

    settings: what answers depend on, by the names that people know.
    defaults: what a file was begun with that does not name a setting, which came later.
    Raises UserError where it cannot be written, holds anything but answers, or was begun with other settings, and
    where another process is at work on it.
    """
    from filelock import FileLock, Timeout

    about = path.with_name(path.name + ABOUT)
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        file = path.open("r+b" if path.exists() else "w+b")
    except Timeout:
        raise UserError(f"--output: another process is at work on {path}; wait for it, or name another file") from None
    except OSError as error:
        raise UserError(f"--output: {path} cannot be written ({error.strerror}); name another file") from error
    with lock, file:
        done, errors, size = _read(path, file)
        if done:
            _check_same(about, settings, defaults, path)
        elif size < os.fstat(file.fileno()).st_size and not about.exists():
            raise _foreign(path)
        else:
            write_json(about, dict(settings))
        file.truncate(size)
        file.seek(size)
        yield Answers(path, file, done, errors)


def _read(path: Path, file: BinaryIO) -> tuple[set[Id], int, int]:
    """Ids, errors among them, and the size of all whole lines."""
    done: set[Id] = set()
    errors = size = 0
    for line in file:
        if not line.endswith(b"\n"):
            break
        try:
            row = json.loads(line)
            done.add(row["id"])
        except (ValueError, KeyError, TypeError):
            raise _foreign(path) from None
        errors += "error" in row
        size += len(line)
    return done, errors, size


def _foreign(path: Path) -> UserError:
    return UserError(f"--output: {path} holds something else than answers of a bulk job; name another file")


def _check_same(about: Path, settings: Mapping[str, Setting], defaults: Mapping[str, Setting], path: Path) -> None:
    try:
        theirs = {**defaults, **json.loads(about.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError):
        raise UserError(
            f"--output: what {path} was begun with is not known, since {about.name} is missing or broken; name another "
            "file"
        ) from None
    check_settings(
        theirs,
        settings,
        lambda name, theirs, here: (
            f"--output: {path} was begun with {name} = {theirs!r}, and here it is {here!r}; name another file, or "
            "change it back"
        ),
    )


def shard_path(output: Path, index: int, count: int) -> Path:
    """Where one of `count` processes writes. Raises UserError where the job was begun by another number of them."""
    name = re.compile(rf"{re.escape(output.stem)}-\d{{5}}-of-(\d{{5}}){re.escape(output.suffix)}")
    others = {1: output} if output.exists() else {}
    for path in output.parent.glob(f"{glob.escape(output.stem)}-*-of-*{glob.escape(output.suffix)}"):
        if found := name.fullmatch(path.name):
            others[int(found[1])] = path
    others.pop(count, None)
    for number, path in others.items():
        raise UserError(
            f"--output: {path} is of a job that was begun by {number} processes, and here they are {count}; go on with "
            "as many, or name another file"
        )
    return output if count == 1 else output.with_name(f"{output.stem}-{index:05}-of-{count:05}{output.suffix}")
