"""Data prepared once, as pixels or as features, and runs on them: what they learn from, where they go on, refusals."""

import io
import json
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

import jaxfusion
from jaxfusion import prepare
from jaxfusion.config import Config, from_dict
from jaxfusion.data.loader import train_iterator
from jaxfusion.data.packing import ImageSlots, pack
from jaxfusion.data.prepared import Prepared
from jaxfusion.data.tokenise import Layout
from jaxfusion.errors import UserError
from jaxfusion.experiment import open_experiment
from jaxfusion.main import main
from jaxfusion.models.flops import count_flops
from jaxfusion.prepare import prepare_run
from jaxfusion.pretrained.join import expand
from jaxfusion.training.losses import loss
from jaxfusion.training.trainable import split
from tests.pretrained.tiny_tower import save_tower

SMALL = {"kind": "transformer", "num_layers": 1, "num_heads": 2, "scan_layers": False}


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    return save_tower(tmp_path_factory.mktemp("checkpoints") / "siglip")


@pytest.fixture(scope="module")
def settings(small_data, tower):
    """Of a model whose frozen tower comes from a checkpoint, on questions in two languages."""
    return {
        "model": {"width": 16, "vision": str(tower), "projector": "mlp", "decoder": SMALL},
        "data": {"task": "question_answer", "languages": ["en", "zh"], "data_dir": str(small_data)}
        | {"row_length": 512, "vocab_size": 300},
        "train": {"trainable": ["projector/*", "decoder/*"], "batch_size": 4},
    }


def config_of(settings, **changes) -> Config:
    """changes: of settings, as model__width=8."""
    values = {section: dict(part) for section, part in settings.items()}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        values.setdefault(section, {})[key] = value
    return from_dict(Config, expand(values))


@pytest.fixture(scope="module")
def prepared(settings, tmp_path_factory):
    """Directories with pixels and with features of the same records."""
    directory = tmp_path_factory.mktemp("prepared")
    for store in ("pixels", "features"):
        output = io.StringIO()
        prepare_run(config_of(settings, prepare__store=store), directory / store, Console(file=output, width=200))
        assert f"24 records of {store}" in output.getvalue()
    return directory


def experiment_on(settings, directory, workdir, **changes):
    return open_experiment(config_of(settings, data__prepared=str(directory), **changes), workdir)


def batches(experiment, number, state=None):
    config = experiment.config
    iterator = train_iterator(
        experiment.source, experiment.reader, experiment.model.tokenizer, config.train.batch_size, config.train.seed
    )
    if state is not None:
        iterator.set_state(state)
    return [next(iterator) for _ in range(number)], iterator.get_state()


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_records_are_what_the_data_set_would_give(settings, prepared, tmp_path):
    plain = open_experiment(config_of(settings), tmp_path)
    source = Prepared(prepared / "pixels")
    for place in (0, 23):
        (picture,) = source[place].images
        (image,) = plain.reader.samples(plain.dataset.train[place])[0].messages[0].images
        np.testing.assert_array_equal(picture, image.value)
    ours, _ = batches(experiment_on(settings, prepared / "pixels", tmp_path), 1)
    theirs, _ = batches(plain, 1)
    assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, theirs)
    assert equal(ours[0].images, theirs[0].images)  # the same records in the same order


def test_packed_rows_of_features_go_on_exactly_where_they_were(settings, prepared, tmp_path):
    packed = {"data__packing": "best-fit", "data__row_length": 1400}
    experiment = experiment_on(settings, prepared / "features", tmp_path, **packed)
    _, state = batches(experiment, 2)
    expected, end = batches(experiment, 3, json.loads(json.dumps(state)))
    whole, whole_end = batches(experiment, 5)
    assert all(equal(a, b) for a, b in zip(whole[2:], expected, strict=True)) and end == whole_end
    assert whole[0].images.shape[2:] == (9, 16) and whole[0].images.dtype == np.float32


