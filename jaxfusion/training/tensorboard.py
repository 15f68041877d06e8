"""Numbers for TensorBoard, written by whoever gives them: a file that cannot be written is their error at once.

tensorboardX's SummaryWriter writes in a thread, which ends where it cannot; whoever gives numbers then waits for ever.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

SECONDS_BETWEEN_FLUSHES = 30.0


class TensorBoard:
    """One events file. Its methods raise OSError where it cannot be written."""

    def __init__(self, directory: Path, first_step: int) -> None:
        """first_step: numbers of this step and later ones in files that are there already are hidden."""
        tensorboard = _import()
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._event, self._scalar = Event, tensorboard.summary.scalar
        directory.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(directory / "events"))
        self._flushed = time.monotonic()
        start = Event(step=first_step, session_log=SessionLog(status=SessionLog.START), wall_time=time.time())
        self._file.write_event(start)
        self._file.flush()

    def add(self, step: int, numbers: Mapping[str, float | None]) -> None:
        now = time.time()
        for name, value in numbers.items():
            if value is not None:
                self._file.write_event(self._event(step=step, summary=self._scalar(name, value), wall_time=now))
        if time.monotonic() - self._flushed > SECONDS_BETWEEN_FLUSHES:  # which waits for the disk
            self._flushed = time.monotonic()
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def _import() -> ModuleType:
    """tensorboardX, which would import torch where that is installed: seconds at every start for nothing."""
    unloaded = "torch" not in sys.modules
    if unloaded:
        sys.modules["torch"] = None  # an import of it fails now, and tensorboardX goes on without
    try:
        import tensorboardX
    finally:
        if unloaded:
            del sys.modules["torch"]
    return tensorboardX
