"""What prefix reuse is worth: questions about the same pictures, to an engine that keeps the keys and values of what
prompts begin with, and to one that reads each prompt whole.

python -m benchmarks.prefixes
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
from jaxfusion.data.tokenise import Segment
from jaxfusion.errors import UserError
from jaxfusion.generation.answer import Answer, Request
from jaxfusion.generation.decode import decoding_params, reads_in_parts
from jaxfusion.generation.engine import Engine
from jaxfusion.models.vlm import Model, build

QUESTION = 16  # tokens
ROOM = 2**30  # bytes


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser().parse_args(argv)
        if args.questions < 2:
            raise UserError("--questions: the first one reads the pictures anyway; ask 2 or more")
        result = measure(args.preset, args.images, args.questions, args.tokens, args.rounds)
    except UserError as error:
        print(f"benchmarks.prefixes: {error}", file=sys.stderr)
        return 2
    report("benchmarks.prefixes", argv, result, args.json)
    return 0


def measure(preset: str, num_images: int, num_questions: int, num_tokens: int, rounds: int) -> dict[str, Any]:
    """Both engines in turns, each round about pictures of its own, a question after the other."""
    model = build(PRESETS[preset].model)
    if not reads_in_parts(model):
        raise UserError(f"--preset: {preset} reads a prompt in both directions, of which nothing can be kept")
    params = jax.block_until_ready(decoding_params(jax.tree.map(jnp.asarray, random_params(model))))
    length = num_images * model.config.tokens_per_image + QUESTION
    settings = {"num_rows": 1, "num_positions": length + num_tokens, "eos": ()}
    engines = {
        "kept": Engine(model, params, prefix_bytes=ROOM, **settings),
        "read": Engine(model, params, **settings),
    }
    rng = np.random.default_rng(0)
    seconds: dict[str, list[list[float]]] = {name: [] for name in engines}
    alike = []
    for _ in range(rounds + 1):  # the first compiles
        questions = _questions(rng, model, num_images, num_questions)
        answers: dict[str, list[Answer]] = {}
        for name, engine in engines.items():
            times, answers[name] = [], []
            for segment in questions:
                start = time.perf_counter()
                answer = engine.submit(Request(segment=segment, limit=num_tokens))
                while engine.turn():
                    pass
                times.append(time.perf_counter() - start)
                answers[name].append(answer)
            seconds[name].append(times)
        alike += [one.tokens == other.tokens for one, other in zip(*answers.values(), strict=True)]
    further = {name: np.array(times)[1:, 1:] for name, times in seconds.items()}
    ratios = np.median(further["read"] / further["kept"], axis=1)
    return {
        "preset": preset,
        "prompt_positions": {"pictures": length - QUESTION, "question": QUESTION},
        "answer_tokens": num_tokens,
        "questions": num_questions,
        "milliseconds_of_a_further_question": {name: 1000 * float(np.median(times)) for name, times in further.items()},
        "read_to_kept": f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})",
        "answers_alike": float(np.mean(alike)),
        "kept_bytes_of_a_prompt": engines["kept"].prefixes.num_bytes // (rounds + 1),
    }


def _questions(rng: np.random.Generator, model: Model, num_images: int, number: int) -> list[Segment]:
    """Of one context of pictures."""
    visual = num_images * model.config.tokens_per_image
    size = model.config.vision.image_size
    images = [rng.integers(0, 256, (size, size, 3), np.uint8) for _ in range(num_images)]
    index = np.concatenate([np.arange(visual), np.full(QUESTION, -1)]).astype(np.int32)
    whole, nothing = np.ones(len(index), bool), np.zeros(len(index))

    def asked() -> Segment:
        tokens = np.zeros(len(index), np.int32)
        tokens[visual:] = rng.integers(1, model.config.text_embedding.vocab_size - 1, QUESTION)
        return Segment(tokens, nothing.astype(np.int32), nothing.astype(np.float32), whole, index, images)

    return [asked() for _ in range(number)]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.prefixes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    number = {"type": positive, "metavar": "N"}
    names = [name for name, preset in PRESETS.items() if preset.checkpoint is not None]
    parser.add_argument("--preset", choices=names, default=CPU_PRESETS[1], help=f"a model (default: {CPU_PRESETS[1]})")
    parser.add_argument("--images", default=4, help="that all questions are about (default: 4)", **number)
    parser.add_argument("--questions", default=5, help="about the same images, two or more (default: 5)", **number)
    parser.add_argument("--tokens", default=1, help="of an answer; more hide what reading took (default: 1)", **number)
    parser.add_argument("--rounds", default=5, help="turns of each (default: 5)", **number)
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write everything that was found to FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
