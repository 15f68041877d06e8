"""What the benchmarks' command lines share: arguments, the machine that a result belongs to, and the table."""

import argparse
import contextlib
import json
import os
import platform
import shlex
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxfusion.errors import UserError


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message}; see --help")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def new_file(text: str) -> Path:
    if not (path := Path(text)).parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent} is not a directory; make it first")
    return path


def report(module: str, argv: Sequence[str], result: dict[str, Any], file: Path | None) -> None:
    """Shows what a benchmark found, and writes it: its command, and the environment unless it says more itself."""
    command = shlex.join(["python", "-m", module, *argv])
    where = result.get("environment") or environment()  # a parent of those who measure leaves the devices to them
    result = {"command": command, "environment": where, **result}
    show(result)
    if file is not None:
        file.write_text(json.dumps(result, indent=2) + "\n")


def environment() -> dict[str, Any]:
    """The hardware and software that a result belongs to."""
    devices = jax.local_devices()
    return {
        "device": devices[0].device_kind,
        "platform": devices[0].platform,
        "devices": len(devices),
        **host(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
        },
    }


def host() -> dict[str, Any]:
    """This machine but for its devices, which JAX would have to be started to know."""
    return {"host_cpu": _cpu_name(), "host_cores": os.cpu_count(), "load_average": os.getloadavg()[0]}


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def show(result: dict[str, Any], indent: str = "") -> None:
    """A line a value; a dict is a heading and indented lines."""
    for name, value in result.items():
        label = f"{indent}{name}"
        if isinstance(value, dict):
            print(label)
            show(value, indent + "  ")
        elif isinstance(value, float):
            print(f"{label:<38}  {value:.5g}")
        elif isinstance(value, int) and not isinstance(value, bool):
            print(f"{label:<38}  {value:,}")
        else:
            print(f"{label:<38}  {'unknown' if value is None else value}")
