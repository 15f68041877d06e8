"""Where the records of a large file are, kept on disk so that the file is looked through once."""

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

# Smaller files are looked through faster than anybody notices.
LARGE = 64 * 2**20

# Of what is found and kept: raise it with any change of that, so that indexes of before are not read.
VERSION = 3

Index = dict[str, np.ndarray]


def indexed(path: Path, kind: str, look_through: Callable[[], Index]) -> Index:
    """What `look_through` finds in the file: read back from ~/.cache/jaxfusion/indexes (or under XDG_CACHE_HOME) where
    the same file, by its path, size and time of change, has been looked through before. kind: of the index."""
    status = path.stat()
    if status.st_size < LARGE:
        return look_through()
    name = f"{VERSION}\n{kind}\n{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = home / "jaxfusion" / "indexes" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npz"
    try:
        with np.load(kept, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # none, or not whole
        index = look_through()
    partial = kept.with_name(f"{kept.stem}.{os.getpid()}.partial")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, **index)
        os.replace(partial, kept)
    except OSError:  # no room, or no place to write: the file is looked through again next time
        partial.unlink(missing_ok=True)
    return index
