"""Runs that end, are stopped, are killed and go on: the real loop, data iterator and model, on one device."""

import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import grain
import jax
import numpy as np
import pytest

from jaxfusion.batch import Batch
from jaxfusion.config import Config
from jaxfusion.config.model import ModelConfig, TextEmbeddingConfig, TokenClassifierConfig, TransformerDecoderConfig
from jaxfusion.config.run import EvaluateConfig, TrainConfig
from jaxfusion.errors import UserError
from jaxfusion.models.vlm import build
from jaxfusion.training.checkpoint import Checkpoints
from jaxfusion.training.loop import stop_signals, train
from jaxfusion.training.metrics import read_metrics
from jaxfusion.training.optimizer import learning_rate_schedule, make_optimizer
from jaxfusion.training.state import TrainState, create_state
from jaxfusion.workdir import latest_step

ROWS, LENGTH, VOCAB = 4, 6, 7


def make_config(num_steps: int, *, evaluate_every: int = 0, full_every: int = 0, decoder=None, **settings) -> Config:
    return Config(
        model=ModelConfig(
            width=8,
            text_embedding=TextEmbeddingConfig(vocab_size=VOCAB, positions="none"),
            decoder=decoder or TokenClassifierConfig(),
        ),
        train=TrainConfig(num_steps=num_steps, batch_size=ROWS, warmup_steps=2, **settings),
        evaluate=EvaluateConfig(every=evaluate_every, full_every=full_every),
    )


def make_iterator():
    """Shuffled samples, batched as the loader does it, for ever."""
    tokens = np.random.default_rng(0).integers(0, VOCAB, (23, LENGTH)).astype(np.int32)

    def to_batch(rows: list) -> Batch:
        return jax.tree.map(np.asarray, Batch.from_tokens(np.stack(rows)))

    samples = grain.MapDataset.source(tokens).seed(1).shuffle().repeat()
    return iter(samples.batch(ROWS, batch_fn=to_batch).to_iter_dataset())


def run(config: Config, workdir: Path, evaluate=None, iterator=None, **settings):
    return train(config, build(config.model), iterator or make_iterator(), workdir, evaluate=evaluate, **settings)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def saved_steps(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@dataclass
class Finished:
    workdir: Path
    state: TrainState
    output: str
    compilations: list[int]  # how many there had been at each evaluation, and at the end


CONFIG = make_config(10, log_every=4, checkpoint_every=3, keep_checkpoints=9, evaluate_every=3, full_every=6)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Finished:
    """One run, to look at from several sides."""
    counts, compilations = [], []

    def count(name: str, *_, **__) -> None:
        if name == "/jax/core/compile/backend_compile_duration":
            counts.append(name)

    def evaluate(params) -> dict[str, float]:
        assert set(params) == {"text_embedding", "decoder"}
        compilations.append(len(counts))
        return {"test_loss": 1.5}

    def evaluate_fully(params) -> dict[str, float]:
        return evaluate(params) | {"cider": 2.5}

    workdir, output = tmp_path_factory.mktemp("run"), io.StringIO()
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        with contextlib.redirect_stdout(output):
            state = run(CONFIG, workdir, evaluate, evaluate_fully=evaluate_fully)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    return Finished(workdir, state, output.getvalue(), [*compilations, len(counts)])


def test_rows_checkpoints_and_evaluations_come_when_they_are_due(finished):
    rows = read_metrics(finished.workdir)
    trained = [row for row in rows if "loss" in row]
    assert [row["step"] for row in trained] == [4, 8, 10]
    looks = [{"step": step, "test_loss": 1.5} for step in (3, 6, 9)]
    looks[1]["cider"] = 2.5  # where a whole evaluation is due, it comes in the other's place
    assert [row for row in rows if "loss" not in row] == looks
    assert [row["step"] for row in rows] == [3, 4, 6, 8, 9, 10]
    names = {"step", "loss", "accuracy", "learning_rate", "gradient_norm", "seconds", "compilations", "skipped_updates"}
    rates = {f"{name}_per_second" for name in ("samples", "tokens", "steps", "model_flops")}
    assert set(trained[0]) == names | rates | {"useful_tokens", "input_bound"}  # a CPU's peaks are not known
    assert all(row["compilations"] == row["useful_tokens"] == 1 for row in trained)
    assert all(row["skipped_updates"] == 0 for row in trained)
    assert all(row["tokens_per_second"] == pytest.approx(LENGTH * row["samples_per_second"]) for row in trained)
    assert saved_steps(finished.workdir) == [3, 6, 9, 10]
    assert int(finished.state.step) == 10
    assert "step 10/10" in finished.output


def test_the_step_is_compiled_once(finished):
    # The first rows take a few small programs of their own, so the count begins after the first two evaluations.
    assert 0 < finished.compilations[1] == finished.compilations[2] == finished.compilations[3]


def test_a_finished_run_is_left_as_it_is(finished, capsys):
    before = (finished.workdir / "metrics.jsonl").read_text()
    assert_same(run(CONFIG, finished.workdir), finished.state)
    assert (finished.workdir / "metrics.jsonl").read_text() == before
    assert "has all of its 10 steps" in capsys.readouterr().out


def test_a_longer_run_goes_on_from_the_end_of_a_shorter_one(finished, tmp_path, capsys):
    shutil.copytree(finished.workdir, tmp_path / "longer")
    state = run(make_config(12, log_every=4), tmp_path / "longer")
    assert int(state.step) == 12
    assert "continuing from step 10" in capsys.readouterr().out
    rows = [row for row in read_metrics(tmp_path / "longer") if "loss" in row]
    assert [row["step"] for row in rows] == [4, 8, 10, 12]
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)


