"""The same files as people read them with PyTorch: a Dataset over lists and paths, webdataset, or datasets' own."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, RandomSampler

from benchmarks.torch_input import Pictures, Tensors
from jaxfusion.data.loader import Reader
from jaxfusion.text.tokenizer import Tokenizer

# Formats that have a reader of their own; the others are read by a Dataset as people write one.
READERS = {"webdataset": "webdataset", "parquet": "datasets"}


def missing_of(name: str) -> str | None:
    """The package that the format's own reader is in, where it is not installed."""
    needed = READERS.get(name)
    return needed if needed and not importlib.util.find_spec(needed) else None


def batches_of(
    settings: dict[str, Any], reader: Reader, tokenizer: Tokenizer, batch_size: int, workers: int, scratch: Path
) -> Iterator[Any]:
    """Endless batches, in random order. scratch: where datasets may keep its files."""
    name = settings["name"]
    spawn = "spawn" if workers else None
    if name == "webdataset":
        data = Pictures([], reader, tokenizer)
        stream, order = _webdataset(settings["path"], data), None
    else:
        stream = data = Pictures(OPEN[name](Path(settings["path"]), scratch), reader, tokenizer)
        order = RandomSampler(data, replacement=True, num_samples=1 << 30)
    yield from DataLoader(
        stream,
        batch_size,
        sampler=order,
        num_workers=workers,
        collate_fn=Tensors(data),
        multiprocessing_context=spawn,
    )


def _json(path: Path, scratch: Path) -> list[dict[str, Any]]:
    return [row | {"image": str(path.parent / row["image"])} for row in json.loads(path.read_text())]


def _coco(path: Path, scratch: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text())
    captions: dict[int, list[str]] = {}
    for annotation in content["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return [
        {"image": str(path.parent / row["file_name"]), "image_id": row["id"], "caption": captions[row["id"]]}
        for row in content["images"]
    ]


def _vqa(path: Path, scratch: Path) -> list[dict[str, Any]]:
    asked, given = (json.loads((path.parent / f"{kind}.json").read_text()) for kind in ("questions", "annotations"))
    answers = {row["question_id"]: [one["answer"] for one in row["answers"]] for row in given["annotations"]}
    return [
        {
            "image": str(path.parent / f"COCO_val2014_{row['image_id']:012}.jpg"),
            "image_id": row["image_id"],
            "questions": [row["question"]],
            "answers": [answers[row["question_id"]]],
        }
        for row in asked["questions"]
    ]


def _folder(path: Path, scratch: Path) -> list[dict[str, Any]]:
    return [
        {"image": str(file), "label": label}
        for label, folder in enumerate(sorted(path.iterdir()))
        for file in sorted(folder.iterdir())
    ]


def _parquet(path: Path, scratch: Path) -> Any:
    from datasets import Image, disable_progress_bars, load_dataset

    disable_progress_bars()
    rows = load_dataset("parquet", data_files=str(path / "*.parquet"), split="train", cache_dir=str(scratch))
    return rows.cast_column("image", Image())


def _text(path: Path, scratch: Path) -> list[dict[str, Any]]:
    return [{"text": line} for line in path.read_text().splitlines()]


OPEN = {"json": _json, "coco": _coco, "vqa": _vqa, "folder": _folder, "parquet": _parquet, "text": _text}


def _webdataset(path: str, data: Pictures) -> Any:
    """Shards in random order, and then samples among the last so many, as webdataset's documentation shuffles them."""
    import webdataset

    shards = sorted(map(str, Path(path).glob("*.tar")))
    stream = webdataset.WebDataset(shards, resampled=True, shardshuffle=False)
    return stream.shuffle(128).decode("pil").to_tuple("jpg", "txt").map(_Segments(data))


class _Segments:
    def __init__(self, data: Pictures):
        self.data = data

    def __call__(self, sample: tuple[Any, str]) -> Any:
        picture, caption = sample
        return self.data.segment({"image": picture, "caption": caption, "image_id": 0})
