"""Metrics behind several numbers of examples: each an evaluation of its own, whether or not prefixes are kept."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import jaxfusion.generation.engine
from jaxfusion.config import Config, from_dict, override
from jaxfusion.data.builtin import written_signs
from jaxfusion.errors import UserError
from jaxfusion.evaluation.evaluate import evaluate
from jaxfusion.evaluation.predictions import write_predictions
from jaxfusion.evaluation.shots import check_shots, evaluate_shots
from jaxfusion.evaluation.support import with_support
from jaxfusion.experiment import evaluate_run, train_run
from tests.evaluation.test_support import made, setting


@pytest.fixture(scope="module")
def asked():
    config, model, params = setting(batch_size=2)
    questions, pool = made(4, seed=1), made(6)
    return config, model, params, with_support(config, model, params, questions, {"en": pool}, (0, 3))


def test_each_number_has_the_metrics_of_its_own_evaluation(asked, tmp_path):
    config, model, params, by_shots = asked
    result = evaluate_shots(config, model, params, by_shots, [])
    for shots, samples in by_shots.items():
        alone = evaluate(config, model, params, samples, [])
        assert alone.metrics == {name: result.metrics[f"{name}_{shots}_shots"] for name in alone.metrics}
        assert f"test_loss_{shots}_shots" in result.intervals
    first = ["answer_accuracy_0_shots", "answer_accuracy_3_shots", "normalised_accuracy_0_shots"]
    assert list(result.metrics)[:3] == first
    write_predictions(tmp_path / "predictions.jsonl", result)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["shots"] for row in rows] == [0] * 4 + [3] * 4
    assert "examples" not in rows[0]
    assert rows[4]["examples"] == [text for n in range(3) for text in ("what?", f"a en0-{n}")]
    assert rows[4]["prompt"] == "what?" and rows[4]["reference"] == "a en1-0"


def test_kept_prefixes_change_no_answer_and_read_the_context_once(asked, monkeypatch):
    config, model, params, by_shots = asked
    made_caches = []

    class Watched(jaxfusion.generation.engine.PrefixCache):
        def __init__(self, max_bytes):
            super().__init__(max_bytes)
            made_caches.append(self)

    monkeypatch.setattr(jaxfusion.generation.engine, "PrefixCache", Watched)
    (device, *_) = jax.local_devices()
    monkeypatch.setattr(jax, "local_devices", lambda: [device])  # and so one engine
    answers = [
        evaluate(replace(config, generate=replace(config.generate, prefix_bytes=size)), model, params, by_shots[3], [])
        for size in (0, 2**20)
    ]
    assert answers[0].predictions == answers[1].predictions
    without, kept = made_caches
    assert without.hits == 0
    # Of 4 questions with 4 pictures each, the examples' 3 are read by the first alone; the last is each one's own.
    assert (kept.hits, kept.misses) == (9, 7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluate": {"shots": [0, -1]}}, "config.evaluate.shots: .* are no numbers of examples"),
        ({"evaluate": {"shots": [2, 2]}}, "config.evaluate.shots: .* are no numbers of examples"),
        ({"evaluate": {"shots": [2]}, "data": {"task": "text"}}, "classify, not for 'text'"),
        ({"evaluate": {"shots": [2]}, "model": {"decoder": "pooled"}}, "a pooled-classifier reads no examples"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    if settings.get("model"):
        settings = settings | {"data": {"task": "classify"}, "model": {"decoder": {"kind": "pooled-classifier"}}}
    with pytest.raises(UserError, match=message):
        check_shots(from_dict(Config, settings))


SEES = {"vision": {"kind": "vgg", "image_size": 8, "stage_depths": [1], "stage_widths": [4]}}
SHOTS, RICES = {"shots": [2]}, {"support": "rices"}
CLASSES = {"task": "classify", "episodes": {"ways": 2}}
BLIND, ADD = (
    {"kind": "lookup", "num_images": 9},
    {"fusion": {"kind": "add"}, "projector": {"kind": "linear", "pool": "mean"}},
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluate": RICES}, "config.evaluate.support: .*, and there are none; set config.evaluate.shots"),
        ({"evaluate": {"rices_vision": "org/tower"}}, "config.evaluate.rices_vision: .*, and there are none"),
        ({"evaluate": {"support_records": 5}}, "config.evaluate.support_records: .*, and there are none"),
        ({"evaluate": SHOTS | RICES, "data": CLASSES}, "config.evaluate.support: .*, and episodes have their own"),
        ({"evaluate": SHOTS | {"rices_vision": "org/tower"}}, "config.evaluate.rices_vision: .* 'random' does not ask"),
        ({"evaluate": SHOTS | RICES, "model": {"vision": BLIND}}, "config.evaluate.support: .* sees no pictures"),
        ({"evaluate": SHOTS | RICES, "data": {"modalities": ["text"]}}, "config.evaluate.support: .* sees no pictures"),
        ({"evaluate": SHOTS | RICES | {"rices_vision": "./no/tower"}}, "config.evaluate.rices_vision: .*no/tower"),
        ({"evaluate": SHOTS, "model": ADD}, "config.model.fusion: add takes one image a sample"),
        ({"data": CLASSES, "model": ADD}, "config.model.fusion: add takes one image a sample"),
        (
            {"data": CLASSES, "model": {"decoder": {"kind": "pooled-classifier"}}},
            "config.data.episodes: a pooled-classifier reads no examples; use a transformer",
        ),
    ],
)
def test_examples_that_would_come_to_nothing_are_refused_before_training(settings, message):
    with pytest.raises(UserError, match=rf"^{message}"):
        check_shots(from_dict(Config, settings | {"model": SEES | settings.get("model", {})}))


def test_a_checkpoint_that_is_no_tower_is_refused_by_its_config(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"model": {}}')
    settings = {"model": SEES, "evaluate": SHOTS | RICES | {"rices_vision": str(tmp_path / "run")}}
    with pytest.raises(UserError, match=r"^config\.evaluate\.rices_vision: .*run is no vision tower; name the checkp"):
        check_shots(from_dict(Config, settings))


def test_examples_beyond_the_context_are_refused_before_training(small_data, tmp_path):
    settings = {
        "model": MODEL | {"text_embedding": {"max_positions": 160}},
        "data": {"name": "digit_scenes", "data_dir": str(small_data), "row_length": 128, "vocab_size": 270},
        "train": {"num_steps": 1, "batch_size": 4},
        "evaluate": {"num_examples": 6, "shots": [0, 4], "support": "rices"},
        "generate": {"max_new_tokens": 4},
    }
    with pytest.raises(UserError, match=r"^config\.evaluate\.shots: sample 0 behind its examples needs \d+ positions"):
        train_run(from_dict(Config, settings), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


MODEL = SEES | {
    "width": 16,
    "projector": {"kind": "linear", "pool": "mean"},
    "text_embedding": {"max_positions": 512},
    "decoder": {"kind": "transformer", "num_layers": 1, "num_heads": 2},
}


def test_a_run_of_episodes_is_evaluated_on_known_and_on_new_classes(monkeypatch, tmp_path):
    monkeypatch.setattr(written_signs, "NUM_SIGNS", 6)
    episodes = {"ways": 2, "shots": 1, "held_out": 3, "names": ("dax", "wug", "fep")}
    settings = {
        "model": MODEL,
        "data": {
            "name": "written_signs",
            "data_dir": str(tmp_path / "data"),
            "task": "classify",
            "label": "sign",
            "episodes": episodes,
            "vocab_size": 300,
        },
        "train": {"num_steps": 1, "batch_size": 2},
        "evaluate": {"num_examples": 8, "shots": [1]},
        "generate": {"max_new_tokens": 2},
    }
    metrics = train_run(from_dict(Config, settings), tmp_path / "run")
    assert {f"class_accuracy{group}_1_shots" for group in ("", "_known", "_new")} <= metrics.keys()
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert {row["reference"] for row in rows} <= set(episodes["names"])
    assert all(len(row["examples"]) == 3 for row in rows)  # the names, and two that were shown
    assert all(row["reference"] in row["examples"] for row in rows)
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert "confusion" not in record  # a name means another class each time


def test_a_run_is_evaluated_with_examples_of_its_train_split(small_data, tmp_path):
    settings = {
        "model": MODEL,
        "data": {"name": "digit_scenes", "data_dir": str(small_data), "row_length": 128, "vocab_size": 270},
        "train": {"num_steps": 1, "batch_size": 4},
        "evaluate": {"num_examples": 6, "batch_size": 3, "shots": [0, 2]},
        "generate": {"max_new_tokens": 4},
    }
    config = from_dict(Config, settings)
    metrics = train_run(config, tmp_path)
    assert {"caption_exact_match_0_shots", "caption_exact_match_2_shots", "test_loss_2_shots"} <= metrics.keys()
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert record["num_examples"] == 6 and record["metrics"] == metrics
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["shots"] for row in rows] == [0] * 6 + [2] * 6
    assert len({tuple(row["examples"]) for row in rows[6:]}) == 1
    assert "test_loss_2_shots" in (tmp_path / "report.html").read_text()
    rices = evaluate_run(override(config, {"evaluate.support": "rices"}), tmp_path)
    assert rices["test_loss_0_shots"] == pytest.approx(metrics["test_loss_0_shots"])
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len({tuple(row["examples"]) for row in rows[6:]}) > 1
    assert np.isfinite(rices["test_loss_2_shots"])
