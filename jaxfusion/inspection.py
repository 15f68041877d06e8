"""--mode inspect: what a workdir holds, read without a device's memory and without any weight."""

import contextlib
import json
from datetime import datetime
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import jax
from flax import traverse_util
from rich.console import Console
from rich.table import Table

from jaxfusion.config import Config, to_dict
from jaxfusion.config.run import ParallelConfig
from jaxfusion.models.int8 import is_int8
from jaxfusion.models.rows import FSDP, TENSOR
from jaxfusion.models.vlm import Params, build, init
from jaxfusion.parallel.sharding import partition
from jaxfusion.training.frozen import store
from jaxfusion.training.metrics import read_metrics
from jaxfusion.training.progress import scaled
from jaxfusion.training.trainable import trained_paths
from jaxfusion.workdir import EVALUATION, latest_step, read_workdir_config


def inspect_run(workdir: Path, console: Console) -> None:
    """Prints the run's step, checkpoints, parameters by room, last numbers, and the settings that are not defaults.

    Raises UserError where the directory holds no run.
    """
    config = read_workdir_config(workdir)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    say(f"{workdir}: step {latest_step(workdir):,} of {config.train.num_steps:,}")
    for table in (_checkpoints(workdir), _parameters(config), _numbers(workdir), _settings(config)):
        if table.row_count:
            console.print(table)


def _checkpoints(workdir: Path) -> Table:
    table = _table("checkpoints", "step", "size", "written")
    found = [path for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()]
    for path in sorted(found, key=lambda path: int(path.name)):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        table.add_row(path.name, f"{scaled(size)}B", f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}")
    return table


def _parameters(config: Config) -> Table:
    model, settings, parallel = build(config), config.train, config.parallel
    keep = partial(store, model, trainable=settings.trainable, frozen_dtype=settings.frozen_dtype)
    params = jax.eval_shape(lambda rng: keep(init(model, rng)), jax.random.key(0))
    trained = trained_paths(params, settings.trainable)
    shared = parallel.fsdp * parallel.tensor > 1
    columns = ["room", "parameters", "that train", "dtypes", "size", *(["of each device"] if shared else [])]
    table = _table("parameters", *columns)
    rooms = {room: {room: leaves} for room, leaves in params.items()}
    for name, part in (rooms | {"all": params}).items():
        leaves = traverse_util.flatten_dict(part, sep="/")
        counts = {path: prod(leaf.shape) for path, leaf in leaves.items()}
        dtypes = sorted({str(leaf.values.dtype if is_int8(leaf) else leaf.dtype) for leaf in leaves.values()})
        row = [
            name,
            f"{sum(counts.values()):,}",
            f"{sum(count for path, count in counts.items() if path in trained):,}",
            ", ".join(dtypes),
            f"{scaled(_bytes(part))}B",
        ]
        if name == "all":
            table.add_section()
        table.add_row(*row, *([f"{scaled(_bytes(part, parallel))}B"] if shared else []))
    return table


def _bytes(params: Params, parallel: ParallelConfig | None = None) -> int:
    """Of all, or of what one device of the mesh holds."""
    sizes = {} if parallel is None else {FSDP: parallel.fsdp, TENSOR: parallel.tensor}
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = partition(name, leaf.shape, sizes, parallel.rules if parallel else ())
        shares = prod(sizes[axis] for axis in spec if axis)
        total += prod(leaf.shape) * leaf.dtype.itemsize // shares
    return total


def _numbers(workdir: Path) -> Table:
    table = _table("last numbers", "name", "value")
    rows = read_metrics(workdir)
    last: dict[str, Any] = dict(rows[-1]) if rows else {}
    with contextlib.suppress(OSError, ValueError, KeyError):  # not evaluated yet
        last |= json.loads((workdir / EVALUATION).read_text(encoding="utf-8"))["metrics"]
    for name, value in last.items():
        shown = "–" if value is None else f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"
        table.add_row(name, shown)
    return table


def _settings(config: Config) -> Table:
    table = _table("settings that are not defaults", "setting", "value")
    for name, value in _changed(to_dict(config), to_dict(Config())):
        table.add_row(name, str(value))
    return table


def _changed(values: Any, defaults: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(values, dict):
        return [(prefix, values)] if values != defaults else []
    theirs = defaults if isinstance(defaults, dict) else {}
    return [
        pair
        for name, value in values.items()
        for pair in _changed(value, theirs.get(name), f"{prefix}.{name}" if prefix else name)
    ]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in ("parameters", "that train", "size") else "left")
    return table
