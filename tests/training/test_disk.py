"""A disk that is full or cannot be written: training goes on, what is saved stays, and the end says what is not."""

import contextlib
import re
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxfusion.errors import UserError
from jaxfusion.training.checkpoint import Checkpoints
from jaxfusion.training.metrics import MetricsLog, read_metrics
from tests.training.test_checkpoint import assert_same, at_step, new_state
from tests.training.test_loop import make_config, run, saved_steps

FULL = OSError(28, "No space left on device")


@contextlib.contextmanager
def tmpfs(path: Path, size: str):
    """A file system of its own, where one may be mounted."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def too_large(state):
    noise = np.random.default_rng(0).random(100_000)  # which is not compressed
    return state.replace(params={"noise": jax.numpy.asarray(noise, jax.numpy.float32)})


def test_on_a_full_disk_the_last_good_checkpoint_stays_and_later_ones_are_saved(tmp_path):
    told = []
    with tmpfs(tmp_path / "small", "400k") as workdir, Checkpoints(workdir, 1, told.append) as checkpoints:
        checkpoints.save(1, at_step(1), {"step": 1})
        checkpoints.save(2, too_large(at_step(2)), {"step": 2})
        checkpoints.wait()
        [line] = told
        assert "step 2 could not be saved (No space left on device)" in line and "that of step 1" in line
        assert checkpoints.failure and checkpoints.latest_step == 1
        assert saved_steps(workdir) == [1]  # what was written of it makes room
        assert_same(checkpoints.restore_latest(jax.eval_shape(new_state))[0], at_step(1))
        checkpoints.save(3, at_step(3), {"step": 3})
        checkpoints.wait()
        assert checkpoints.failure is None and len(told) == 1
        assert saved_steps(workdir) == [3]


def test_frozen_parameters_that_do_not_fit_are_tried_again(tmp_path):
    told = []
    with tmpfs(tmp_path / "small", "300k") as workdir, Checkpoints(workdir, 1, told.append) as checkpoints:
        state = at_step(1).replace(trainable=("decoder/*",))
        large = state.replace(params=state.params | too_large(state).params)
        checkpoints.save(1, large, {})
        assert "step 1 could not be saved (No space left on device); there is no checkpoint yet" in told[0]
        checkpoints.save(2, state.replace(step=jax.numpy.int32(2)), {})
        restored, _ = checkpoints.restore_latest(jax.eval_shape(lambda: state))
        assert_same(restored.params, state.params)


def fail(monkeypatch, failing) -> None:
    """Orbax cannot write the steps that are failing, and finds out in the background."""
    save = ocp.JsonCheckpointHandler.async_save

    class Failed:
        def result(self, timeout=None):
            raise FULL

    async def async_save(self, directory, *args, **kwargs):
        written = await save(self, directory, *args, **kwargs)
        step = int(re.search(r"checkpoints/(\d+)", str(getattr(directory, "path", directory)))[1])
        return [*written, Failed()] if failing(step) else written

    monkeypatch.setattr(ocp.JsonCheckpointHandler, "async_save", async_save)


def test_training_goes_on_and_a_last_step_that_is_not_saved_is_an_error(tmp_path, monkeypatch, capsys):
    config = make_config(8, checkpoint_every=2, log_every=1)
    with monkeypatch.context() as patch:
        fail(patch, lambda step: step in (4, 8))
        message = r"step 8 could not be saved \(.*No space left.*\); make room.* goes on from step 6"
        with pytest.raises(UserError, match=message):
            run(config, tmp_path)
    assert saved_steps(tmp_path) == [2, 6]
    output = capsys.readouterr().out
    assert output.count("could not be saved") == 2
    assert "step 4 could not be saved" in output and "the newest checkpoint is that of step 2" in output
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 9))
    state = run(config, tmp_path)
    assert int(state.step) == 8 and saved_steps(tmp_path) == [6, 8]


class Full:
    """A file that takes half of the next line, and then nothing until there is room."""

    def __init__(self, file):
        self.file, self.room, self.name = file, 10, file.name

    def write(self, text: bytes) -> int:
        if not self.room:
            raise FULL
        part, self.room = text[: self.room], max(self.room - len(text), 0)
        return self.file.write(part)

    def close(self):
        self.file.close()


def test_rows_wait_for_room_and_that_is_told_once(tmp_path):
    told = []
    with MetricsLog(tmp_path, 0, told.append) as log:
        log.write(1, {"loss": 0.5})
        log._file = full = Full(log._file)
        for step in (2, 3):
            log.write(step, {"loss": 0.25})
        assert [row["step"] for row in read_metrics(tmp_path)] == [1]
        assert len(told) == 1 and "metrics.jsonl cannot be written (No space left on device)" in told[0]
        full.room = 1000
        log.write(4, {"loss": 0.125})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_tensorboard_ends_where_it_cannot_be_written_and_rows_go_on(tmp_path):
    told = []
    with MetricsLog(tmp_path, 0, told.append) as log:

        def add(*_):
            raise FULL

        log._tensorboard.add = add
        for step in (1, 2):
            log.write(step, {"loss": 0.5})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    assert len(told) == 1 and "it ends at step 1" in told[0]


def test_a_log_that_cannot_be_begun_is_refused(tmp_path):
    (tmp_path / "tensorboard").write_text("in its place")
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written"):
        MetricsLog(tmp_path, 0)
