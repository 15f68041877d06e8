"""Our side and peers' in turn, each in a process of its own: A B A B, medians, ratios; of training's step, and of
whatever else is timed in turn.

On a CPU all processes live at once, and the others sleep while one works. On a GPU, whose memory one side may fill, a
process puts its state there when its turn begins, ends with its turn, and starts anew for the next; what XLA compiled
is kept.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.turns import compiling, measuring
from jaxfusion.errors import UserError

ROOT = Path(__file__).parents[1]
# How far a peer's first loss, or log-probability, may be from ours, relatively: the same numbers, rounded elsewhere.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


class Side:
    """A worker process, and what it has told of itself. module: what it runs, a caller of `worker.answer`."""

    def __init__(self, name: str, settings: dict[str, Any], module: str):
        self.name, self.settings, self.module = name, settings, module
        self.process: subprocess.Popen[str] | None = None
        self.facts: dict[str, Any] = {}

    def start(self, cache: str, turn: Path | None) -> None:
        """cache: the directory of what XLA compiled. turn: see `turns`."""
        environment = in_our_path() | {"JAX_COMPILATION_CACHE_DIR": cache}
        if self.name == "ours":
            set_memory(environment, turn)
        else:
            environment["JAX_PLATFORMS"] = "cpu"  # JAX makes a peer's weights and must not take its memory
        command = [sys.executable, "-m", self.module, self.name, json.dumps(self.settings)]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)
        self.begun = False

    def wait(self) -> None:
        """Until it is compiled, or imported."""
        self._answer()

    def begin(self) -> None:
        self.facts, self.begun = self.ask("begin"), True

    def stop(self) -> None:
        if self.process is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
            self.errors.close()
            self.process = None

    def ask(self, question: Any) -> Any:
        """The answer to what is said as a line of JSON."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, and what it said last is the answer
            self.process.stdin.write(f"{json.dumps(question)}\n")
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


def take_turns(sides: Sequence[Side], rounds: int, use: Callable[[Side], None], turn: Path | None = None) -> None:
    """Calls `use` with each side, ours first, in each of the rounds, when it is ready. turn: see `turns`."""
    with ExitStack() as stack:
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="compiled-")
        )
        for side in sides:
            stack.callback(side.stop)
        with compiling(turn):
            for side in sides:
                side.start(cache, turn)
            for side in sides:
                side.wait()
        stack.enter_context(measuring(turn))
        for side in sides:
            stack.callback(side.stop)  # before another one's turn
        for _ in range(rounds):
            for side in sides:
                if side.process is None:
                    side.start(cache, turn)
                    side.wait()
                if not side.begun:
                    side.begin()
                use(side)
                if sides[0].facts["environment"]["platform"] != "cpu":
                    side.stop()


def compare(
    settings: dict[str, Any], peers: list[str], rounds: int, steps: int, turn: Path | None = None
) -> dict[str, Any]:
    """settings: of `worker.read_preset`, and of ours. steps: of each side in each of the rounds. turn: see `turns`.

    Raises UserError where a side cannot run, and where a peer's first loss is not ours, since then it is not the same
    model that is timed.
    """
    sides = [Side(name, settings, "benchmarks.worker") for name in ("ours", *peers)]
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}

    def time_steps(side: Side) -> None:
        _check_loss(sides[0], side)
        seconds[side.name] += side.ask(steps)
        print(f"{side.name}: {1e3 * np.median(seconds[side.name]):.4g} ms a step", file=sys.stderr, flush=True)

    take_turns(sides, rounds, time_steps, turn)
    return {side.name: side.facts | {"step_seconds": quartiles(seconds[side.name])} for side in sides}


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
