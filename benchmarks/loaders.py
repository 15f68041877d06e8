"""The two sides of `benchmarks.load_checkpoint`, each run in a process that imports nothing of the other's."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

PAGE = 4096


def ours(directory: Path, dtype: str) -> "list[np.ndarray]":
    import jax
    import numpy as np

    import jaxfusion

    return [np.asarray(leaf) for leaf in jax.tree.leaves(jaxfusion.load(directory, dtype=dtype)[1])]


def transformers(directory: Path, dtype: str) -> "list[np.ndarray]":
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.LlamaForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    return [parameter.detach().view(torch.uint8).numpy() for parameter in model.parameters()]


LOADERS = {"ours": ours, "transformers": transformers}


def measure_start(loader: str, checkpoint: str, dtype: str, started: float) -> None:
    """Prints as JSON the seconds since the process was started, imports and all, until every weight is ready.

    started: of `time.monotonic()`, which all processes of a machine share.
    """
    _touch(LOADERS[loader](Path(checkpoint), dtype))
    print(json.dumps({"process_seconds": time.monotonic() - started}))


def measure(loader: str, tiny: str, checkpoint: str, dtype: str) -> None:
    """Prints as JSON the seconds of loading weights, those until all are touched, and the bytes of memory that this
    takes at its peak, beyond the process's own before, mapped files included. A tiny checkpoint is loaded before."""
    load = LOADERS[loader]
    load(Path(tiny), dtype)
    before = _peak_bytes()
    start, cpu = time.perf_counter(), time.process_time()
    weights = load(Path(checkpoint), dtype)
    returned = time.perf_counter()
    _touch(weights)
    ready = time.perf_counter()
    cpu = time.process_time() - cpu
    times = {"ready_seconds": ready - start, "return_seconds": returned - start, "cpu_seconds": cpu}
    print(json.dumps({**times, "peak_bytes": _peak_bytes() - before}))


def _touch(weights: "Iterable[np.ndarray]") -> None:
    """Reads a byte of every page."""
    import numpy as np

    for weight in weights:
        weight.reshape(-1).view(np.uint8)[::PAGE].max()


def _peak_bytes() -> int:
    """Linux's high-water mark of this process; `resource` would include the parent's."""
    status: dict[str, Any] = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024
