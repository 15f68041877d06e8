"""Rows of the mixed workload are as full as promised, by sizes alone and as training gets them."""

import pytest

from benchmarks.mixed import MixedReader
from benchmarks.packing import MODEL, NUM_RECORDS, ROW_LENGTH, best_fit_rows, byte_tokenizer, mixed_sizes
from jaxfusion.config.run import DataConfig
from jaxfusion.data.loader import train_iterator
from jaxfusion.errors import UserError
from jaxfusion.models.sizes import batch_sizes


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def sizes(tokenizer):
    return mixed_sizes(tokenizer, 1200)


def test_tokens_and_image_slots_are_used(sizes, tokenizer):
    rows = best_fit_rows(sizes, ROW_LENGTH)
    assert rows["useful_tokens"] >= 0.95
    assert rows["filled_image_slots"] >= 0.90
    assert rows["samples_per_row"] > 4

    data = DataConfig(packing="best-fit", row_length=ROW_LENGTH, images_per_row=rows["images_per_row"])
    batches = train_iterator(range(NUM_RECORDS), MixedReader(data, MODEL), tokenizer, batch_size=8, seed=0)
    counts = [batch_sizes(MODEL, next(batches)) for _ in range(15)]
    sums = {name: sum(int(count[name]) for count in counts) for name in counts[0]}
    assert sums["tokens"] >= 0.95 * sums["positions"]
    assert sums["images"] >= 0.90 * sums["image_slots"]


def test_a_row_that_is_too_short_is_told(sizes):
    with pytest.raises(UserError, match="^--row-length: 100 is less than the longest sample's 2..; raise it$"):
        best_fit_rows(sizes, 100)