def test_a_step_on_features_is_the_step_on_pixels(settings, prepared, tower, tmp_path):
    experiment = experiment_on(settings, prepared / "features", tmp_path)
    model, layout, globs = experiment.model, Layout.of(experiment.config.model), settings["train"]["trainable"]
    shapes = jax.eval_shape(lambda rng: jaxfusion.init(model, rng), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    params |= {"vision": jaxfusion.load(tower)[1]["vision"]}
    trainable, frozen = split(params, globs)

    @jax.jit
    def learn(trainable, frozen, batch):
        return loss(model, trainable | frozen, batch)

    found, counted = {}, {}
    for store in ("pixels", "features"):
        source, features = Prepared(prepared / store), store == "features"
        slots = ImageSlots.of(model.config, 1, features=features)
        rows = [[source[place].draw(np.random.default_rng(5))[1]] for place in range(2)]
        batch = pack(rows, 512, layout.tokens_per_image, slots, packed=False)
        found[store] = jax.value_and_grad(learn)(trainable, frozen, batch)
        counted[store] = count_flops(model.config, batch)
    for pixels, features in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(features, pixels, rtol=1e-5, atol=1e-6)
    assert np.linalg.norm(found["features"][1]["projector"]["up"]["kernel"]) > 1e-3
    assert "vision" not in counted["features"].rooms | counted["features"].backward
    assert counted["features"].rooms["projector"] == counted["pixels"].rooms["projector"]
    assert counted["features"].language == counted["pixels"].language


def test_prepare_goes_on_where_it_was_killed(settings, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "SHARD_RECORDS", 7)
    taken, to_bytes = [], prepare.to_bytes

    def killed_in_the_third_shard(columns):
        taken.append(columns)
        if len(taken) == 17:
            raise KeyboardInterrupt
        return to_bytes(columns)

    monkeypatch.setattr(prepare, "to_bytes", killed_in_the_third_shard)
    with pytest.raises(KeyboardInterrupt):
        prepare_run(config_of(settings), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.array_record"))) == 2
    with pytest.raises(UserError, match="is not finished"):
        Prepared(tmp_path / "out")
    again = prepare_run(config_of(settings), tmp_path / "out")
    assert "has 14 records already" in capsys.readouterr().out
    assert len(taken) == 17 + 24 - 14
    whole = Prepared(prepared / "pixels")
    for place in (0, 13, 14, 23):
        assert equal(again[place]._replace(names=[]), whole[place]._replace(names=[]))
    prepare_run(config_of(settings), tmp_path / "out")
    assert "has all of its 24 records" in capsys.readouterr().out
    assert len(taken) == 17 + 24 - 14
    with pytest.raises(UserError, match=r"^--output: .* prepared with config\.prepare\.variants = 8, and here it is 3"):
        prepare_run(config_of(settings, prepare__variants=3), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__languages": ["en"]}, r"with config\.data\.languages = \['en', 'zh'\], and here it is \['en'\]"),
        ({"data__vocab_size": 299}, r"with config\.data\.vocab_size = 300, and here it is 299"),
        ({"model__fusion": "cross-attention"}, r"with config\.model\.fusion = 'place', and here it is 'cross-"),
        ({"model__vision": "vit-tiny"}, r"with config\.model\.vision\.image_size = 24, and here it is 48"),
    ],
)
def test_runs_that_would_make_other_records_are_refused(settings, prepared, tmp_path, changes, message):
    with pytest.raises(UserError, match=r"^config\.data\.prepared: .*pixels was prepared " + message):
        experiment_on(settings, prepared / "pixels", tmp_path, **changes)


def test_pixels_are_for_any_network_of_their_size(settings, tmp_path):
    vit = {"kind": "vit", "image_size": 24, "patch_size": 8, "class_token": False}
    vgg = {"kind": "vgg", "image_size": 24, "stage_depths": [1, 1, 1], "stage_widths": [4, 4, 8]}
    prepare_run(config_of(settings, model__vision=vit), tmp_path / "pixels", Console(file=io.StringIO()))
    experiment = experiment_on(settings, tmp_path / "pixels", tmp_path, model__vision=vgg)
    assert experiment.source[0].images.shape == (1, 24, 24, 3)
    with pytest.raises(UserError, match=r"with config\.model\.vision\.kind = 'any network', and here it is 'lookup'"):
        lookup = {"model__vision": "lookup", "data__test_split": "train"}
        experiment_on(settings, tmp_path / "pixels", tmp_path, **lookup)


def test_a_checkpoints_tokenizer_is_asked_for_by_the_checkpoint(settings, prepared, tmp_path):
    shutil.copytree(prepared / "pixels", tmp_path / "data", ignore=shutil.ignore_patterns("tokenizer.json"))
    with pytest.raises(UserError, match=r"^config\.data\.prepared: .* with a checkpoint's tokenizer; name that"):
        experiment_on(settings, tmp_path / "data", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__dtype": "bfloat16"}, r"^config\.data\.prepared: .*with config\.model\.dtype = 'float32', and here"),
        ({"train__trainable": ["*"]}, r"^config\.train\.trainable: vision/\S+ would train, and features are a frozen"),
        (
            {"model__lora": [{"layers": "vision/*"}], "train__trainable": ["decoder/*"]},
            r"^config\.model\.lora: vision/\S+lora_a is in the tower",
        ),
    ],
)
def test_features_are_of_a_frozen_tower(settings, prepared, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        experiment_on(settings, prepared / "features", tmp_path, **changes)


@pytest.mark.parametrize(
    ("vision", "message"),
    [("vit-tiny", "this one's begin at random; name a checkpoint"), ("lookup", "lookup computes no features")],
)
def test_features_need_a_network_from_a_checkpoint(settings, tmp_path, vision, message):
    changes = {"data__test_split": "train", "prepare__store": "features", "train__trainable": ["decoder/*"]}
    with pytest.raises(UserError, match=rf"^config\.model\.vision: .*{message}"):
        prepare_run(config_of(settings, model__vision=vision, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_directory_of_something_else_is_left_alone(settings, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"^--output: .* holds something else"):
        prepare_run(config_of(settings), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_command_line_prepares_trains_and_goes_on(small_data, tower, tmp_path, capsys):
    common = [
        *("--config", "configs/quickstart.py", f"--config.data.data_dir={small_data}"),
        *("--config.model.width=16", "--config.data.task=fill", "--config.model.decoder=token-classifier"),
        *(f"--config.model.vision={tower}", "--config.model.projector=linear"),
        *("--config.train.trainable=('projector/*',)", "--config.train.batch_size=4", "--config.train.num_steps=2"),
        *("--config.evaluate.num_examples=4", "--config.evaluate.batch_size=4"),
    ]
    out, workdir = tmp_path / "out", tmp_path / "run"
    assert main([*common, "--mode", "prepare", "--config.prepare.store=features", "--output", str(out)]) == 0
    run = [*common, "--workdir", str(workdir)]
    assert main([*run, f"--config.data.prepared={out}"]) == 0
    shown = capsys.readouterr()
    assert "ms to read back" in shown.out and "parameters train (float32, " in shown.out
    assert "warning: decoder, text_embedding: frozen, with parameters that are random" in shown.err
    moved = out.rename(tmp_path / "moved")
    assert main([*run, f"--config.data.prepared={moved}"]) == 0  # the run has all of its steps
    assert "random" not in capsys.readouterr().err
    assert main(run) == 2
    assert "began with prepared data, and here it is none" in capsys.readouterr().err

    other = save_tower(tmp_path / "other", seed=1)
    arguments = [argument.replace(str(tower), str(other)) for argument in common]
    assert main([*arguments, "--workdir", str(tmp_path / "run2"), f"--config.data.prepared={moved}"]) == 2
    assert "of a tower with other weights" in capsys.readouterr().err
