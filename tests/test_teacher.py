"""Runs with a teacher: that they go on as they began, and each refusal in one line that names the mend."""

import gc
import shutil
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfusion.batch import Batch
from jaxfusion.config import Config, from_dict, override, to_dict
from jaxfusion.config.run import ParallelConfig
from jaxfusion.data.prepared import About
from jaxfusion.errors import UserError
from jaxfusion.experiment import open_experiment, train_run
from jaxfusion.files import write_json
from jaxfusion.models.vlm import build
from jaxfusion.parallel import make_parallel
from jaxfusion.planning.run import plan_run
from jaxfusion.provenance import weights_fingerprint
from jaxfusion.teacher import open_teacher, teacher_of
from jaxfusion.text.trained import TrainedTokenizer
from jaxfusion.training.checkpoint import Checkpoints
from jaxfusion.training.loop import train
from jaxfusion.training.metrics import read_metrics
from jaxfusion.training.optimizer import make_optimizer
from jaxfusion.training.state import create_state
from jaxfusion.workdir import load_run

SEES = {"kind": "vgg", "image_size": 8, "stage_depths": [1], "stage_widths": [4]}
TEXT = "what a run learns from: several words, and a few more words"


@pytest.fixture(scope="module")
def tokenizer():
    return TrainedTokenizer.train([TEXT], 300)


def config_of(tokenizer, *, teacher="", width=8, decoder=None, vocab=0, context=32, features=0.0, **model) -> Config:
    decoder = decoder or {"kind": "transformer", "num_layers": 1, "num_heads": 2, "scan_layers": False}
    text = {"vocab_size": vocab or tokenizer.vocab_size, "max_positions": context}
    train = {"num_steps": 4, "batch_size": 2, "checkpoint_every": 2, "warmup_steps": 0}
    values = {
        "model": {"width": width, "text_embedding": text, "vision": None, "decoder": decoder} | model,
        "distil": {"teacher": str(teacher), "features": features},
        "data": {"row_length": 8},
        "train": train | {"log_every": 1},
    }
    return from_dict(Config, values)


def make_run(workdir, config, tokenizer, seed=0):
    """A run's directory after its only step, in which nothing has changed."""
    model, optimizer = build(config.model, tokenizer), make_optimizer(config.train)
    state = jax.jit(partial(create_state, model, optimizer))(jax.random.key(seed))
    workdir.mkdir()
    write_json(workdir / "config.json", to_dict(config))
    tokenizer.save(workdir)
    with Checkpoints(workdir, 1) as checkpoints:
        checkpoints.save(1, state, {})
    return workdir


@pytest.fixture(scope="module")
def teacher(tokenizer, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("teachers") / "able", config_of(tokenizer, width=16), tokenizer)


class Rows:
    """Random rows, by number."""

    def __init__(self):
        self.step = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.step += 1
        tokens = np.random.default_rng(self.step).integers(6, 260, (2, 8))
        return jax.tree.map(np.asarray, Batch.from_tokens(tokens))

    def get_state(self):
        return {"step": self.step}

    def set_state(self, state):
        self.step = state["step"]


def run(config, tokenizer, workdir, rows=None):
    model = build(config.model, tokenizer)
    workdir.mkdir(exist_ok=True)
    return train(config, model, rows or Rows(), workdir, teacher=teacher_of(config, model, workdir))


def test_a_run_goes_on_as_if_it_had_not_stopped_and_with_no_other_teacher(teacher, tokenizer, tmp_path, capsys):
    config = partial(config_of, tokenizer, teacher=teacher, features=0.5)
    whole = run(config(), tokenizer, tmp_path / "whole")
    said = " ".join(capsys.readouterr().out.split())
    assert "its weight 0.5, its hidden states' 0.5 (by a map of 8 x 16 that trains, 512 B)" in said
    shutil.copytree(tmp_path / "whole", tmp_path / "halves")
    shutil.rmtree(tmp_path / "halves" / "checkpoints" / "4")  # as a kill after the second step leaves it
    moved = teacher.rename(teacher.with_name("moved"))
    try:
        resumed = run(config(teacher=moved), tokenizer, tmp_path / "halves")
    finally:
        moved.rename(teacher)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    assert whole.teacher is None
    rows, again = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "halves")
    for name in ("divergence", "feature_distance"):
        assert [row[name] for row in rows] == [row[name] for row in again]
    jax.tree.map(np.testing.assert_array_equal, resumed.feature_map, whole.feature_map)
    stored = {path.name for path in (tmp_path / "whole" / "checkpoints" / "4").iterdir()}
    assert stored >= {"params", "optimizer"} and not any("teacher" in name for name in stored)

    other = make_run(tmp_path / "other", config_of(tokenizer, width=16), tokenizer, seed=1)
    for name, here in ((other, "it is the teacher"), ("", "it is no teacher")):
        with pytest.raises(UserError, match=f"began with the teacher .*able, and here {here}.*go on as it began"):
            run(config(teacher=name), tokenizer, tmp_path / "whole")


