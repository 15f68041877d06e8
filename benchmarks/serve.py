"""How many requests a second a server answers, how many tokens, and how long people wait.

python -m benchmarks.serve
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.command_line import Parser, host, new_file, positive, report
from benchmarks.compare import in_our_path, set_memory
from benchmarks.decode import NAMES
from benchmarks.load import SHORTEST_ANSWER, SHORTEST_PROMPT, Client, Told, make_load
from benchmarks.presets import PRESETS
from jaxfusion.errors import UserError
from jaxfusion.generation.decode import check_generates
from jaxfusion.models.vlm import build
from jaxfusion.serving import check_extra

PERCENTILES = (50, 90, 99)
KEY = "OPENAI_API_KEY"
ROWS = 8
AROUND = 8  # tokens of a prompt that are neither pictures nor words, at most

EPILOG = f"""\
Half of the requests are text, three in ten have a picture and two in ten two; the words of a prompt and the tokens of
an answer are drawn with uniform logarithms, and no two pictures are the same. Either --clients ask one request after
the other, or requests come --rate times a second whenever they like (a Poisson process), and a request's time counts
from when it should have been sent. The load is replayed once before anything is counted, with other words and pictures
of the same lengths, so that what compiles has compiled. The percentiles are of all rounds' requests together.

Without --url the server is jaxfusion's, of a preset's model with random weights, in a process of its own. A key for
--url is read from the environment, {KEY}.

examples:
  python -m benchmarks.serve --clients 16 --json serve.json
  python -m benchmarks.serve --rate 4 --requests 200
  python -m benchmarks.serve --url http://127.0.0.1:8000/v1 --rate 10
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser().parse_args(argv)
        _check(args)
        if args.url:  # which runs on some other machine, for all that is known here
            result = {"environment": host(), "url": args.url}
            result |= measure(Client(args.url, os.environ.get(KEY), args.model), args)
        else:
            with serving(args) as (url, environment):
                result = {"environment": environment, "preset": args.preset, "rows": args.rows or ROWS}
                result |= measure(Client(url), args)
    except UserError as error:
        print(f"benchmarks.serve: {error}", file=sys.stderr)
        return 2
    report("benchmarks.serve", argv, result, args.json)
    return 0


def measure(client: Client, args: argparse.Namespace) -> dict[str, Any]:
    """The load once to warm the server, and then as often as there are rounds.

    Raises UserError where no request of a round was answered.
    """
    load = {name: getattr(args, name) for name in ("words", "tokens", "image_size", "rate", "seed")}
    clients = None if args.rate else args.clients
    told: list[Told] = []
    requests, tokens = [], []
    for contents in range(args.rounds + 1):
        asks = make_load(args.requests, **load, contents=contents)
        found, seconds = client.replay(asks, clients)
        _check_answered(found)
        if contents == 0:
            continue
        told += found
        requests.append(sum(not one.failed for one in found) / seconds)
        tokens.append(sum(one.tokens for one in found) / seconds)
        print(f"round {contents}: {requests[-1]:.4g} requests a second", file=sys.stderr, flush=True)
    pictures = Counter(ask.pictures for ask in asks)
    return {
        "server_model": client.model,
        "arrivals": f"{args.rate:g} a second" if args.rate else f"{args.clients} clients, one request after the other",
        "requests_with_pictures": {str(number): pictures[number] for number in sorted(pictures)},
        "rounds": args.rounds,
        "requests_per_second": spread(requests),
        "answer_tokens_per_second": spread(tokens),
        "seconds_to_first_token": percentiles([one.first for one in told if not one.failed]),
        "seconds_to_end": percentiles([one.whole for one in told if not one.failed]),
        "failed": dict(Counter(one.failed for one in told if one.failed)),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "least": min(values), "most": max(values)}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{part}": float(np.percentile(seconds, part)) for part in PERCENTILES}


@contextmanager
def serving(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """A server of its own, ended with the context: its URL, and the environment it runs in.

    Raises UserError where the longest prompt and answer exceed the model's context.
    """
    check_extra()
    model = PRESETS[args.preset].model
    prompt = 2 * model.tokens_per_image + args.words + AROUND
    check_generates(build(model), prompt, args.tokens)
    settings = {
        "num_rows": args.rows or ROWS,
        "num_positions": prompt + args.tokens,
        "max_waiting": max(args.requests, 1),
    }
    command = [sys.executable, "-m", "benchmarks.served", args.preset, json.dumps(settings)]
    environment = in_our_path()
    set_memory(environment, None)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, text=True, env=environment, stdout=subprocess.PIPE, stderr=errors)
        try:
            if not (line := process.stdout.readline()):
                process.wait()
                errors.seek(0)
                raise RuntimeError(f"the server ended early:\n{errors.read()}")
            told = json.loads(line)
            yield told["url"], told["environment"]
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()


def _check(args: argparse.Namespace) -> None:
    """Raises UserError for what cannot go together or is too little."""
    for option, least in (("words", SHORTEST_PROMPT), ("tokens", SHORTEST_ANSWER)):
        if getattr(args, option) < least:
            raise UserError(f"--{option}: {getattr(args, option)} is too few; use {least} or more")
    if args.url and args.rows is not None:
        raise UserError("--rows: the server at --url has its own; leave it out")
    if args.model is not None and not args.url:
        raise UserError("--model: it belongs to --url, and none was given; leave it out, or choose a --preset")


def _check_answered(told: Sequence[Told]) -> None:
    if all(one.failed for one in told):
        ((reason, number),) = Counter(one.failed for one in told).most_common(1)
        raise UserError(
            f"none of {len(told)} requests was answered, and {number} of them for this: {reason}; "
            "mend that, or ask for less with --words and --tokens"
        )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.serve",
        description="Replay a load of mixed requests, and measure throughput and latency.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    number = {"type": positive, "metavar": "N"}
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="a server with OpenAI's interface, http://HOST:PORT/v1")
    where.add_argument("--preset", choices=NAMES, default=NAMES[0], help=f"a model to serve (default: {NAMES[0]})")
    parser.add_argument("--model", metavar="NAME", help="that the --url serves (default: the first it names)")
    parser.add_argument("--rows", help=f"answers that grow at once, without --url (default: {ROWS})", **number)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--clients", default=16, help="who ask one after the other (default: 16)", **number)
    how.add_argument("--rate", type=_rate, metavar="R", help="requests a second, in place of --clients")
    parser.add_argument("--requests", default=64, help="of a round (default: 64)", **number)
    parser.add_argument("--words", default=64, help="of the longest prompt (default: 64)", **number)
    parser.add_argument("--tokens", default=128, help="of the longest answer (default: 128)", **number)
    parser.add_argument("--image-size", default=128, help="pixels a side of a picture (default: 128)", **number)
    parser.add_argument("--rounds", default=3, help="that are counted (default: 3)", **number)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the load (default: 0)")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write everything that was found to FILE")
    return parser


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{value:g} is not a positive number")
    return value


if __name__ == "__main__":
    sys.exit(main())
