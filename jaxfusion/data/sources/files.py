"""The files that a path, a directory or a pattern names, and reading at any place of them from any thread."""

import glob
import os
import re
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from pathlib import Path

from jaxfusion.errors import RecordError, UserError

# Of image files that `read_image` reads.
PICTURES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"))

# Of videos.
VIDEOS = frozenset(
    (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".3gp", ".flv", ".wmv", ".ogv")
)

# Files that a process keeps open at once, those that were read last; some systems allow 256.
KEPT_OPEN = 128

BRACES = re.compile(r"\{([^{}]*)\}")
NUMBERS = re.compile(r"(\d+)\.\.(\d+)")


def files_of(pattern: str, suffixes: Collection[str], setting: str) -> list[Path]:
    """All files of a pattern, in the order of its braces and then of their names.

    pattern:  a file, a directory (all its files with these suffixes, at any depth), or either with `*`, `?`, `[...]`,
              `{a,b}` or `{000..031}` in it.
    Raises UserError, by the setting's name, where a part of the pattern names nothing.
    """
    found: list[Path] = []
    for name in _expanded(os.path.expanduser(pattern)):
        is_pattern = glob.has_magic(name) and not os.path.exists(name)
        paths = sorted(map(Path, glob.glob(name, recursive=True))) if is_pattern else [Path(name)]
        files = [file for path in paths for file in (files_below(path, suffixes) if path.is_dir() else [path])]
        if not files or (not is_pattern and not paths[0].exists()):
            wanted = " or ".join(sorted(suffixes))
            held = f"{name} holds no {wanted} file" if paths and paths[0].is_dir() else f"there is no {name}"
            raise UserError(f"{setting}: {held}; check the path")
        found += files
    return list(dict.fromkeys(found))


def files_below(directory: Path, suffixes: Collection[str]) -> list[Path]:
    """Files with one of the suffixes at any depth, by their path's order; what is hidden is left out.

    Links to directories are followed, to each of these once: one may lead to what it is in itself.
    """
    found, seen = [], set()
    for folder, folders, names in os.walk(directory, followlinks=True):
        own = os.path.realpath(folder)
        if own in seen:
            folders.clear()
            continue
        seen.add(own)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(folder, name)
            for name in sorted(names)
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
    return found


def _expanded(pattern: str) -> Iterator[str]:
    """The pattern once for each choice of its braces, as a shell does it."""
    match = BRACES.search(pattern)
    if not match:
        yield pattern
        return
    numbers = NUMBERS.fullmatch(match[1])
    if numbers:
        first, last, width = int(numbers[1]), int(numbers[2]), len(numbers[1])
        choices = [f"{number:0{width}}" for number in range(first, last + 1)]
    else:
        choices = match[1].split(",")
    for choice in choices:
        yield from _expanded(pattern[: match.start()] + choice + pattern[match.end() :])


class Reading:
    """Reads pieces of a file. Threads may share it, and processes, each of which opens the file for itself."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, start: int, size: int, where: str) -> bytes:
        """What lies beyond the file's end is missing. Raises RecordError, by where, if the file cannot be read."""
        try:
            opened = _opened(self)  # held until it is read, though it may be dropped meanwhile
            return os.pread(opened.descriptor, size, start)
        except OSError as error:
            raise RecordError(where, f"cannot be read ({error.strerror or error}); check the file") from None


class _Opened:
    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # os may be gone where the interpreter ends
        close(self.descriptor)


# Of the whole process; a file that is opened once more is another one, since it may have been replaced.
@lru_cache(KEPT_OPEN)
def _opened(reading: Reading) -> _Opened:
    return _Opened(os.open(reading.path, os.O_RDONLY))
