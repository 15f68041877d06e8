"""What preparing is worth: the same model with a frozen tower, trained on images, on prepared pixels, on features.

python -m benchmarks.prepared
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.command_line import Parser, new_file, positive, report
from benchmarks.input_pipeline import make_records
from benchmarks.training import Training
from benchmarks.weights import random_params
from jaxfusion.config import Config
from jaxfusion.config.model import (
    ModelConfig,
    PixelShuffleProjectorConfig,
    TextEmbeddingConfig,
    TransformerDecoderConfig,
    ViTConfig,
)
from jaxfusion.config.run import DataConfig, PrepareConfig, TrainConfig
from jaxfusion.data.dataset import Dataset
from jaxfusion.data.loader import Reader, train_iterator
from jaxfusion.errors import UserError
from jaxfusion.experiment import Experiment
from jaxfusion.models.flops import count_flops
from jaxfusion.models.vlm import build
from jaxfusion.parallel import use_cpu_cores
from jaxfusion.planning.full_rows import full_rows
from jaxfusion.prepare import FrozenTower, write_prepared
from jaxfusion.text.trained import TrainedTokenizer
from jaxfusion.training.frozen import freeze
from jaxfusion.training.trainable import trained_paths

PICTURE = (640, 480)
SIDES = ("images", "pixels", "features")

# ViT-Ti/16, whose 196 tokens are folded to 49, in front of a decoder of the same width.
MODEL = ModelConfig(
    width=192,
    text_embedding=TextEmbeddingConfig(vocab_size=512),
    vision=ViTConfig(width=192, num_layers=12, num_heads=3, mlp_width=768, class_token=False),
    projector=PixelShuffleProjectorConfig(factor=2),
    decoder=TransformerDecoderConfig(num_layers=4, num_heads=3),
)
TRAINABLE = ("text_embedding/*", "projector/*", "decoder/*")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser().parse_args(argv)
        use_cpu_cores(args.rows)
        with tempfile.TemporaryDirectory() as scratch:
            result = measure(Path(scratch), args.records, args.rows, args.steps, args.rounds)
    except UserError as error:
        print(f"benchmarks.prepared: {error}", file=sys.stderr)
        return 2
    report("benchmarks.prepared", argv, result, args.json)
    return 0


def measure(
    scratch: Path, num_records: int, rows: int, steps: int, rounds: int, model_config: ModelConfig = MODEL
) -> dict[str, Any]:
    """Trains the model three times on the same records, in turns, with reading and copying in the time."""
    records = make_records(num_records, PICTURE)
    tokenizer = TrainedTokenizer.train([record["caption_en"] for record in records], 512)
    data = DataConfig(row_length=model_config.tokens_per_image + 64, images_per_row=1, num_threads=2)
    train = TrainConfig(
        num_steps=steps * rounds, batch_size=rows, learning_rate=1e-4, warmup_steps=1, trainable=TRAINABLE
    )
    config = Config(model=model_config, data=data, train=train, prepare=PrepareConfig())
    model = build(config, tokenizer)
    params = random_params(model)
    reader, dataset = Reader(data, model_config, ()), Dataset(records, records, ())
    experiment = Experiment(config, model, dataset, reader, scratch)
    tower = FrozenTower.of(model, freeze(model, {"vision": params["vision"]}, train.frozen_dtype), rows)

    sources, about = {"images": records}, {}
    for side, seen_by in (("pixels", None), ("features", tower)):
        (scratch / side).mkdir()
        sources[side] = write_prepared(experiment, seen_by, scratch / side, Console(stderr=True))
        size = sources[side].num_bytes / num_records
        about[side] = {"bytes_a_record": round(size)} | sources[side].about.measured

    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    with contextlib.ExitStack() as stack:
        trainings = {}
        for side in SIDES:
            iterator = train_iterator(sources[side], reader, tokenizer, rows, train.seed)
            trainings[side] = stack.enter_context(Training(model, train, iterator, rows, params))
        for _ in range(rounds):
            for side in SIDES:
                rates[side].append(trainings[side].run(steps))
    losses = {side: float(training.curve(points=1)[0]) for side, training in trainings.items()}
    flops = count_flops(model_config, full_rows(config, 1), trainable=trained_paths(params, TRAINABLE))
    return {
        "records": num_records,
        "rows": rows,
        "rounds": rounds,
        "steps": steps * rounds,
        "vision_share_of_flops": flops.rooms["vision"] / flops.training,
        "prepared": about,
        "samples_per_second": {side: float(np.median(rate)) for side, rate in rates.items()},
        "to_images": {side: _ratio(rates[side], rates["images"]) for side in SIDES[1:]},
        "mean_loss": losses,
    }


def _ratio(rates: Sequence[float], others: Sequence[float]) -> str:
    ratios = np.divide(rates, others)
    return f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.prepared",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    number = {"type": positive, "metavar": "N"}
    parser.add_argument("--records", default=128, help="different pictures of 640x480 (default: 128)", **number)
    parser.add_argument("--rows", default=16, help="samples a step (default: 16)", **number)
    parser.add_argument("--steps", default=4, help="in a turn (default: 4)", **number)
    parser.add_argument("--rounds", default=7, help="turns of each (default: 7)", **number)
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write everything that was found to FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
