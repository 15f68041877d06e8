"""Updates that were left out: how many in a row end a run, and which samples its last line names."""

import json

import pytest

from jaxfusion.errors import UserError
from jaxfusion.training.skipped import SkippedUpdates

BAD = {"loss": float("nan"), "gradient_norm": float("inf"), "skipped_updates": 1.0}
GOOD = {"loss": 1.0, "gradient_norm": 1.0, "skipped_updates": 0.0}


def names(place: dict) -> list[str]:
    return [f"{place['next']}{letter}" for letter in "abcdefghi"]


def test_none_may_be_left_out(tmp_path):
    skipped = SkippedUpdates(tmp_path, 0, names, pytest.fail)
    skipped.note(1, GOOD, {"next": 0}, None)
    with pytest.raises(UserError, match=r"at step 2 the loss is nan and the gradient's norm inf; .*no checkpoint was"):
        skipped.note(2, BAD, {"next": 4}, None)


def test_those_in_a_row_are_counted_and_their_samples_named(tmp_path):
    told = []
    skipped = SkippedUpdates(tmp_path, 2, names, told.append)
    for step, numbers in enumerate([BAD, BAD, GOOD, BAD, BAD], 1):
        skipped.note(step, numbers, {"next": step - 1}, 3)
    assert [line.split(" the loss")[0] for line in told] == ["at step 1", "at step 4"]
    message = (
        r"and so it was 2 times before; look at samples 3a, 3b, 3c, 3d, 3e, 3f, 3g, 3h, \.\.\. of step 4 \(skipped_up"
    )
    with pytest.raises(UserError, match=message):
        skipped.note(6, BAD, {"next": 5}, 3)
    found = json.loads((tmp_path / "skipped_updates.json").read_text())
    assert [(entry["step"], entry["samples"]) for entry in found] == [(n, names({"next": n - 1})) for n in (4, 5, 6)]


def test_samples_that_cannot_be_read_again_hide_nothing(tmp_path):
    def gone(place: dict) -> list[str]:
        raise OSError("the disk is gone")

    skipped = SkippedUpdates(tmp_path, 0, gone, pytest.fail)
    with pytest.raises(
        UserError, match=r"could not be read again \(the disk is gone\); lower the rate.*of step 1 is kept"
    ):
        skipped.note(2, BAD, {}, 1)
