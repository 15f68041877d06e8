"""The benchmark as it is run, on few and small pictures and without processes."""

import json

import numpy as np
import pytest

from benchmarks.input_pipeline import main, make_records
from jaxfusion.data.images import read_image


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
