"""What packing is worth: how full rows get, and training on packed against padded rows of a mixed workload.

python -m benchmarks.packing
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import grain
import jax
import numpy as np

from benchmarks.command_line import Parser, new_file, positive, report
from benchmarks.mixed import MixedReader
from benchmarks.training import Training
from jaxfusion.config.model import (
    ModelConfig,
    PixelShuffleProjectorConfig,
    TextEmbeddingConfig,
    TransformerDecoderConfig,
    VGGConfig,
)
from jaxfusion.config.run import DataConfig, TrainConfig
from jaxfusion.data.best_fit import Room, images_per_row, rows_of
from jaxfusion.data.loader import NUM_WAITING, train_iterator
from jaxfusion.data.tokenise import Layout, tokenise
from jaxfusion.errors import UserError
from jaxfusion.models.vlm import build
from jaxfusion.parallel import use_cpu_cores
from jaxfusion.text.tokenizer import Tokenizer
from jaxfusion.text.trained import TrainedTokenizer

NUM_RECORDS = 4000
ROW_LENGTH, ROWS = 384, 8

MODEL = ModelConfig(
    width=96,
    text_embedding=TextEmbeddingConfig(vocab_size=262),
    vision=VGGConfig(image_size=24, stage_depths=(1, 1), stage_widths=(16, 32)),
    projector=PixelShuffleProjectorConfig(factor=3),
    decoder=TransformerDecoderConfig(num_layers=2, num_heads=4, scan_layers=False),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser().parse_args(argv)
        sizes = mixed_sizes(byte_tokenizer())
        result = {"rows": how_full(sizes, args.row_length)}
        if args.samples:
            use_cpu_cores(args.rows)
            result["training"] = measure(sizes, args.row_length, args.rows, args.samples, args.rounds)
    except UserError as error:
        print(f"benchmarks.packing: {error}", file=sys.stderr)
        return 2
    report("benchmarks.packing", argv, result, args.json)
    return 0


def byte_tokenizer() -> Tokenizer:
    return TrainedTokenizer.train(["x"], MODEL.text_embedding.vocab_size)


# --- how full rows get ------------------------------------------------------------------------------------------------


def mixed_sizes(tokenizer: Tokenizer, number: int = NUM_RECORDS) -> np.ndarray:
    """(positions, images) of records, in a random order."""
    reader, layout = MixedReader(DataConfig(), MODEL), Layout.of(MODEL)
    order = np.random.default_rng(0).permutation(NUM_RECORDS)[:number]
    samples = (sample for record in order for sample in reader.samples(int(record), decode=False))
    return np.array([tokenise(sample, tokenizer, layout).size for sample in samples])


def how_full(sizes: np.ndarray, row_length: int) -> dict[str, Any]:
    """The shares of positions and image slots that are used, by each way of making rows.

    The packers have the same rows to fill. Grain's hold as many whole rows open as our waiting samples would make.
    """
    longest, most = sizes.max(axis=0)
    best_fit = best_fit_rows(sizes, row_length)
    slots, bins = best_fit["images_per_row"], round(NUM_WAITING / best_fit["samples_per_row"])
    packers = {
        "grain_first_fit": grain.experimental.FirstFitPackIterDataset,
        "grain_best_fit": grain.experimental.BestFitPackIterDataset,
    }
    found = {"one_sample_a_row": _shares(sizes, len(sizes), longest, most)}
    for name, packer in packers.items():
        columns = grain.MapDataset.range(len(sizes)).map(_columns(sizes)).to_iter_dataset()
        packed = packer(columns, length_struct={"positions": row_length, "images": slots}, num_packing_bins=bins)
        found[name] = _shares(sizes, sum(1 for _ in packed), row_length, slots)
    return found | {"best_fit": best_fit}


def best_fit_rows(sizes: np.ndarray, row_length: int) -> dict[str, Any]:
    """The same for our packer. Raises UserError where a sample is longer than a row."""
    if row_length < (longest := sizes[:, 0].max()):
        raise UserError(f"--row-length: {row_length} is less than the longest sample's {longest}; raise it")
    slots = images_per_row(sizes, row_length, NUM_WAITING)
    number = sum(1 for _ in rows_of(sizes, Room(row_length, slots), NUM_WAITING))
    return _shares(sizes, number, row_length, slots)


def _columns(sizes: np.ndarray):
    return lambda place: {
        "positions": np.ones(sizes[place, 0], np.int8),
        "images": np.ones(sizes[place, 1], np.int8),
    }


def _shares(sizes: np.ndarray, rows: int, row_length: int, slots: int) -> dict[str, Any]:
    positions, images = sizes.sum(axis=0) / (rows * np.array([row_length, slots]))
    shape = {"row_length": int(row_length), "images_per_row": int(slots), "samples_per_row": len(sizes) / rows}
    return shape | {"useful_tokens": float(positions), "filled_image_slots": float(images)}


# --- training ---------------------------------------------------------------------------------------------------------


def measure(sizes: np.ndarray, row_length: int, rows: int, num_samples: int, rounds: int) -> dict[str, Any]:
    """Trains the same model twice on the same samples, packed and padded, turn about.

    A step of each has as many samples on average, so that both see as many samples in as many steps. Rounds alternate,
    reading and copying data is in their time, and the ratio is the median of the rounds' ratios.
    """
    packed = best_fit_rows(sizes, row_length)
    slots, samples_per_row = packed["images_per_row"], packed["samples_per_row"]
    devices = jax.local_device_count()
    padded_rows = devices * round(rows * samples_per_row / devices)
    longest, most = map(int, sizes.max(axis=0))
    steps = max(1, round(num_samples / padded_rows / rounds))
    sides = {
        "packed": (_data("best-fit", row_length, slots), rows),
        "padded": (_data("none", longest, most), padded_rows),
    }
    rates = {name: [] for name in sides}
    with contextlib.ExitStack() as stack:
        trainings = {
            name: stack.enter_context(_training(data, size, steps * rounds)) for name, (data, size) in sides.items()
        }
        for _ in range(rounds):
            for name, training in trainings.items():
                rates[name].append(training.run(steps))
    ratios = np.divide(rates["packed"], rates["padded"])
    curves = {name: training.curve(points=10) for name, training in trainings.items()}
    apart = np.abs(np.subtract(curves["packed"], curves["padded"]))[1:] / curves["padded"][1:]
    return {
        "rounds": rounds,
        "steps": steps * rounds,
        "samples": {name: int(training.samples) for name, training in trainings.items()},
        "rows": {name: size for name, (_, size) in sides.items()},
        "samples_per_second": {name: float(np.median(rate)) for name, rate in rates.items()},
        "packed_to_padded": float(np.median(ratios)),
        "packed_to_padded_range": f"{ratios.min():.2f} to {ratios.max():.2f}",
        "loss_by_tenth_of_samples": {name: " ".join(f"{x:.3f}" for x in curve) for name, curve in curves.items()},
        "largest_difference_of_losses_after_the_first_tenth": float(apart.max()),
    }


def _data(packing: str, row_length: int, slots: int) -> DataConfig:
    return replace(DataConfig(), name="mixed", packing=packing, row_length=row_length, images_per_row=slots)


def _training(data: DataConfig, rows: int, num_steps: int) -> Training:
    settings = TrainConfig(num_steps=num_steps, learning_rate=2e-3, warmup_steps=20)
    iterator = train_iterator(range(NUM_RECORDS), MixedReader(data, MODEL), byte_tokenizer(), rows, seed=0)
    return Training(build(MODEL), settings, iterator, rows)


# --- the command line -------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.packing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    number = {"type": positive, "metavar": "N"}
    parser.add_argument("--row-length", default=ROW_LENGTH, help=f"of packed rows (default: {ROW_LENGTH})", **number)
    parser.add_argument("--rows", default=ROWS, help=f"packed rows a step (default: {ROWS})", **number)
    parser.add_argument(
        "--samples", type=int, default=12000, metavar="N", help="to train on (default: 12000); 0: rows alone"
    )
    parser.add_argument("--rounds", default=10, help="turns of both sides (default: 10)", **number)
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write everything that was found to FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
