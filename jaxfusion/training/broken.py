"""Checkpoints that a disk or a copy has left broken: the newest one that is whole is found before them."""

import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import jax

from jaxfusion.errors import UserError

Read = TypeVar("Read")
Tell = Callable[[str], None]

MAX_REASON = 200  # letters: Orbax's and TensorStore's messages go on for pages


class BrokenError(Exception):
    """What cannot be read though it should be; the message says why, in a few words."""


def tell_stderr(line: str) -> None:
    print(f"jaxfusion: {line}", file=sys.stderr)


def newest_whole(
    directory: Path, steps: Iterable[int], read: Callable[[int], Read]
) -> tuple[int, Read, dict[int, str]]:
    """(the newest step that can be read, what was read, why each newer one could not be).

    Raises UserError where none can be. All stay as they are: what looks so may be another version's, say.
    """
    broken: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        try:
            return step, read_or_broken(lambda step=step: read(step)), broken
        except BrokenError as error:
            broken[step] = str(error)
    why = "; ".join(f"{step}: {reason}" for step, reason in broken.items())
    raise UserError(
        f"{directory}: every checkpoint is broken ({why}); put a whole copy there, or train in a new workdir"
    )


def read_or_broken(read: Callable[[], Read]) -> Read:
    """read(); what the files are to blame for becomes BrokenError, unlike another model's, or want of memory or rights.

    Orbax and TensorStore raise whatever comes up for a damaged file, from KeyError to a plain Exception.
    """
    try:
        return read()
    except (UserError, BrokenError, MemoryError, PermissionError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        _forget_remains()
        if str(error).startswith(("RESOURCE_EXHAUSTED", "PERMISSION_DENIED")):
            raise
        raise BrokenError(reason_of(error)) from error


def _forget_remains() -> None:
    """Of a read that failed Orbax leaves coroutines, of whose ends Python tells at length when it comes upon them."""
    usual = sys.unraisablehook
    if getattr(usual, "of_jaxfusion", False):
        return

    def tell(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            usual(unraisable)

    tell.of_jaxfusion = True
    sys.unraisablehook = tell


def reason_of(error: BaseException) -> str:
    """An error in one line that is not too long; of TensorStore's what the system said alone, if that is the cause."""
    if number := re.search(r"\[os_error_code='(\d+)'", str(error)):
        return os.strerror(int(number[1]))
    if "reading array index" in str(error):  # and then Orbax goes on with slices and addresses
        return "an array's data are truncated or damaged"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."


def set_aside(directory: Path, step: int) -> Path:
    """Renames a checkpoint, so that it counts as none; returns its new place. Raises UserError where that fails."""
    names = (f"{step}.broken" + (f".{number}" if number else "") for number in itertools.count())
    place = next(directory / name for name in names if not (directory / name).exists())
    try:
        (directory / str(step)).rename(place)
    except OSError as error:
        raise UserError(f"{directory / str(step)}: it is broken and cannot be renamed ({error.strerror})") from error
    return place
