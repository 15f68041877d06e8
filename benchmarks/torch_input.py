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
from jaxfusion.text.tokenizer import Tokenizer


class Pictures(Dataset):
    """A record's segment: Pillow's whole decode and its bicubic resize, then the text."""

    def __init__(self, records: Sequence[Any], reader: Reader, tokenizer: Tokenizer):
        self.records, self.reader, self.tokenizer = records, reader, tokenizer
        self.layout = Layout.of(reader.model)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        record, size = self.records[index], self.reader.model.vision.image_size
        picture = Image.open(io.BytesIO(record["image"])).convert("RGB")
        image = np.array(picture.resize((size, size), Image.Resampling.BICUBIC))
        (sample,) = samples_of(record, self.reader.data, [image], [])
        return tokenise(sample, self.tokenizer, self.layout)

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
        data, batch_size, sampler=order, num_workers=workers, collate_fn=_Tensors(data), multiprocessing_context=spawn
    )


class _Tensors:
    """Tensors pass between processes without a copy."""

    def __init__(self, data: Pictures):
        self.data = data

    def __call__(self, segments: list[Any]) -> list[torch.Tensor]:
        batch = self.data.collate(segments)
        return [torch.from_numpy(array) for array in vars(batch).values() if isinstance(array, np.ndarray)]