def test_where_the_last_checkpoint_is_broken_its_steps_are_trained_again(finished, tmp_path, capsys):
    workdir = tmp_path / "broken"
    shutil.copytree(finished.workdir, workdir)
    (workdir / "checkpoints" / "10" / "optimizer" / "manifest.ocdbt").write_bytes(b"")
    assert_same(run(CONFIG, workdir), finished.state)
    output = capsys.readouterr().out
    assert "10.broken is broken" in output and "continuing from step 9" in output
    assert [row["step"] for row in read_metrics(workdir) if "loss" in row] == [4, 8, 10]
    assert latest_step(workdir) == 10


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, capsys, number, code):
    """SIGTERM comes from a scheduler that wants the machine, and takes any other code for a failure."""

    def stop(_params):
        os.kill(os.getpid(), number)
        return {}

    with pytest.raises(SystemExit) as exit_info:
        run(make_config(9, log_every=2, checkpoint_every=100, evaluate_every=4), tmp_path, stop)
    assert exit_info.value.code == code
    assert saved_steps(tmp_path) == [5]
    [line] = [line for line in capsys.readouterr().out.splitlines() if "stopped after step 5" in line]
    assert "run the same command again to go on" in line


def test_the_first_signal_waits_and_the_second_acts(request):
    # A shell starts what it puts in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with stop_signals() as stopped:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with stop_signals():
        pass
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


class Poisoned:
    """The iterator, with a weight that is no number in the batches of these steps."""

    def __init__(self, *steps: int):
        self.inner, self.taken, self.steps = make_iterator(), 0, steps

    def __next__(self):
        self.taken += 1
        batch = next(self.inner)
        weights = batch.loss_weights * (np.nan if self.taken in self.steps else 1)
        return batch.replace(loss_weights=weights.astype(np.float32))

    def get_state(self):
        return self.inner.get_state()


def names(place: dict) -> list[str]:
    return [f"{place['next_index']}{letter}" for letter in "abcdefghi"]


