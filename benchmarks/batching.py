"""What continuous batching is worth: the same ragged requests, in batches that wait for their longest answer, and by
the engine, which fills a row as soon as it is free.

python -m benchmarks.batching
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.command_line import Parser, new_file, positive, report
from benchmarks.presets import CPU_PRESETS, PRESETS
from benchmarks.weights import random_params
from jaxfusion.data.packing import pack
from jaxfusion.data.tokenise import Segment
from jaxfusion.errors import UserError
from jaxfusion.generation.answer import Request
from jaxfusion.generation.decode import decoding_params, generate_tokens
from jaxfusion.generation.engine import Engine
from jaxfusion.models.vlm import build

PROMPT = 32  # tokens: what is compared is how answers share the rows
SHORTEST = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser().parse_args(argv)
        if args.longest < SHORTEST:
            raise UserError(f"--longest: {args.longest} is too few; use {SHORTEST} or more")
    except UserError as error:
        print(f"benchmarks.batching: {error}", file=sys.stderr)
        return 2
    result = measure(args.preset, args.requests, args.rows, args.longest, args.rounds)
    report("benchmarks.batching", argv, result, args.json)
    return 0


def measure(preset: str, num_requests: int, rows: int, longest: int, rounds: int) -> dict[str, Any]:
    """Both sides in turns. An answer's length is drawn with a uniform logarithm, and no token ends one before."""
    model = build(PRESETS[preset].model)
    params = jax.block_until_ready(decoding_params(jax.tree.map(jnp.asarray, random_params(model))))
    rng = np.random.default_rng(0)
    limits = np.exp(rng.uniform(np.log(SHORTEST), np.log(longest), num_requests)).astype(int)
    requests = [
        Request(segment=_prompt(rng, model.config.text_embedding.vocab_size), limit=int(limit)) for limit in limits
    ]
    engine = Engine(model, params, num_rows=rows, num_positions=PROMPT + longest, max_waiting=num_requests, eos=())

    def static() -> list[list[int]]:
        answers = []
        for start in range(0, num_requests, rows):
            part = requests[start : start + rows]
            filled = [request.segment for request in part] + [part[0].segment] * (rows - len(part))
            batch = pack([[segment] for segment in filled], PROMPT, model.config.tokens_per_image)
            most = max(request.limit for request in part)
            tokens = generate_tokens(model, params, batch, max_new_tokens=most)
            answers += [row[: request.limit].tolist() for row, request in zip(tokens, part, strict=False)]
        return answers

    def continuous() -> list[list[int]]:
        answers = [engine.submit(request) for request in requests]
        while engine.turn():
            pass
        return [answer.tokens for answer in answers]

    # Both sides are compiled by this. In 16 bits, prompts read alone and eight at a time may round differently.
    alike = np.mean([ours == theirs for ours, theirs in zip(static(), continuous(), strict=True)])
    seconds: dict[str, list[float]] = {"static": [], "continuous": []}
    for _ in range(rounds):
        for name, side in (("static", static), ("continuous", continuous)):
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    ratios = np.divide(seconds["static"], seconds["continuous"])
    batches = [limits[start : start + rows].max() for start in range(0, num_requests, rows)]
    return {
        "preset": preset,
        "requests": num_requests,
        "rows": rows,
        "answer_tokens": {"sum": int(limits.sum()), "median": int(np.median(limits)), "longest": int(limits.max())},
        # In steps: no schedule needs fewer than its longest answer, or than all tokens with no row idle.
        "most_to_win": float(sum(batches) / max(limits.max(), limits.sum() / rows)),
        "answers_alike": float(alike),
        "tokens_per_second": {name: float(limits.sum() / np.median(times)) for name, times in seconds.items()},
        "continuous_to_static": f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})",
    } | ({"note": note} if (note := all_at_once(num_requests, rows)) else {})


def all_at_once(num_requests: int, rows: int) -> str:
    """What to know of a measurement in which no row ever serves a second request."""
    if num_requests > rows:
        return ""
    return (
        f"each of the {num_requests} requests has one of the {rows} rows from the start, so nothing is batched "
        "continuously; ask for more --requests than --rows"
    )


def _prompt(rng: np.random.Generator, vocab_size: int) -> Segment:
    return Segment(
        tokens=rng.integers(0, vocab_size - 1, PROMPT).astype(np.int32),
        targets=np.zeros(PROMPT, np.int32),
        loss_weights=np.zeros(PROMPT, np.float32),
        prompt_mask=np.ones(PROMPT, bool),
        visual_index=np.full(PROMPT, -1, np.int32),
        images=[],
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.batching",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    number = {"type": positive, "metavar": "N"}
    names = [name for name, preset in PRESETS.items() if preset.checkpoint is not None]
    parser.add_argument("--preset", choices=names, default=CPU_PRESETS[1], help=f"a model (default: {CPU_PRESETS[1]})")
    parser.add_argument("--requests", default=64, help="(default: 64)", **number)
    parser.add_argument("--rows", default=8, help="that share a step (default: 8)", **number)
    parser.add_argument("--longest", default=256, help="tokens of an answer (default: 256)", **number)
    parser.add_argument("--rounds", default=5, help="turns of each (default: 5)", **number)
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write everything that was found to FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
