"""What a source holds, in a few characters: whether it is the same one that a run began with."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxfusion.config.run import DataConfig, OtherDataConfig
from jaxfusion.data.sources import FORMATS
from jaxfusion.data.sources.files import PICTURES, files_below, files_of

# Of a file its size and so many bytes at either end are looked at, of so many files; of all others the number.
BLOCK = 4096
MOST_FILES = 1000


def contents_of(source: Sequence[Any], config: DataConfig | OtherDataConfig) -> str:
    """A fingerprint that is quick to take, of what `config` has opened as `source`.

    Of a format's files their sizes and their ends, in order, so that they may be moved; of a folder of classes the
    names in it as well; of a data set of TFDS its name, version, split and numbers of records. What changes in the
    midst of a file without changing its size is not seen.
    """
    found = hashlib.sha256()
    if config.name not in FORMATS:
        found.update(_of_builder(source).encode())
        return found.hexdigest()[:16]
    suffixes = FORMATS[config.name].suffixes
    if suffixes:
        files = files_of(config.path, suffixes, "config.data.path")
    else:
        root = Path(config.path).expanduser()
        files = files_below(root, PICTURES)
        for file in files:
            found.update(os.fsencode(file.relative_to(root)) + b"\n")
    found.update(str(len(files)).encode())
    for place in np.unique(np.linspace(0, len(files) - 1, min(len(files), MOST_FILES)).astype(int)).tolist():
        found.update(_ends(files[place]))
    return found.hexdigest()[:16]


def _ends(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            first = opened.read(BLOCK)
            opened.seek(max(size - BLOCK, 0))
            return b"%d\n" % size + first + opened.read(BLOCK)
    except OSError as error:  # a bad record, of which others say more
        return str(error.errno).encode()


def _of_builder(source: Any) -> str:
    while not hasattr(source, "dataset_info"):
        source = source.source
    info, split = source.dataset_info, str(source.split)
    return f"{info.full_name} {split} {info.splits[split.split('[')[0]].shard_lengths}"
