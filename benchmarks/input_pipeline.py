"""How many pictures a second become batches: decoded, resized, tokenised and packed, beside torch's DataLoader.

python -m benchmarks.input_pipeline
"""

import argparse
import importlib.util
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.command_line import Parser, environment, new_file, positive, report
from benchmarks.source_files import WRITERS, write
from jaxfusion.config.model import ModelConfig, PixelShuffleProjectorConfig, ViTConfig
from jaxfusion.config.run import DataConfig
from jaxfusion.data.dataset import open_dataset
from jaxfusion.data.loader import Reader, train_iterator
from jaxfusion.errors import UserError
from jaxfusion.text.tokenizer import Tokenizer
from jaxfusion.text.trained import TrainedTokenizer

EPILOG = """\
Both read the same JPEGs (made from a seed) and captions from memory, and both make the same batches of them, in as
many worker processes (0: in threads, or for torch in the main process). torch's side is what its users write: Pillow
decodes and resizes, the same tokenizer and the same packing, in a Dataset's __getitem__ and a collate function. Ours
is measured with pictures decoded at a fraction of their size, which is the default (config.data.scaled_decode), also
in as many threads in the processes' place; and with whole pictures. They take turns, and start anew each time; the
first batches of a turn, for which workers start, are not timed. With --workers 0 the processor's time is told as well,
which others at work on the machine change little.

With --source both read files, in the format that is named: torch's side by a Dataset over a list of paths and texts, or
by the format's own reader, webdataset's or datasets', within the DataLoader.

examples:
  python -m benchmarks.input_pipeline --json input.json
  python -m benchmarks.input_pipeline --source all
  python -m benchmarks.input_pipeline --workers 8 --image-size 336 --picture 1024x768
"""

CAPTION_WORDS = 40
PEERS = ("torch", "webdataset", "datasets")
WORDS = ("a", "the", "red", "small", "house", "tree", "on", "under", "near", "two", "birds", "street", "in", "rain")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser().parse_args(argv)
        if min(args.picture) < args.image_size:
            raise UserError(f"--image-size: {args.image_size} is larger than the pictures; give a larger --picture")
        names = list(WRITERS) if "all" in args.source else list(dict.fromkeys(args.source))
        result = compare(args.pictures, args.picture, args.image_size, args.workers, args.rounds, args.batches, names)
    except UserError as error:
        print(f"benchmarks.input_pipeline: {error}", file=sys.stderr)
        return 2
    found = environment()
    used = ["grain", "pillow"] + [name for name in PEERS if importlib.util.find_spec(name)]
    found["versions"] |= {name: metadata.version(name) for name in used}
    report("benchmarks.input_pipeline", argv, {"environment": found, **result}, args.json)
    return 0


def compare(
    num_pictures: int,
    picture: tuple[int, int],
    image_size: int,
    workers: int,
    rounds: int,
    batches: int,
    sources: Sequence[str] = (),
) -> dict[str, Any]:
    """picture: width and height of the JPEGs. batches: timed in each of the rounds, of BATCH_SIZE pictures each.
    sources: formats of files to read them from; (): from memory."""
    records = make_records(num_pictures, picture)
    tokenizer = TrainedTokenizer.train([record["caption_en"] for record in records], 512)
    result = {
        "pictures": {"number": num_pictures, "width": picture[0], "height": picture[1]},
        "bytes_a_picture": int(np.mean([len(record["image"]) for record in records])),
        "image_size": image_size,
        "workers": workers,
        "batch_size": BATCH_SIZE,
        "rounds": rounds,
    }
    if not sources:
        reader = reader_of(image_size, workers)
        return result | _rates_of(records, reader, tokenizer, rounds, batches, partial(_from_memory, workers))
    with tempfile.TemporaryDirectory() as folder:
        result["sources"] = {}
        for name in sources:
            settings = write(name, records * COPIES, Path(folder, name))
            reader = reader_of(image_size, workers, settings | {"test_path": settings["path"]})
            dataset = open_dataset(reader.data)
            reader = replace(reader, labels=dataset.labels)
            peer = partial(_from_files, settings, Path(folder, "scratch"), workers)
            result["sources"][name] = _rates_of(dataset.train, reader, tokenizer, rounds, batches, peer)
    return result


# (reader, tokenizer, records) -> batches
Peer = Callable[[Reader, Tokenizer, Sequence[Any]], Iterator[Any]]


def _from_memory(workers: int, reader: Reader, tokenizer: Tokenizer, records: Sequence[Any]) -> Iterator[Any]:
    from benchmarks.torch_input import batches_of

    return batches_of(records, reader, tokenizer, BATCH_SIZE, workers)


def _from_files(
    settings: dict[str, Any], scratch: Path, workers: int, reader: Reader, tokenizer: Tokenizer, _: Sequence[Any]
) -> Iterator[Any]:
    from benchmarks.torch_sources import batches_of, missing_of

    if missing := missing_of(settings["name"]):
        raise UserError(f"--source: {settings['name']} is compared with {missing}; pip install {missing}")
    return batches_of(settings, reader, tokenizer, BATCH_SIZE, workers, scratch)


