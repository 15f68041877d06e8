"""Every attention kernel that this machine has, on every kind of interval: its error against float64, and its time.

python -m benchmarks.attention
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.command_line import Parser, environment, new_file, positive
from jaxfusion.errors import UserError
from jaxfusion.models.attention import (
    Interval,
    attention,
    bidirectional,
    causal,
    choose_kernel,
    prefix_lm,
    sliding_window,
)

ROWS = 2
# Of an output's or gradient's norm. Rounding to bfloat16 makes 0.002 to 0.003; one of n keys more or less, 1 / sqrt(n).
TOLERANCE = 0.01

EPILOG = f"""\
It ends with 1 where an error is above {TOLERANCE} of the reference's norm. Where there is no GPU there is no cuDNN, and
Pallas runs in an interpreter, which is not timed.
"""


@dataclass(frozen=True)
class Case:
    """heads, kv_heads and head_dim are those of a model; odd: of an odd length, as towers with a class token are."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    softcap: float = 0.0
    odd: bool = False


CASES = (
    Case("causal", 8, 8, 128),  # Llama 2
    Case("causal, padded", 9, 3, 64),  # SmolLM2
    Case("full", 12, 12, 64),  # SigLIP
    Case("full, odd", 16, 16, 64, odd=True),  # CLIP
    Case("packed", 8, 2, 128),  # Qwen 2.5
    Case("packed towers", 16, 16, 72),  # SigLIP So400m
    Case("prefix-LM", 8, 1, 256),  # PaliGemma
    Case("packed, window", 8, 4, 256, softcap=50.0),  # Gemma 2
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, 1 where a kernel is wrong, or 2 for what the user can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser().parse_args(argv)
    except UserError as error:
        print(f"benchmarks.attention: {error}", file=sys.stderr)
        return 2
    found = []
    print("| interval | heads | kernel | error, forward | error, backward | forward + backward | XLA / kernel |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    length = args.length or (2048 if jax.default_backend() == "gpu" else 128)
    for case in CASES:
        for row in measure(case, length, args.rounds):
            found.append(row)
            print(_line(case, row), flush=True)
    if args.json is not None:
        command = shlex.join(["python", "-m", "benchmarks.attention", *argv])
        args.json.write_text(json.dumps({"command": command, "rows": found, "environment": environment()}, indent=2))
    wrong = [row for row in found if not max(row["forward_error"], row["backward_error"]) <= TOLERANCE]
    for row in wrong:
        print(f"benchmarks.attention: {row['kernel']} is wrong: {row['interval']}", file=sys.stderr)
    return int(bool(wrong))


def measure(case: Case, length: int, rounds: int) -> list[dict[str, Any]]:
    """A row a kernel: its errors, and its milliseconds beside XLA's, in turns."""
    length += 1 - length % 2 if case.odd else 0
    rng = np.random.default_rng(0)
    interval = make_interval(case.name, length)
    shapes = [(ROWS, length, heads, case.head_dim) for heads in (case.heads, case.kv_heads, case.kv_heads, case.heads)]
    query, key, value, by_out = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes)
    # A query that sees nothing is padding: kernels may give it anything, and nothing reads it.
    real = np.asarray(interval.end > interval.start)[..., None, None]
    by_out = by_out * real
    arrays = tuple(np.asarray(array, np.float64) for array in (query, key, value, by_out))
    exact = exact_attention(*arrays, interval, case.softcap)

    runs: dict[str, Callable] = {}
    for kernel in kernels(case, interval):
        attend = partial(attention, interval=interval, softcap=case.softcap, implementation=kernel)
        runs[kernel] = jax.jit(partial(_with_gradients, attend))
    given = (query, key, value, by_out)
    results = {kernel: jax.block_until_ready(run(*given)) for kernel, run in runs.items()}
    timed = [kernel for kernel in runs if kernel != "pallas" or jax.default_backend() == "gpu"]
    seconds: dict[str, list[float]] = {kernel: [] for kernel in timed}
    for kernel in timed * rounds:
        start = time.perf_counter()
        jax.block_until_ready(runs[kernel](*given))
        seconds[kernel].append(time.perf_counter() - start)
    chosen = choose_kernel(query, key, interval, case.softcap)
    return [
        {
            "interval": case.name,
            "length": length,
            "kernel": kernel,
            "chosen": kernel == chosen,
            "forward_error": _distance(out * real, exact[0]),
            "backward_error": max(map(_distance, gradients, exact[1:])),
            "milliseconds": 1e3 * statistics.median(seconds[kernel]) if kernel in timed else None,
            "xla_to_kernel": _ratio(seconds["xla"], seconds[kernel]) if kernel in timed else None,
        }
        for kernel, (out, *gradients) in results.items()
    ]


def make_interval(name: str, length: int) -> Interval:
    """Of rows that are full; "padded": a quarter of the second is padding; "packed": segments of uneven lengths."""
    segment_ids = np.ones((ROWS, length), np.int32)
    if "padded" in name:
        segment_ids[1, length - length // 4 :] = 0
    if "packed" in name:
        segment_ids[0] += np.arange(length) >= length // 3
        segment_ids[1] += (np.arange(length) * 5 // length).astype(np.int32)
        segment_ids[1, length - length // 9 :] = 0
    segments, packed = jnp.asarray(segment_ids), "packed" in name
    if name.startswith("full") or "towers" in name:
        return bidirectional(segments, packed)
    if name == "prefix-LM":
        return prefix_lm(segments, jnp.arange(length) < jnp.array([[length // 3], [length // 2]]))
    interval = causal(segments, packed)
    return sliding_window(interval, length // 4) if "window" in name else interval


def kernels(case: Case, interval: Interval) -> list[str]:
    """Those that take such an interval, where they run."""
    plain = interval.kind != "ranges" and not case.softcap and case.head_dim <= 128
    return ["xla", "pallas", *(["cudnn"] if plain and jax.default_backend() == "gpu" else [])]


def exact_attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, by_out: np.ndarray, interval: Interval, softcap: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The output, and the gradients by query, key and value, in float64: written down as in a textbook."""
    start, end = (np.asarray(bound)[..., None] for bound in (interval.start, interval.end))
    position = np.arange(key.shape[1])
    seen = (position >= start) & (position < end)
    scale, group = query.shape[-1] ** -0.5, query.shape[2] // key.shape[2]
    out, by_query, by_key, by_value = (np.zeros_like(array) for array in (query, query, key, value))

    def add(b: int, g: int) -> None:
        for n in range(g * group, (g + 1) * group):
            add_head(b, n)

    def add_head(b: int, n: int) -> None:
        q, k, v, by_o = query[b, :, n], key[b, :, n // group], value[b, :, n // group], by_out[b, :, n]
        logits = q @ k.T * scale
        bent = softcap * np.tanh(logits / softcap) if softcap else logits
        bent = np.where(seen[b], bent, -np.inf)
        weights = np.exp(bent - np.max(bent, axis=1, keepdims=True, initial=-1e300))
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
        out[b, :, n] = weights @ v
        by_weights = by_o @ v.T
        by_logits = weights * (by_weights - (weights * by_weights).sum(axis=1, keepdims=True)) * scale
        if softcap:
            by_logits *= 1 - np.tanh(logits / softcap) ** 2
        by_query[b, :, n] = by_logits @ k
        by_key[b, :, n // group] += by_logits.T @ q
        by_value[b, :, n // group] += weights.T @ by_o

    with ThreadPoolExecutor() as threads:  # heads that share keys one after the other
        list(threads.map(add, *np.indices(key.shape[0::2]).reshape(2, -1)))
    return out, by_query, by_key, by_value


def _with_gradients(attend: Callable, query: Any, key: Any, value: Any, by_out: Any) -> tuple:
    out, gradients = jax.vjp(attend, query, key, value)
    return out, *gradients(by_out)


def _distance(found: Any, exact: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(found, np.float64) - exact) / np.linalg.norm(exact))


def _ratio(xla: list[float], kernel: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(xla, kernel, strict=True))


def _line(case: Case, row: dict[str, Any]) -> str:
    timed = row["milliseconds"] is not None
    cells = [
        f"{case.name}, {row['length']:,}",
        f"{case.heads} of {case.head_dim}, {case.kv_heads} kv",
        row["kernel"] + (" (chosen)" if row["chosen"] else ""),
        f"{row['forward_error']:.4f}",
        f"{row['backward_error']:.4f}",
        f"{row['milliseconds']:.2f} ms" if timed else "",
        f"{row['xla_to_kernel']:.2f}" if timed else "",
    ]
    return f"| {' | '.join(cells)} |"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.attention",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--length", type=positive, metavar="N", help="positions (default: 2048, on a CPU 128)")
    parser.add_argument("--rounds", type=positive, default=20, metavar="N", help="turns of each (default: 20)")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write everything that was found to FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
