"""Which checkpoints stay: the newest, every so manieth, and the best by a held-out number."""

import json
from types import SimpleNamespace

import pytest

from jaxfusion.config import Config, override
from jaxfusion.errors import UserError
from jaxfusion.training.best import Best
from jaxfusion.training.checkpoint import Checkpoints
from tests.training.test_checkpoint import at_step
from tests.training.test_loop import make_config, run, saved_steps


def test_every_so_manieth_stays_beside_the_newest(tmp_path):
    with Checkpoints(tmp_path, keep=1, every=4) as checkpoints:
        for step in (2, 4, 6, 8, 10):
            checkpoints.save(step, at_step(step), {})
        checkpoints.wait()
        assert checkpoints.steps == {4, 8, 10}
    assert saved_steps(tmp_path) == [4, 8, 10]


def losses(*values):
    remaining = iter(values)
    return lambda _params: {"test_loss": next(remaining), "test_accuracy": 0.5}


def test_the_best_stays_on_the_disk_and_is_named_also_when_a_run_goes_on(tmp_path):
    """It may be of a step at which no checkpoint was due."""
    settings = {"checkpoint_every": 4, "keep_checkpoints": 1, "keep_best": "test_loss"}
    run(make_config(8, evaluate_every=3, **settings), tmp_path, losses(0.5, 0.7))
    assert saved_steps(tmp_path) == [3, 8]
    assert json.loads((tmp_path / "best.json").read_text()) == {"metric": "test_loss", "value": 0.5, "step": 3}
    run(make_config(14, evaluate_every=3, **settings), tmp_path, losses(0.6, 0.25))  # at 9, and at 12
    assert saved_steps(tmp_path) == [12, 14]
    assert json.loads((tmp_path / "best.json").read_text()) == {"metric": "test_loss", "value": 0.25, "step": 12}


@pytest.mark.parametrize(("metric", "values", "step"), [("test_loss", [3, 1, 2], 2), ("cider", [3, 1, 4, 4], 3)])
def test_losses_are_best_when_small_and_others_when_large(tmp_path, metric, values, step):
    best = Best(tmp_path, metric)
    noted = [best.note(number, {metric: float(value)}, must_have=True) for number, value in enumerate(values, 1)]
    assert noted[0] and noted[step - 1] and sum(noted) == 2
    assert not best.note(9, {metric: float("nan")}, must_have=True)
    saved = [SimpleNamespace(step=number) for number in (1, 2, 3, 4)]
    assert best.should_preserve(saved, context=None) == [number == step for number in (1, 2, 3, 4)]


def test_what_is_no_longer_on_the_disk_is_beaten_by_anything(tmp_path):
    best = Best(tmp_path, "test_loss")
    best.resume([{"step": 3, "test_loss": 0.1}, {"step": 4, "loss": 0.0}, {"step": 6, "test_loss": 0.4}], {4, 6})
    assert best.step == 6
    assert not best.note(9, {"test_loss": 0.5}, must_have=True)
    assert best.note(12, {"test_loss": 0.3}, must_have=True)


def test_a_metric_that_no_evaluation_gives_is_refused(tmp_path):
    best = Best(tmp_path, "test_los")
    assert not best.note(1, {"test_loss": 1.0}, must_have=False)
    with pytest.raises(UserError, match="does not give 'test_los'; it gives test_loss"):
        best.note(1, {"test_loss": 1.0}, must_have=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.keep_every": 300, "train.checkpoint_every": 200}, r"keep_every: 300 is no multiple"),
        ({"train.keep_best": "test_loss"}, r"keep_best: .* set config\.evaluate\.every"),
    ],
)
def test_settings_that_would_keep_nothing_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        override(Config(), {name: str(value) for name, value in settings.items()})
