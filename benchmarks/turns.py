"""Who may use the machine when several benchmarks are run at once: all compile together, and one measures alone."""

import atexit
import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def compiling(turn: Path | None) -> Iterator[None]:
    """Within it nobody measures. turn: a file that all of them name, to lock; None: there are no others."""
    with _locked(turn, fcntl.LOCK_SH):
        yield


@contextmanager
def measuring(turn: Path | None) -> Iterator[None]:
    """Within it nobody else compiles or measures; it waits for those who do."""
    with _locked(turn, fcntl.LOCK_EX):
        yield


def measure_to_the_end(turn: Path | None) -> None:
    """`measuring` until the process ends, which alone gives a GPU's memory back."""
    stack = ExitStack()
    stack.enter_context(measuring(turn))
    atexit.register(stack.close)


@contextmanager
def _locked(turn: Path | None, kind: int) -> Iterator[None]:
    if turn is None:
        yield
        return
    with turn.open("a") as file:
        fcntl.flock(file, kind)  # until the file is closed
        yield
