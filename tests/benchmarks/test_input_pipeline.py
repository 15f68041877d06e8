"""The benchmark as it is run, on few and small pictures and without processes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.input_pipeline import main, make_records, reader_of
from benchmarks.source_files import WRITERS, write
from benchmarks.torch_sources import batches_of
from jaxfusion.data.dataset import open_dataset
from jaxfusion.data.images import read_image
from jaxfusion.data.loader import train_iterator
from jaxfusion.text.trained import TrainedTokenizer


def test_a_run_compares_the_two_and_writes_what_it_found(tmp_path, capsys):
    path = tmp_path / "result.json"
    size = ["--pictures", "3", "--picture", "120x90", "--image-size", "28", "--workers", "0"]
    assert main([*size, "--rounds", "1", "--batches", "1", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert result["command"] in capsys.readouterr().out
    assert result["environment"]["versions"]["torch"]
    rates = result["images_per_second"]
    assert min(rates.values()) > 0
    assert result["ours_to_torch"] == pytest.approx(rates["ours"] / rates["torch"])


def test_files_of_each_format_are_read_by_both(tmp_path, capsys):
    path = tmp_path / "result.json"
    size = ["--pictures", "3", "--picture", "120x90", "--image-size", "28", "--workers", "0"]
    assert main(["--source", "all", *size, "--rounds", "1", "--batches", "1", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert list(result["sources"]) == ["json", "coco", "vqa", "folder", "webdataset", "parquet", "text"]
    for found in result["sources"].values():
        rates = found["images_per_second"]
        assert found["ours_to_torch"] == pytest.approx(rates["ours"] / rates["torch"])


@pytest.mark.parametrize("name", list(WRITERS))
def test_both_read_the_same_samples_of_a_format(tmp_path, name):
    """In whatever order: the sets of their rows are the same, to the last token and pixel."""
    records = make_records(4, (56, 42))
    settings = write(name, records, tmp_path / "files")
    reader = reader_of(28, 0, settings | {"test_path": settings["path"], "scaled_decode": False})
    dataset = open_dataset(reader.data)
    reader = replace(reader, labels=dataset.labels)
    tokenizer = TrainedTokenizer.train([record["caption_en"] for record in records], 512)
    ours = train_iterator(dataset.train, reader, tokenizer, 4, 0)
    theirs = batches_of(settings, reader, tokenizer, 4, 0, tmp_path / "scratch")

    def rows(tokens, images):
        images = np.zeros(len(tokens)) if images is None else np.asarray(images)
        return {(np.asarray(t, np.int32).tobytes(), image.tobytes()) for t, image in zip(tokens, images, strict=True)}

    found = set.union(*(rows(batch.tokens, batch.images) for _, batch in zip(range(3), ours, strict=False)))
    assert len(found) == 4
    seen = set()
    for _, (tokens, *others) in zip(range(12), theirs, strict=False):
        seen |= rows(tokens, next((array for array in others if array.dtype is torch.uint8), None))
    assert seen == found


def test_pictures_are_of_their_size_and_no_two_alike():
    one, other = (read_image(record["image"]) for record in make_records(2, (120, 90)))
    assert one.shape == other.shape == (90, 120, 3)
    assert np.abs(one.astype(int) - other).mean() > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image-size", "100"], "--image-size: 100 is not a multiple of 28"),
        (["--picture", "640x200"], "--image-size: 224 is larger than the pictures"),
        (["--picture", "large"], "--picture: invalid"),
        (["--workers", "-1"], "--workers: -1 is not a positive number"),
        (["--json", "no/such/place.json"], "--json: no/such is not a directory"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