@pytest.mark.parametrize("strategy", ["mesh", "pmap"])
def test_no_second_copy_of_it_lives_through_training(strategy, teacher, tokenizer, tmp_path):
    def copies() -> int:
        """Of its embedding, which no other array is as large as."""
        gc.collect()
        return sum(leaf.shape[-2:] == (tokenizer.vocab_size, 16) for leaf in jax.live_arrays())

    counts, before = [], copies()

    def count(_):
        counts.append(copies() - before)
        return {"test_loss": 1.0}

    values = to_dict(config_of(tokenizer, teacher=teacher)) | {"evaluate": {"every": 1}}
    config = from_dict(Config, values | {"parallel": {"strategy": strategy}})
    model = build(config.model, tokenizer)
    train(config, model, Rows(), tmp_path, evaluate=count, teacher=teacher_of(config, model, tmp_path))
    assert counts == [1, 1, 1]


def test_a_fingerprint_leaves_no_copy_on_the_host():
    params = {"a": jnp.arange(3.0), "b": {"c": jnp.zeros(2, jnp.bfloat16)}}
    assert weights_fingerprint(params) == weights_fingerprint(jax.tree.map(np.asarray, params))
    fresh = jax.tree.map(jnp.copy, params)
    weights_fingerprint(fresh)
    assert all(leaf._npy_value is None for leaf in jax.tree.leaves(fresh))  # JAX's own note of what the host has seen


def test_a_finished_run_is_evaluated_without_it(teacher, tokenizer, small_data, tmp_path, capsys):
    values = to_dict(config_of(tokenizer, teacher=teacher, context=192, features=0.5))
    values["data"] = {"data_dir": str(small_data), "modalities": ["text"], "row_length": 192}
    values["train"]["num_steps"] = 2
    values |= {"evaluate": {"num_examples": 4, "batch_size": 4}, "generate": {"max_new_tokens": 4}}
    values["distil"]["teacher"] = str(
        make_run(tmp_path / "able", config_of(tokenizer, width=16, context=192), tokenizer)
    )
    found = train_run(from_dict(Config, values), tmp_path / "run")
    # The map that trained along is no part of the model.
    assert load_run(tmp_path / "run")[1].keys() == {"text_embedding", "decoder"}
    shutil.rmtree(tmp_path / "able")
    again = train_run(from_dict(Config, values), tmp_path / "run")
    assert again["test_loss"] == pytest.approx(found["test_loss"], rel=1e-5)
    assert "has all of its 2 steps" in " ".join(capsys.readouterr().out.split())
    values["train"]["num_steps"] = 3
    with pytest.raises(UserError, match=r"config\.train\.num_steps = 2, and here it is 3"):
        train_run(from_dict(Config, values), tmp_path / "run")


def test_a_student_has_as_many_rows_as_its_teacher(tokenizer, small_data, tmp_path):
    """More than its tokenizer, where the teacher's table is padded."""
    rows = tokenizer.vocab_size + 7
    able = make_run(tmp_path / "able", config_of(tokenizer, vocab=rows, context=96), tokenizer)
    values = to_dict(config_of(tokenizer, teacher=able, context=96))
    values["data"] = {"data_dir": str(small_data), "modalities": ["text"], "row_length": 96}
    values["model"]["text_embedding"]["vocab_size"] = 0
    experiment = open_experiment(from_dict(Config, values), tmp_path / "run")
    assert experiment.config.model.text_embedding.vocab_size == rows
    open_teacher(experiment.config, experiment.model)
    make_run(tmp_path / "begun", experiment.config, tokenizer)
    values["distil"]["teacher"] = str(tmp_path / "nobody")  # gone when the run has ended
    assert open_experiment(from_dict(Config, values), tmp_path / "begun").config.model == experiment.config.model