def test_an_update_that_is_not_finite_is_left_out_and_counted(tmp_path, capsys):
    config = make_config(8, checkpoint_every=5, log_every=2, max_skipped=1)
    state = run(config, tmp_path, iterator=Poisoned(3, 5), names=names)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    rows = read_metrics(tmp_path)
    assert [(row["step"], row["skipped_updates"]) for row in rows] == [(2, 0), (4, 1), (6, 1), (8, 0)]
    assert all(np.isfinite(row["loss"]) for row in rows)
    schedule = learning_rate_schedule(config.train)
    rates = [float(schedule(updates - 1)) for updates in (2, 3, 4, 6)]
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates)
    output = capsys.readouterr().out
    assert "at step 3 the loss is nan" in output and "at step 5 the loss is nan" in output
    assert saved_steps(tmp_path) == [5, 8]


def test_too_many_in_a_row_stop_the_run_and_keep_the_good_checkpoint(tmp_path):
    config = make_config(20, checkpoint_every=3, log_every=1, max_skipped=1)
    message = r"at step 8 the loss is nan .* look at samples 6a, .*checkpoint of step 6 is kept"
    with pytest.raises(UserError, match=message):
        run(config, tmp_path, iterator=Poisoned(5, 7, 8, 9), names=names)
    assert saved_steps(tmp_path) == [3, 6]


def test_data_that_end_are_an_error(tmp_path):
    short = iter(grain.MapDataset.range(2).map(lambda _: next(make_iterator())).to_iter_dataset())
    with pytest.raises(UserError, match="training data end after step 2"):
        run(make_config(5), tmp_path, iterator=short)


LONG_RUN = make_config(
    30, checkpoint_every=4, log_every=3, decoder=TransformerDecoderConfig(num_layers=1, num_heads=1, dropout=0.2)
)


def start(workdir: Path, kill_at: int) -> subprocess.Popen:
    """The long run in a process of its own, which is killed when it has done step `kill_at`; 0: never."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled")}  # the same program in every process
    environment = os.environ | cache | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, str(workdir), str(kill_at)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def last_state(workdir: Path):
    model, optimizer = build(LONG_RUN.model), make_optimizer(LONG_RUN.train)
    abstract = jax.eval_shape(partial(create_state, model, optimizer, jax.random.key(0)))
    with Checkpoints(workdir, keep=9) as checkpoints:
        return checkpoints.restore_latest(abstract)


def test_a_run_that_is_killed_twice_ends_with_the_parameters_of_an_unbroken_one(tmp_path):
    """Dropout, shuffling and the optimizer's moments all have to go on exactly where they were."""
    unbroken = start(tmp_path / "unbroken", 0)  # like the others, whatever this process has compiled before
    _, errors = unbroken.communicate(timeout=300)
    assert unbroken.returncode == 0, errors
    for kill_at in (random.randrange(9, 16), 20):  # 20 is a checkpoint's step: its save is still under way
        killed = start(tmp_path / "killed", kill_at)
        _, errors = killed.communicate(timeout=300)
        assert killed.returncode == -signal.SIGKILL, errors
        steps = [row["step"] for row in read_metrics(tmp_path / "killed")]
        assert steps == [step for step in range(1, kill_at + 1) if step % 3 == 0]
    resumed = start(tmp_path / "killed", 0)
    _, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors
    assert "absl" not in errors and "orbax" not in errors  # Orbax is kept quiet
    state, iterator_state = last_state(tmp_path / "killed")
    expected, expected_iterator = last_state(tmp_path / "unbroken")
    assert int(state.step) == 30
    assert_same(state, expected)
    assert iterator_state == expected_iterator
    assert [row["step"] for row in read_metrics(tmp_path / "killed")] == list(range(3, 31, 3))


def kill(_params) -> dict:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


if __name__ == "__main__":
    run(replace(LONG_RUN, evaluate=EvaluateConfig(every=int(sys.argv[2]))), Path(sys.argv[1]), kill)
    assert "torch" not in sys.modules  # which tensorboardX would import, and which takes seconds
