"""Which tensor of a checkpoint is which of the model's, and that they fit, from the headers alone."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np

from jaxfusion.errors import UserError
from jaxfusion.pretrained.checkpoint import FLOATS, Checkpoint, Stored
from jaxfusion.pretrained.table import Row, Tensor, tensors

EMBEDDING = "text_embedding/embedding"
VOCABULARY = {EMBEDDING, "output/kernel"}  # may have more rows in the model than in the file
HEAD = "lm_head.weight"  # where embeddings are tied, some files hold them under this name too

LEGACY = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}  # of the first BERTs


@dataclass
class Report:
    """What was read, for people: print it.

    surplus: names in the files that the model has no use for, of parts that it does not have.
    ignored: those that the family is known to have no use for, and copies of tied embeddings.
    grown:   names whose vocabulary was smaller than the model's, with the number of new rows.
    num_bytes: of the tensors that were read, as they are in the files. seconds: of reading them.
    """

    source: str
    num_tensors: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    surplus: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    grown: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.num_tensors} tensors, {self.num_bytes / 1e6:,.0f} MB in {self.seconds:.1f} s"]
        lines += [f"  {name}: {rows} new rows, each the mean of the others" for name, rows in self.grown.items()]
        if self.surplus:
            lines.append(f"  warning: {len(self.surplus)} tensors have no place in the model: {_some(self.surplus)}")
        return "\n".join(lines)


class Match(NamedTuple):
    """A tensor that the model wants and where it lies."""

    wanted: Tensor
    stored: Stored


def match(
    checkpoint: Checkpoint,
    rows: Sequence[Row],
    leaves: Mapping[str, Any],
    *,
    ignored: Sequence[str] = (),
    aliases: Sequence[tuple[str, str]] = (),
) -> tuple[list[Match], Report]:
    """Finds every tensor that the rows want, from the headers alone.

    leaves: path -> anything with a shape. Raises UserError as `read_params` does before it reads.
    """
    wanted = {tensor.name: tensor for tensor in tensors(rows, leaves)}
    stored: dict[str, Stored] = {}
    for tensor in checkpoint.tensors.values():
        name = _canonical(tensor.name, wanted, aliases)
        if name in stored:
            raise UserError(f"{tensor} and {stored[name].name} are both the model's {name}; remove one of them")
        stored[name] = tensor
    missing = [name for name in wanted if name not in stored]
    if missing:
        raise UserError(
            f"{checkpoint.path}: {len(missing)} of {len(wanted)} tensors are missing: {_some(missing)}; "
            "use the config.json that belongs to these weights"
        )
    report = Report(str(checkpoint.path), len(wanted), sum(stored[name].num_bytes for name in wanted))
    for name, tensor in wanted.items():
        new_rows = _check(stored[name], tensor)
        if new_rows:
            report.grown[name] = new_rows
    for name, tensor in stored.items():
        if name not in wanted:
            tied = name.endswith(HEAD) and _check_tied(tensor, wanted, stored)
            known = tied or any(fnmatchcase(name, glob) for glob in ignored)
            (report.ignored if known else report.surplus).append(tensor.name)
    stems = tuple({_stem(row.name) for row in rows})
    if strange := [name for name in report.surplus if any(n.startswith(stems) for n in _names(name, aliases))]:
        raise UserError(
            f"{checkpoint.path}: {len(strange)} tensors belong to parts that the model has, and config.json asks for "
            f"no such: {_some(strange)}; use the config.json that belongs to these weights"
        )
    return [Match(tensor, stored[name]) for name, tensor in wanted.items()], report


def _stem(name: str) -> str:
    """What the names of all that belongs to the same module begin with, or to any layer of the same stack."""
    numbered = re.match(r"(.*?\.)(\{layer\}|\d+)\.", name)
    return numbered[1] if numbered else name.rpartition(".")[0] + "."


def _canonical(name: str, wanted: Mapping[str, Tensor], aliases: Sequence[tuple[str, str]]) -> str:
    names = _names(name, aliases)
    return next((known for known in names if known in wanted), names[1] if len(names) > 1 else names[0])


def _names(name: str, aliases: Sequence[tuple[str, str]]) -> list[str]:
    """All that a tensor in a file may be called in a table, its own name first."""
    for old, new in LEGACY.items():
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return [name, *(canonical + name.removeprefix(prefix) for prefix, canonical in aliases if name.startswith(prefix))]


def _check(stored: Stored, wanted: Tensor) -> int:
    """The number of rows that the model's vocabulary has more. Raises UserError where the tensor does not fit."""
    if stored.dtype not in FLOATS:
        raise UserError(
            f"{stored} holds {stored.dtype}; only {', '.join(FLOATS)} can be loaded, so save it in one of them, "
            "not quantised"
        )
    have, want = stored.shape, wanted.shape
    if have == want:
        return 0
    if wanted.row.path in VOCABULARY and len(have) == len(want) and have[1:] == want[1:] and 0 < have[0] < want[0]:
        return want[0] - have[0]
    raise UserError(
        f"{stored} is of shape {have}, and config.json asks for {want}; "
        "use the config.json that belongs to these weights"
    )


def _check_tied(head: Stored, wanted: Mapping[str, Tensor], stored: Mapping[str, Stored]) -> bool:
    """Whether an output matrix that the model has no place for is its embedding once more.

    Raises UserError for one that is another, for the model would compute something else than it was trained to.
    """
    for name, tensor in wanted.items():
        embedding = stored[name]
        if tensor.row.path == EMBEDDING and (embedding.shape, embedding.dtype) == (head.shape, head.dtype):
            if _same_bytes(embedding.read(), head.read()):
                return True
            raise UserError(
                f"{head} differs from {name}, to which config.json ties it; "
                'set "tie_word_embeddings" to false in config.json, and in its text_config where it has one'
            )
    return False


def _same_bytes(a: np.ndarray, b: np.ndarray, step: int = 1 << 20) -> bool:
    """Piece by piece, for a comparison of all at once would take as much memory as they do."""
    a, b = a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8)
    return all(np.array_equal(a[i : i + step], b[i : i + step]) for i in range(0, len(a), step))


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(sorted(names)[:most]) + more
