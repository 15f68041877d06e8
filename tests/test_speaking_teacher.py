"""Data prepared with what a teacher says: runs on them learn what they would from the teacher itself."""

import io
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxfusion import prepare
from jaxfusion.config import Config, from_dict
from jaxfusion.config.run import ParallelConfig
from jaxfusion.data.loader import train_iterator
from jaxfusion.data.prepared import Prepared
from jaxfusion.errors import UserError
from jaxfusion.experiment import open_experiment
from jaxfusion.parallel import make_parallel
from jaxfusion.planning.run import plan_run
from jaxfusion.prepare import prepare_run
from jaxfusion.teacher import open_teacher, teacher_of
from jaxfusion.text.pretrained import load_tokenizer
from jaxfusion.text.trained import TrainedTokenizer
from jaxfusion.training.loop import train
from jaxfusion.training.metrics import read_metrics
from tests.checkpoint_tokenizers import qwen
from tests.test_teacher import make_run

VGG = {"kind": "vgg", "image_size": 8, "stage_depths": [1], "stage_widths": [4]}
SEES = {"vision": VGG, "projector": "pixel-shuffle"}
DECODER = {"kind": "transformer", "num_layers": 1, "num_heads": 2, "scan_layers": False, "dropout": 0.0}


def config_of(teacher="", width=8, **changes) -> Config:
    """changes: of settings, as data__row_length=64."""
    text = {"max_positions": 256}
    values = {
        "model": {"width": width, "text_embedding": text, **SEES, "decoder": DECODER},
        "distil": {"teacher": str(teacher), "temperature": 2.0, "weight": 0.75},
        "data": {"languages": ["en", "zh"], "row_length": 256},
        "train": {"num_steps": 4, "batch_size": 4, "warmup_steps": 0, "learning_rate": 0.01, "log_every": 1},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        values.setdefault(section, {})[key] = value
    return from_dict(Config, values)


def make_teacher(directory, tokenizer, seed=0):
    config = config_of(width=16)
    text = replace(config.model.text_embedding, vocab_size=tokenizer.vocab_size)
    config = replace(config, model=replace(config.model, text_embedding=text))
    return make_run(directory, config, tokenizer, seed)


@pytest.fixture(scope="module")
def tokenizer():
    return TrainedTokenizer.train(["a large red 3 at the top left, a small blue 7", "\u4e00\u4e2a"], 290)


@pytest.fixture(scope="module")
def teacher(tokenizer, tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("teachers") / "able", tokenizer)


@pytest.fixture(scope="module")
def prepared(teacher, tokenizer, small_data, tmp_path_factory):
    """Directories without what the teacher says, with all of it, and with its 3 largest probabilities."""
    home = tmp_path_factory.mktemp("prepared")
    for k in (0, tokenizer.vocab_size, 3):
        config = config_of(teacher, data__data_dir=str(small_data), prepare__teacher_top_k=k)
        output = io.StringIO()
        prepare_run(config, home / str(k), Console(file=output, width=200))
        assert (f"the {k} largest probabilities of" in output.getvalue()) == bool(k)
    assert "kB a visit, before compression" in output.getvalue()
    assert "ms for the teacher" in output.getvalue()
    return home


def on(prepared, teacher, small_data, workdir, **changes):
    config = config_of(teacher, data__prepared=str(prepared), data__data_dir=str(small_data), **changes)
    return open_experiment(config, workdir)


def run(experiment, workdir):
    config, model, reader = experiment.config, experiment.model, experiment.reader
    workdir.mkdir(exist_ok=True)
    asked = teacher_of(config, model, workdir, experiment.source)
    rows = train_iterator(experiment.source, reader, model.tokenizer, config.train.batch_size, config.train.seed)
    return train(config, model, rows, workdir, teacher=asked).params


def test_with_all_its_probabilities_a_run_is_as_with_the_teacher(
    prepared, teacher, tokenizer, small_data, tmp_path, capsys
):
    found, losses = {}, {}
    for k in (0, tokenizer.vocab_size):
        packed = {"data__packing": "best-fit", "data__row_length": 512}
        experiment = on(prepared / str(k), teacher, small_data, tmp_path / str(k), **packed)
        found[k] = run(experiment, tmp_path / str(k))
        rows = read_metrics(tmp_path / str(k))
        losses[k] = [[row["loss"], row["divergence"]] for row in rows]
    assert f"its {k} largest probabilities, as they were prepared" in " ".join(capsys.readouterr().out.split())
    np.testing.assert_allclose(losses[k], losses[0], rtol=1e-5)
    assert len(losses[0]) == 4 and losses[0][-1] != losses[0][0]
    for one, other in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    # And it does not go on without.
    alone = on(prepared / str(k), "", small_data, tmp_path / "alone")
    with pytest.raises(UserError, match="began with the teacher .*able, and here it is no teacher"):
        teacher_of(alone.config, alone.model, tmp_path / str(k), alone.source)


def test_another_teacher_temperature_or_table_is_refused(
    prepared, teacher, tokenizer, small_data, tmp_path, monkeypatch
):
    def ask(name, **changes):
        experiment = on(prepared / "3", name, small_data, tmp_path / "run", **changes)
        asked = teacher_of(experiment.config, experiment.model, tmp_path, experiment.source)
        return asked(make_parallel(ParallelConfig()))

    assert ask(teacher)[0].k == 3
    with pytest.raises(UserError, match=r"prepared with config\.distil\.temperature = 2\.0, and here it is 1\.0"):
        ask(teacher, distil__temperature=1.0)
    other = make_teacher(tmp_path / "other", tokenizer, seed=1)
    with pytest.raises(UserError, match=r"prepared with the fingerprint of config\.distil\.teacher = '\w+', and here"):
        ask(other)
    with pytest.raises(UserError, match=r"^config\.distil\.features: .* not its hidden states"):
        ask(teacher, distil__features=1.0)
    # Wherever it lies; and where it is not to be had, its name has to do.
    moved = shutil.move(teacher, tmp_path / "moved")
    monkeypatch.setenv("HOME", str(tmp_path))
    try:
        ask(moved)
        ask("~/moved")
        ask(teacher)
        with pytest.raises(UserError, match=r"with config\.distil\.teacher = '.*able', and here it is 'nobody'"):
            ask("nobody")
    finally:
        shutil.move(moved, teacher)
    # Without a teacher it is data like any other.
    assert on(prepared / "3", "", small_data, tmp_path / "plain").source[0].variants[0].told is None


def test_it_goes_on_speaking_where_it_was_killed(prepared, teacher, small_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "SHARD_RECORDS", 7)
    taken, to_bytes = [], prepare.to_bytes

    def killed_in_the_third_shard(columns):
        taken.append(columns)
        if len(taken) == 17:
            raise KeyboardInterrupt
        return to_bytes(columns)

    monkeypatch.setattr(prepare, "to_bytes", killed_in_the_third_shard)
    config = config_of(teacher, data__data_dir=str(small_data), prepare__teacher_top_k=3)
    with pytest.raises(KeyboardInterrupt):
        prepare_run(config, tmp_path / "out")
    prepare_run(config, tmp_path / "out")
    assert "has 14 records already" in capsys.readouterr().out
    again, whole = Prepared(tmp_path / "out", told=True), Prepared(prepared / "3", told=True)
    for place in (0, 13, 14, 23):
        for ours, theirs in zip(again[place].variants, whole[place].variants, strict=True):
            np.testing.assert_array_equal(ours.tokens, theirs.tokens)
            np.testing.assert_array_equal(ours.told.ids, theirs.told.ids)
            np.testing.assert_allclose(ours.told.log_probs, theirs.told.log_probs, atol=1e-5)
    with pytest.raises(UserError, match=r"^--output: .* with config\.prepare\.teacher_top_k = 3, and here it is 2"):
        prepare_run(replace(config, prepare=replace(config.prepare, teacher_top_k=2)), tmp_path / "out")
    with pytest.raises(UserError, match=r"^--output: .*dtype.* = 'float32', and here it is 'bfloat16'"):
        prepare_run(replace(config, model=replace(config.model, dtype="bfloat16")), tmp_path / "out")
    with pytest.raises(UserError, match=r"^config\.prepare\.teacher_top_k: there is no teacher"):
        prepare_run(replace(config, distil=replace(config.distil, teacher="")), tmp_path / "new")


def test_a_teachers_own_tokenizer_stays_with_the_data(small_data, tmp_path):
    theirs = load_tokenizer(qwen(tmp_path / "qwen"))
    able = make_teacher(tmp_path / "able", theirs)
    blind = {"model__vision": None, "data__modalities": ["text"]}
    config = config_of(able, data__data_dir=str(small_data), **blind)
    prepare_run(config, tmp_path / "out", Console(file=io.StringIO()))
    for name in (able, ""):
        experiment = on(tmp_path / "out", name, small_data, tmp_path / "run", **blind)
        assert experiment.model.tokenizer.encode("where is it?") == theirs.encode("where is it?")
        if name:
            open_teacher(experiment.config, experiment.model)


def test_a_plan_needs_no_teacher_then(prepared, teacher, small_data, tmp_path, monkeypatch):
    """Compiled for the CPU here, as in test_teacher.py."""
    monkeypatch.setattr("jaxfusion.planning.step.described_mesh", lambda *_: make_parallel(ParallelConfig()).mesh)
    monkeypatch.setattr(
        "jaxfusion.planning.step.compile_for",
        lambda step, state, batch, **_: jax.jit(step, donate_argnums=0).lower(state, batch).compile(),
    )
    plan = plan_run(on(prepared / "3", teacher, small_data, tmp_path).config)
    assert "teacher" not in plan.parameters
    said = 256 * (3 * 4 + 3 * 4 + 4)  # of a row: ids, logarithms, and those of the rest
    assert plan.batch > 4 * said