def _rates_of(
    records: Sequence[Any], reader: Reader, tokenizer: Tokenizer, rounds: int, batches: int, peer: Peer
) -> dict[str, Any]:
    """Medians of all sides' rates, taken in turn, and ours by torch's where it is installed."""
    whole = replace(reader, data=replace(reader.data, scaled_decode=False))
    sides: dict[str, Callable[[], Iterator[Any]]] = {
        "ours": lambda: train_iterator(records, reader, tokenizer, BATCH_SIZE, 0),
    }
    if reader.data.task != "text":
        sides["ours_whole_decode"] = lambda: train_iterator(records, whole, tokenizer, BATCH_SIZE, 0)
    if workers := reader.data.num_workers:
        threads = replace(reader, data=replace(reader.data, num_workers=0, num_threads=workers))
        sides["ours_in_threads"] = lambda: train_iterator(records, threads, tokenizer, BATCH_SIZE, 0)
    if importlib.util.find_spec("torch"):
        sides["torch"] = lambda: peer(whole, tokenizer, records)
    found: dict[str, list[Rate]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, start in sides.items():
            found[name].append(_rate(start(), batches))
    medians = {name: float(np.median([rate.by_clock for rate in values])) for name, values in found.items()}
    result: dict[str, Any] = {"images_per_second": medians}
    if "torch" in medians:
        result |= {f"{name}_to_torch": medians[name] / medians["torch"] for name in medians if name != "torch"}
    if not reader.data.num_workers:  # or most of the work would be other processes'
        used = {name: float(np.median([rate.processor_ms for rate in values])) for name, values in found.items()}
        result["processor_ms_an_image"] = used
        if "torch" in used:
            result["torch_to_ours_by_processor"] = used["torch"] / used["ours"]
    return result


class Rate(NamedTuple):
    """by_clock: samples a second. processor_ms: of all threads of this process, a sample, whoever else was at work."""

    by_clock: float
    processor_ms: float


BATCH_SIZE = 32
WARM_UP = 6  # batches for which workers start, and after which what was made ahead of time is used up
COPIES = 8  # of each picture in files, which then are as many as the order of a real data set is made for


def _rate(iterator: Iterator[Any], batches: int) -> Rate:
    for _ in range(WARM_UP):
        next(iterator)
    start, used = time.perf_counter(), time.process_time()
    for _ in range(batches):
        next(iterator)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    if hasattr(iterator, "close"):
        iterator.close()  # ends its processes
    return Rate(batches * BATCH_SIZE / seconds, 1e3 * used / (batches * BATCH_SIZE))


def make_records(number: int, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Records of a JPEG, of smooth shapes and fine grain as photographs have them, and a caption."""
    rng = np.random.default_rng(0)
    return [
        {"image": _jpeg(rng, size), "image_id": index, "caption_en": " ".join(rng.choice(WORDS, CAPTION_WORDS))}
        for index in range(number)
    ]


def _jpeg(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    layers = np.zeros((size[1], size[0], 3), np.float32)
    for cells, strength in ((4, 70), (16, 40), (64, 20)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        layers += strength / 128 * (np.asarray(noise.resize(size, Image.Resampling.BICUBIC), np.float32) - 128)
    grain = rng.normal(0, 6, (size[1], size[0], 1)).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(128 + layers + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def reader_of(image_size: int, workers: int, settings: dict[str, Any] | None = None) -> Reader:
    """settings: of `config.data`, for files."""
    vision = ViTConfig(image_size=image_size, patch_size=image_size // 14, class_token=False)
    model = ModelConfig(vision=vision, projector=PixelShuffleProjectorConfig(factor=2))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    settings = {"task": "caption"} | (settings or {})
    images = 0 if settings["task"] == "text" else 1
    threads = 1 if workers else cores
    data = DataConfig(row_length=320, images_per_row=images, num_workers=workers, num_threads=threads, **settings)
    return Reader(data, model, ())


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.input_pipeline",
        description="Measure the input pipeline's own rate beside torch's DataLoader doing the same work.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        choices=["all", *WRITERS],
        help="read files of this format (more than once: of each) and not from memory; all: each format's",
    )
    parser.add_argument("--pictures", type=positive, default=128, metavar="N", help="different ones (default: 128)")
    parser.add_argument("--picture", type=_size, default=(640, 480), metavar="WxH", help="size (default: 640x480)")
    parser.add_argument("--image-size", type=_side, default=224, metavar="N", help="side to resize to (default: 224)")
    parser.add_argument("--workers", type=_count, default=2, metavar="N", help="processes (default: 2; 0: none)")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="turns of each (default: 5)")
    parser.add_argument("--batches", type=positive, default=16, metavar="N", help="timed in a turn (default: 16)")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write everything that was found to FILE")
    return parser


def _count(text: str) -> int:
    return positive(text) if text != "0" else 0


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return positive(width), positive(height)


def _side(text: str) -> int:
    value = positive(text)
    if value % 28:
        raise argparse.ArgumentTypeError(f"{value} is not a multiple of 28, in which a tower cuts it")
    return value


if __name__ == "__main__":
    sys.exit(main())