REFUSED = {
    "no tokens": ({"decoder": {"kind": "pooled-classifier", "num_classes": 3}}, {}, "does not generate text"),
    "classes": ({}, {"decoder": {"kind": "token-classifier"}}, "is a token-classifier; use a transformer"),
    "table": ({"vocab": 320}, {}, "set config.model.text_embedding.vocab_size to 320"),
    "context": ({"context": 4}, {}, "context of 4, and rows have 8 positions"),
    "blind": ({}, {"vision": SEES}, "sees no images"),
    "size": ({"vision": SEES}, {"vision": SEES | {"image_size": 16}}, "has vision.image_size = 8, and here it is 16"),
    "positions": (
        {"vision": SEES},
        {"vision": SEES, "projector": {"kind": "pixel-shuffle"}},
        "gives an image 16 positions, and here it has 4",
    ),
    "images": (
        {"vision": {"kind": "lookup", "num_images": 8}},
        {"vision": {"kind": "lookup", "num_images": 9}},
        "knows 8 images, and the model's table has 9; lower config.model.vision.num_images",
    ),
    "fusion": (
        {"vision": SEES},
        {"vision": SEES, "fusion": {"kind": "cross-attention", "num_heads": 2}},
        "set config.model.fusion to 'place'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_models_batches_are_refused(name, tokenizer, tmp_path, monkeypatch):
    theirs, ours, message = REFUSED[name]
    found = build(config_of(tokenizer, **theirs).model, tokenizer)
    monkeypatch.setattr("jaxfusion.teacher._describe", lambda _: (found.config, tokenizer))
    config = config_of(tokenizer, teacher="them", **ours)
    with pytest.raises(UserError, match="^config.distil.teacher: them ") as error:
        open_teacher(config, build(config.model, tokenizer))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_another_vocabulary_of_the_same_size_is_refused(teacher, tokenizer):
    others = TrainedTokenizer.train([TEXT.upper()], 300)
    config = config_of(others, teacher=teacher, vocab=tokenizer.vocab_size)
    with pytest.raises(UserError, match="another vocabulary"):
        open_teacher(config, build(config.model, others))


def test_features_of_a_tower_are_no_pictures_for_it(teacher, tokenizer, tmp_path):
    config = config_of(tokenizer, teacher=teacher)
    prepared = SimpleNamespace(about=About("features", 1, {}, 8), features=True)
    with pytest.raises(UserError, match="config.prepare.store = 'pixels'"):
        teacher_of(config, build(config.model, tokenizer), tmp_path, prepared)


def test_the_student_takes_its_teachers_tokenizer_and_a_missing_one_is_named(teacher, tokenizer, small_data, tmp_path):
    values = to_dict(config_of(tokenizer, teacher=teacher))
    values["data"] = {"data_dir": str(small_data), "modalities": ["text"], "row_length": 96}
    values["model"]["text_embedding"] |= {"vocab_size": 0, "max_positions": 96}
    experiment = open_experiment(from_dict(Config, values), tmp_path)
    assert experiment.model.tokenizer.encode(TEXT) == tokenizer.encode(TEXT)
    values["distil"]["teacher"] = str(tmp_path / "nobody")
    with pytest.raises(UserError, match=r"^config.distil.teacher: .*nobody"):
        open_experiment(from_dict(Config, values), tmp_path)


def test_a_plan_has_the_teachers_parameters(teacher, tokenizer, monkeypatch):
    """Compiled for the CPU here, since described GPUs need a compiler that is not everywhere."""
    monkeypatch.setattr("jaxfusion.planning.step.described_mesh", lambda *_: make_parallel(ParallelConfig()).mesh)
    monkeypatch.setattr(
        "jaxfusion.planning.step.compile_for",
        lambda step, state, batch, **_: jax.jit(step, donate_argnums=0).lower(state, batch).compile(),
    )
    plain, taught = (plan_run(config_of(tokenizer, teacher=name)) for name in ("", teacher))
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(load_run(teacher)[1]))
    assert taught.parameters == plain.parameters | {"teacher": kept}
    assert taught.program.argument_bytes - plain.program.argument_bytes == kept


@pytest.mark.parametrize(("setting", "value"), [("temperature", 0.0), ("weight", 1.5), ("features", -1.0)])
def test_numbers_that_mean_nothing_are_refused(setting, value):
    with pytest.raises(UserError, match=f"^config.distil.{setting}: "):
        override(Config(), {f"distil.{setting}": str(value)})
