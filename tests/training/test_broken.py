"""Checkpoints that lost a file, or half of one: training and whoever reads go on from the one before."""

import shutil
from functools import partial
from pathlib import Path

import jax
import pytest

from jaxfusion.errors import UserError
from jaxfusion.training.broken import MAX_REASON, read_or_broken, reason_of, set_aside
from jaxfusion.training.checkpoint import Checkpoints, restore_newest
from jaxfusion.workdir import latest_step
from tests.training.test_checkpoint import assert_same, at_step, new_state


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpoints(workdir, keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, at_step(step), {"step": step})
    return workdir


@pytest.fixture
def workdir(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def largest(directory: Path) -> Path:
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def restore(workdir: Path, abstract=None):
    told = []
    with Checkpoints(workdir, keep=3, tell=told.append) as checkpoints:
        restored = checkpoints.restore_latest(abstract or jax.eval_shape(new_state))
        assert checkpoints.latest_step == int(restored[0].step)
    return *restored, told


BREAKS = {
    "truncated values": (lambda home: halve(largest(home / "params" / "d")), "OUT_OF_RANGE"),
    "truncated optimizer": (lambda home: halve(home / "optimizer" / "_METADATA"), "Unterminated string"),
    "empty manifest": (lambda home: (home / "params" / "manifest.ocdbt").write_bytes(b""), "DATA_LOSS"),
    "no list of arrays": (lambda home: (home / "params" / "_METADATA").unlink(), "params/_METADATA is missing"),
    "no parameters": (lambda home: shutil.rmtree(home / "params"), "params is missing"),
    "no place in the data": (lambda home: shutil.rmtree(home / "iterator"), "iterator is missing"),
    "half of the place": (lambda home: (home / "iterator" / "metadata").write_bytes(b'{"st'), "Unterminated"),
    "nothing but its name": (lambda home: [shutil.rmtree(home), home.mkdir()], "params is missing"),
}


@pytest.mark.parametrize("how", BREAKS)
def test_training_goes_on_from_the_one_before_and_says_so(workdir, how):
    break_it, why = BREAKS[how]
    break_it(workdir / "checkpoints" / "3")
    state, place, told = restore(workdir)
    assert_same(state, at_step(2))
    assert place == {"step": 2}
    [line] = told
    assert "3.broken is broken" in line and why in line and line.endswith("going on from step 2")
    assert "\n" not in line
    assert latest_step(workdir) == 2
    with Checkpoints(workdir, keep=3) as checkpoints:
        checkpoints.save(3, at_step(3), {"step": 3})  # the step can be saved anew
    assert_same(restore(workdir)[0], at_step(3))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2", "3", "3.broken"]


def test_a_reader_takes_the_one_before_and_leaves_all_as_it_is(workdir):
    halve(largest(workdir / "checkpoints" / "3" / "params" / "d"))
    (workdir / "checkpoints" / "2" / "params" / "_METADATA").unlink()
    told = []
    params, step = restore_newest(workdir, jax.eval_shape(new_state).params, tell=told.append)
    assert step == 1
    assert_same(params, at_step(1).params)
    assert [line.endswith("taking the parameters of step 1") for line in told] == [True, True]
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2", "3"]


def test_where_all_are_broken_nothing_is_touched(workdir):
    for step in "123":
        halve(largest(workdir / "checkpoints" / step / "params" / "d"))
    with pytest.raises(UserError, match=r"every checkpoint is broken \(3: .*; 2: .*; 1: "):
        restore(workdir)
    assert latest_step(workdir) == 3


def test_another_models_checkpoint_is_not_taken_for_a_broken_one(workdir):
    with pytest.raises(UserError, match="use the config that it was trained with"):
        restore(workdir, jax.eval_shape(partial(new_state, 12)))
    assert latest_step(workdir) == 3


def test_frozen_parameters_that_cannot_be_read_are_told_of(tmp_path):
    state = at_step(1).replace(trainable=("decoder/*",))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {})
    whole = (tmp_path / "frozen" / "_METADATA").read_bytes()
    for broken in (lambda path: path.unlink(), halve):
        (tmp_path / "frozen" / "_METADATA").write_bytes(whole)
        broken(tmp_path / "frozen" / "_METADATA")
        with pytest.raises(UserError, match=r"frozen: the run's frozen parameters cannot be read \("):
            restore(tmp_path, jax.eval_shape(lambda: state))
    (tmp_path / "frozen" / "_METADATA").write_bytes(whole)
    halve(largest(tmp_path / "frozen" / "d"))
    with pytest.raises(UserError, match=r"frozen: the run's frozen parameters cannot be read \("):
        restore(tmp_path, jax.eval_shape(lambda: state))
    assert latest_step(tmp_path) == 1


@pytest.mark.parametrize("error", [MemoryError(), PermissionError(), ValueError("RESOURCE_EXHAUSTED: out of memory")])
def test_want_of_memory_or_rights_is_no_broken_file(error):
    def read():
        raise error

    with pytest.raises(type(error)):
        read_or_broken(read)


def test_broken_ones_of_the_same_step_do_not_write_over_each_other(tmp_path):
    for name in ("7.broken", "7.broken.1", "7"):
        (tmp_path / name).mkdir()
    assert set_aside(tmp_path, 7).name == "7.broken.2"
    assert len(reason_of(ValueError("long " * 100 + "\n"))) == MAX_REASON + 3
