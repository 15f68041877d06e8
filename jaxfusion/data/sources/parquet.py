"""Parquet as Hugging Face's datasets writes it: `parquet`. Columns are fields, pictures structs of bytes and a path.

Rows can only be read by the group, so groups are kept as long as memory for them is left, and training takes the rows
of a few groups at a time in random order (`jaxfusion.data.order`).
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxfusion.data.sources.joined import Blocks, Finish, Record
from jaxfusion.errors import RecordError, UserError

SUFFIXES = (".parquet",)

# Bytes of the row groups that are taken at a time, and how many these are, however large or small.
WINDOW_BYTES = 2**28
FEWEST, MOST = 4, 64
# A row group of more bytes, as it is in memory, is refused.
LARGEST = 2**31


class Groups:
    """The row groups that were read last, of all files; threads may share it, and of two that want the same group one
    reads it."""

    def __init__(self) -> None:
        self.keep(FEWEST)
        self._start()

    def keep(self, window: int) -> None:
        """window: how many are taken at a time; readers ahead are in the next window already."""
        self.kept = window + 2

    def _start(self) -> None:
        self._tables: OrderedDict[tuple[Path, int], Any] = OrderedDict()
        self._changing, self._reading = threading.Lock(), {}

    def __getstate__(self) -> dict:
        return {"kept": self.kept}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._start()

    def table(self, file: "ParquetRows", group: int) -> Any:
        key = file.path, group
        with self._changing:
            if key in self._tables:
                self._tables.move_to_end(key)
                return self._tables[key]
            own = self._reading.setdefault(key, threading.Lock())
        with own:
            with self._changing:
                if key in self._tables:
                    return self._tables[key]
            table = file.read_group(group)
            with self._changing:
                self._tables[key] = table
                self._reading.pop(key, None)
                while len(self._tables) > self.kept:
                    self._tables.popitem(last=False)
        return table


class ParquetRows(Sequence):
    """A file's rows as dicts.

    class_names: of the columns that hold classes, where datasets put them down. blocks: the row groups.
    """

    def __init__(self, path: Path, wanted: Callable[[str], bool] = bool, groups: Groups | None = None) -> None:
        """wanted: whether a column is to be read.

        Raises UserError where pyarrow is missing, OSError, and pyarrow.ArrowException for a file that is not whole.
        """
        self.path, self._groups = path, groups or Groups()
        with self._file() as file:
            self.columns = list(filter(wanted, file.schema_arrow.names))
            groups_ = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
            sizes = [group.num_rows for group in groups_]
            largest = max((group.total_byte_size for group in groups_), default=0)
            window = WINDOW_BYTES // max(largest, 1)
            features = (file.schema_arrow.metadata or {}).get(b"huggingface")
        if largest > LARGEST:
            raise ValueError(f"row groups of {largest / 1e9:,.1f} GB must be read as a whole; make them of 100 MB")
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self.blocks = Blocks(self._ends - np.array(sizes, np.int64), min(max(window, FEWEST), MOST))
        self.class_names = _class_names(features)

    def _file(self) -> Any:
        return import_parquet(self.path).ParquetFile(self.path)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, place: int) -> dict[str, Any]:
        """Raises pyarrow.ArrowException or OSError where the row's group is damaged."""
        group = int(np.searchsorted(self._ends, place, side="right"))
        row = place - int(self.blocks.starts[group])
        return self._groups.table(self, group).slice(row, 1).to_pylist()[0]

    def read_group(self, group: int) -> Any:
        with self._file() as file:
            table = file.read_row_group(group, columns=self.columns, use_threads=False)
        wanted = int(self._ends[group] - self.blocks.starts[group])
        if table.num_rows != wanted:
            raise ValueError(f"{table.num_rows} of {wanted} rows")
        return table


def import_parquet(path: Path, setting: str = "") -> Any:
    """pyarrow.parquet. Raises UserError where it is not installed."""
    try:
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UserError(f"{setting}to read {path.name}, pip install 'jaxfusion[parquet]'") from None
    return parquet


class Parquet(Sequence):
    def __init__(self, path: Path, finish: Finish, wanted: Callable[[str], bool], label: str, groups: Groups) -> None:
        """label: the column that holds the class. Raises RecordError for a file that cannot be read."""
        with _named(str(path), "it"):
            self._rows, self.path, self._finish = ParquetRows(path, wanted, groups), path, finish
        self.labels, self.blocks = self._rows.class_names.get(label, ()), self._rows.blocks

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> Record:
        where = f"{self.path}: row {place}"
        with _named(where, "its row group"):
            row = self._rows[place]
        return self._finish(row, where)


@contextmanager
def _named(where: str, what: str) -> Iterator[None]:
    """What pyarrow raises, which is of many classes, as RecordError."""
    try:
        yield
    except Exception as error:
        known = isinstance(error, OSError | ValueError | MemoryError | OverflowError)
        if not known and type(error).__module__.partition(".")[0] != "pyarrow":
            raise
        reason = " ".join(str(error).split())[:200]
        raise RecordError(where, f"{what} cannot be read ({reason}); write the file again") from None


def _class_names(features: bytes | None) -> dict[str, tuple[str, ...]]:
    """Of the columns that datasets knows as classes, from what it notes in the file."""
    try:
        columns = json.loads(features or b"{}").get("info", {}).get("features", {})
        return {
            name: tuple(map(str, column["names"]))
            for name, column in columns.items()
            if isinstance(column, dict) and column.get("_type") == "ClassLabel"
        }
    except (ValueError, AttributeError, TypeError, KeyError):  # damaged, or somebody else's
        return {}
