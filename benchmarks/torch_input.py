"""The same batches by torch's DataLoader: a Dataset that decodes and tokenises, a collate function that packs."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler

from jaxfusion.batch import Batch
from jaxfusion.data.loader import Reader
from jaxfusion.data.packing import pack
from jaxfusion.data.tasks import samples_of
from jaxfusion.data.tokenise import Layout, tokenise
from jaxfusion.data.visits import visit
from jaxfusion.text.tokenizer import Tokenizer


class Pictures(Dataset):
    """A record's segment: Pillow's whole decode and its bicubic resize, then the text."""

    def __init__(self, records: Sequence[Any], reader: Reader, tokenizer: Tokenizer):
        self.records, self.reader, self.tokenizer = records, reader, tokenizer
        self.layout, self.rng = Layout.of(reader.model), np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        return self.segment(self.records[index])

    def segment(self, record: dict[str, Any]) -> Any:
        record = {"origin": ""} | record  # ours has to know where records are from, and this only what is in them
        images = [self.see(record["image"])] if "image" in record else []
        (sample,) = samples_of(record | {"images": images}, self.reader.data, images, self.reader.labels)
        return tokenise(visit([sample], self.rng), self.tokenizer, self.layout)

    def see(self, entry: Any) -> np.ndarray:
        """entry: of a file its path or bytes, or a picture that has been opened."""
        size = self.reader.model.vision.image_size
        picture = entry if isinstance(entry, Image.Image) else Image.open(_file(entry))
        return np.array(picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))

    def collate(self, segments: list[Any]) -> Batch:
        rows = [[segment] for segment in segments]
        return pack(rows, self.reader.data.row_length, self.layout.tokens_per_image)


def batches_of(
    records: Sequence[Any], reader: Reader, tokenizer: Tokenizer, batch_size: int, workers: int
) -> Iterator[list[torch.Tensor]]:
    """Endless, in random order; a batch is a list of its arrays as tensors."""
    data = Pictures(records, reader, tokenizer)
    order = RandomSampler(data, replacement=True, num_samples=1 << 30)
    spawn = "spawn" if workers else None  # as ours; a process with threads in it had best not be forked
    yield from DataLoader(
        data, batch_size, sampler=order, num_workers=workers, collate_fn=Tensors(data), multiprocessing_context=spawn
    )


def _file(entry: bytes | str) -> Any:
    return io.BytesIO(entry) if isinstance(entry, bytes) else entry


class Tensors:
    """Tensors pass between processes without a copy."""

    def __init__(self, data: Pictures):
        self.data = data

    def __call__(self, segments: list[Any]) -> list[torch.Tensor]:
        batch = self.data.collate(segments)
        return [torch.from_numpy(array) for array in vars(batch).values() if isinstance(array, np.ndarray)]
