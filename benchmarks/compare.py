"""Our step and peers' in turn, each in a process of its own: A B A B, medians, ratios.

On a CPU all processes live at once, and the others sleep while one works. On a GPU, whose memory one step may fill, a
process puts its state there when its turn begins, ends with its turn, and starts anew for the next; what XLA compiled
is kept.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import MutableMapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.turns import compiling, measuring
from jaxfusion.errors import UserError

ROOT = Path(__file__).parents[1]
# How far a peer's first loss may be from ours, relatively: the same numbers, rounded elsewhere.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


class Side:
    """A worker process and the times it has told."""

    def __init__(self, name: str, settings: dict[str, Any], cache: str, turn: Path | None):
        self.name, self.settings, self.cache, self.turn = name, settings, cache, turn
        self.process: subprocess.Popen[str] | None = None
        self.facts: dict[str, Any] = {}
        self.seconds: list[float] = []

    def start(self) -> None:
        environment = in_our_path() | {"JAX_COMPILATION_CACHE_DIR": self.cache}
        if self.name == "ours":
            set_memory(environment, self.turn)
        else:
            environment["JAX_PLATFORMS"] = "cpu"  # JAX makes a peer's weights and must not take its memory
        command = [sys.executable, "-m", "benchmarks.worker", self.name, json.dumps(self.settings)]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)
        self.begun = False

    def wait(self) -> None:
        """Until it is compiled, or imported."""
        self._answer()

    def begin(self) -> None:
        self.facts, self.begun = self._ask("begin"), True

    def time(self, steps: int) -> None:
        self.seconds += self._ask(str(steps))

    def stop(self) -> None:
        if self.process is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
            self.errors.close()
            self.process = None

    def _ask(self, line: str) -> Any:
        with contextlib.suppress(BrokenPipeError):  # it has ended, and what it said last is the answer
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            said = self.errors.read()
            if any(mark in said for mark in ("RESOURCE_EXHAUSTED", "OutOfMemoryError")):
                raise UserError(f"--batch-size: the device's memory is too small for {self.name}; use fewer rows")
            raise RuntimeError(f"{self.name} ended early:\n{said}")
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise UserError(answer["error"])
        return answer


def in_our_path() -> dict[str, str]:
    """The environment of a process that can import the benchmarks wherever it runs."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def set_memory(environment: MutableMapping[str, str], turn: Path | None) -> None:
    """What JAX takes of a GPU, before it starts: as much as plans count with, where its own default is three quarters.

    It takes all of it at once, so that a step which nearly fills it finds it in one piece; but where others wait for
    their turn, as it is needed.
    """
    environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    if turn is not None:
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def compare(
    settings: dict[str, Any], peers: list[str], rounds: int, steps: int, turn: Path | None = None
) -> dict[str, Any]:
    """settings: of `worker.read_preset`, and of ours. steps: of each side in each of the rounds. turn: see `turns`.

    Raises UserError where a side cannot run, and where a peer's first loss is not ours, since then it is not the same
    model that is timed.
    """
    with ExitStack() as stack:
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="compiled-")
        )
        sides = [Side(name, settings, cache, turn) for name in ("ours", *peers)]
        for side in sides:
            stack.callback(side.stop)
        with compiling(turn):
            for side in sides:
                side.start()
            for side in sides:
                side.wait()
        stack.enter_context(measuring(turn))
        for side in sides:
            stack.callback(side.stop)  # before another one's turn
        for _ in range(rounds):
            for side in sides:
                if side.process is None:
                    side.start()
                    side.wait()
                if not side.begun:
                    side.begin()
                    _check_loss(sides[0], side)
                side.time(steps)
                print(f"{side.name}: {1e3 * np.median(side.seconds):.4g} ms a step", file=sys.stderr, flush=True)
                if sides[0].facts["environment"]["platform"] != "cpu":
                    side.stop()
    return {side.name: side.facts | {"step_seconds": quartiles(side.seconds)} for side in sides}


def _check_loss(ours: Side, side: Side) -> None:
    loss, theirs = ours.facts["loss"], side.facts["loss"]
    if not abs(theirs - loss) <= TOLERANCE[ours.facts["dtype"]] * abs(loss):
        raise UserError(
            f"--peer: the first loss of {side.name} is {theirs:.6g} and ours {loss:.6g}; not the same model"
        )


def quartiles(seconds: list[float]) -> dict[str, Any]:
    return {
        "median": float(np.median(seconds)),
        "lower_quartile": float(np.quantile(seconds, 0.25)),
        "upper_quartile": float(np.quantile(seconds, 0.75)),
        "steps": len(seconds),
    }
