"""What people can write in configs and on the command line, and the one line they get where it is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import ml_collections
import pytest

from jaxfusion.config import Config, ModelConfig, default_config, from_dict, override, read_config, to_dict
from jaxfusion.config.model import (
    BiLSTMEncoderConfig,
    LinearProjectorConfig,
    PooledClassifierConfig,
    ResNetConfig,
    RopeConfig,
    TransformerDecoderConfig,
    ViTConfig,
)
from jaxfusion.config.presets import PRESETS
from jaxfusion.config.run import OptimizerRule
from jaxfusion.errors import UserError


def _write(folder: Path, *lines: str) -> Path:
    """A config file whose get_config() changes the defaults by these lines; the first one is line 5."""
    path = folder / "experiment.py"
    head = ("from jaxfusion.config import default_config", "", "def get_config():", "    config = default_config()")
    path.write_text("\n".join((*head, *(f"    {line}" for line in lines), "    return config", "")))
    return path


def _message(path: Path, overrides: dict[str, str] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        read_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_file_changes_defaults_and_the_command_line_changes_the_file(tmp_path):
    path = _write(
        tmp_path,
        "config.model.vision = 'resnet-tiny'",
        "config.model.encoder = dict(kind='bilstm', num_layers=3)",
        "config.model.decoder.num_layers = 5",
        "config.train.learning_rate = 1",
        "config.data.languages = ('en', 'zh')",
    )
    overrides = {
        "model.vision.width": "8",
        "model.vision.stage_depths": "(1, 2)",
        "model.decoder.scan_layers": "FALSE",
        "data.name": "300",
        "data.data_dir": "none",
        "train.num_steps": "7",
    }
    config = read_config(str(path), overrides)
    default = Config()
    resnet = replace(PRESETS["vision"]["resnet-tiny"], width=8, stage_depths=(1, 2))
    decoder = replace(default.model.decoder, num_layers=5, scan_layers=False)
    model = replace(default.model, vision=resnet, encoder=BiLSTMEncoderConfig(num_layers=3), decoder=decoder)
    data = replace(default.data, languages=("en", "zh"), name="300", data_dir="none")  # text stays text
    train = replace(default.train, learning_rate=1.0, num_steps=7)
    assert config == replace(default, model=model, data=data, train=train)
    assert type(config.train.learning_rate) is float
    hash(config)


@pytest.mark.parametrize("text", ["None", "none", "NONE"])
def test_a_room_can_be_emptied_from_the_command_line(tmp_path, text):
    path = _write(tmp_path, "config.model.vision = 'resnet-tiny'", "config.model.encoder = dict(kind='bilstm')")
    config = read_config(path, {"model.vision": text, "model.encoder": text})
    assert config.model.vision is None and config.model.encoder is None


def test_a_room_can_be_exchanged_from_the_command_line(tmp_path):
    path = _write(tmp_path, "config.train.num_steps = 3")
    config = read_config(
        path, {"model.vision": "vit-tiny", "model.vision.width": "64", "model.decoder": "pooled-classifier"}
    )
    assert config.model.vision == replace(PRESETS["vision"]["vit-tiny"], width=64)
    assert config.model.decoder == PooledClassifierConfig()


def test_a_config_that_was_read_before_can_be_overridden():
    config = override(Config(), {"model.vision": "vit-tiny", "train.num_steps": "7"})
    expected = replace(Config().model, vision=PRESETS["vision"]["vit-tiny"])
    assert config == Config(model=expected, train=replace(Config().train, num_steps=7))
    assert override(to_dict(config), {}) == config


def test_a_file_may_return_dataclasses_or_put_them_in_a_room_and_they_can_be_overridden_too(tmp_path):
    path = tmp_path / "typed.py"
    path.write_text("from jaxfusion.config import Config\n\ndef get_config():\n    return Config()\n")
    assert read_config(path) == Config()
    path = _write(
        tmp_path,
        "from jaxfusion.config.model import ViTConfig",
        "config.model.vision = ViTConfig(width=48)",
    )
    assert read_config(path).model.vision == ViTConfig(width=48)
    assert read_config(path, {"model.vision.num_layers": "2"}).model.vision == ViTConfig(width=48, num_layers=2)


def test_defaults_are_a_locked_config_dict():
    config = default_config()
    assert from_dict(Config, config) == Config()
    assert config.is_locked and config.model.decoder.is_locked
    with pytest.raises(AttributeError, match="num_steps"):
        config.train.num_step = 5
    with pytest.raises(KeyError, match="nonsense"):
        config["nonsense"] = 5
    default_config().train.num_steps = 1
    assert default_config().train.num_steps == Config().train.num_steps


@pytest.mark.parametrize("room, name", [(room, name) for room, names in PRESETS.items() for name in names])
def test_every_preset_comes_back_from_its_name_and_from_json(room, name):
    by_name = from_dict(ModelConfig, {room: name})
    assert getattr(by_name, room) == PRESETS[room][name]
    config = Config(model=by_name)
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config
    assert from_dict(Config, ml_collections.ConfigDict(to_dict(config))) == config


# --- refusing: files --------------------------------------------------------------------------------------------------


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    _write(tmp_path)
    near = f"{tmp_path / 'experimnet.py'}: no such config file; did you mean {tmp_path / 'experiment.py'}?"
    assert _message(tmp_path / "experimnet.py") == near
    assert "give the path of a config file" in _message(tmp_path / "zzz")
    assert "give the path of a config file" in _message(tmp_path / "no" / "such" / "folder.py")
    assert "no such config file" in _message(tmp_path)


@pytest.mark.parametrize(
    "lines, line, reason",
    [
        (["config.train.num_steps = = 3"], 5, "SyntaxError: invalid syntax"),
        (["", "raise ValueError('two', 'things')"], 6, "ValueError: ('two', 'things')"),
        (["raise RuntimeError('over\\n  two lines')"], 5, "RuntimeError: over two lines"),
        (["import jaxfusion.nonsense"], 5, "ModuleNotFoundError: No module named 'jaxfusion.nonsense'"),
        (["{}['missing']"], 5, "KeyError: 'missing'"),
        (["config.model.vision.width = 3"], 5, "AttributeError: 'NoneType' object has no attribute 'width'"),
        (["", "", "config.train.num_step = 3"], 7, "there is no setting 'num_step'; did you mean 'num_steps'?"),
        (["config.trian.num_steps = 3"], 5, "there is no setting 'trian'; did you mean 'train'?"),
        (["config['zzz'] = 3"], 5, "there is no setting 'zzz' here"),
        (["config.zzz = 3"], 5, "there is no setting 'zzz' here"),
    ],
)
def test_an_error_in_a_file_is_told_by_its_line(tmp_path, lines, line, reason):
    path = _write(tmp_path, *lines)
    assert _message(path).startswith(f"{path}:{line}: {reason}")


def test_an_error_in_a_module_that_the_file_imports_is_told_by_the_line_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "broken_helper.py").write_text("\n" * 30 + "def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = _write(tmp_path, "", "import broken_helper")
    assert _message(path).startswith(f"{path}:6: SyntaxError")


@pytest.mark.parametrize(
    "content, reason",
    [
        ("x = 1", "it has no get_config(); define one that returns a config"),
        ("def get_config():\n    pass", "get_config() returned None; let it return the config"),
        ("get_config = 5", "get_config() returned None; let it return the config"),
        ("\0", "SyntaxError: source code string cannot contain null bytes; mend that line"),
    ],
)
def test_a_file_that_gives_no_config(tmp_path, content, reason):
    path = tmp_path / "experiment.py"
    path.write_text(content)
    assert _message(path) == f"{path}: {reason}"


# --- refusing: names and values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, text, reason",
    [
        ("train.num_step", "3", "there is no such setting; did you mean 'num_steps'?"),
        (
            "zzz",
            "3",
            "there is no such setting; choose from model, pretrained, data, train, distil, parallel, evaluate, ",
        ),
        ("train.kind", "3", "there is no such setting; choose from num_steps, "),
        ("model.decoder.zzz", "3", "'transformer' has no such setting; choose from num_layers, "),
        ("model.encoder.num_layers", "3", "config.model.encoder is None and has no settings; choose another value"),
        ("train.num_steps.more", "3", "config.train.num_steps is 1000 and has no settings; choose another value"),
        ("train.num_steps", "many", "expected int, got str 'many'; change the value"),
        ("train.num_steps", "1e3", "expected int, got float 1000.0; change the value"),
        ("train.num_steps", "true", "expected int, got bool True; change the value"),
        ("train.num_steps", "None", "expected int, got NoneType None; change the value"),
        ("train.num_steps", "{[]: 1}", "expected int, got str '{[]: 1}'; change the value"),
        ("train.learning_rate", "True", "expected float, got bool True; change the value"),
        ("train.learning_rate", "0,1", "expected float, got tuple (0, 1); change the value"),
        ("model.decoder.scan_layers", "1", "expected bool, got int 1; change the value"),
        ("train", "5", "expected settings, got 5; set its fields, as in config.train.num_steps"),
        ("serve", "5", "expected settings, got 5; "),
        ("model.dtype", "bfloat", "'bfloat' is not a choice; did you mean 'bfloat16'?"),
        ("parallel.strategy", "zzz", "'zzz' is not a choice; choose from mesh, pmap"),
        ("data.languages", "en", "expected a tuple such as ('...',), got 'en'"),
        ("data.languages", "7", "expected a tuple such as ('...',), got 7"),
        ("model.vision", "resnet-19", "'resnet-19' is not a choice; did you mean 'resnet-1"),
        ("model.vision", "zzz", "'zzz' is not a choice; choose from resnet, vgg, "),
        ("model.vision", "7", "expected a name or settings with a kind, got 7; choose from resnet, vgg, "),
        ("model.projector", "None", "expected a name or settings with a kind, got None; choose from linear, "),
        ("model.fusion", "{}", "settings need a kind; choose from place, add, cross-attention"),
    ],
)
def test_a_wrong_value_is_told_by_its_full_name(tmp_path, name, text, reason):
    assert _message(_write(tmp_path), {name: text}).startswith(f"config.{name}: {reason}")


@pytest.mark.parametrize(
    "name, text, where, reason",
    [
        ("trian.num_steps", "3", "trian", "there is no such setting; did you mean 'train'?"),
        ("data.languages", "('en', 'fr')", "data.languages[1]", "'fr' is not a choice; choose from en, zh"),
        ("model.fusion", "{'kind': 'plac'}", "model.fusion.kind", "'plac' is not a choice; did you mean 'place'?"),
        ("model.fusion", "{'kind': 'add', 'x': 1}", "model.fusion.x", "'add' has no such setting; "),
        ("model.vision.widht", "3", "model.vision.widht", "'resnet' has no such setting; did you mean 'width'?"),
        ("model.vision.mean", "(0.5, 0)", "model.vision.mean", "expected 3 values, got 2: (0.5, 0)"),
        ("model.vision.mean", "(0, 0, True)", "model.vision.mean[2]", "expected float, got bool True; "),
        ("model.vision.stage_depths", "(1, 2.5)", "model.vision.stage_depths[1]", "expected int, got float 2.5; "),
    ],
)
def test_a_wrong_part_of_a_value_is_told_by_the_name_of_the_part(tmp_path, name, text, where, reason):
    path = _write(tmp_path, "config.model.vision = 'resnet-tiny'")
    assert _message(path, {name: text}).startswith(f"config.{where}: {reason}")


@pytest.mark.parametrize(
    "line, message",
    [
        ("config.model.width = '3'", "config.model.width: expected int, got str '3'; change the value"),
        ("config.model.vision = dict(width=3)", "config.model.vision: settings need a kind; choose from resnet, vgg"),
        (
            "config.model.vision = 'vit-tyny'",
            "config.model.vision: 'vit-tyny' is not a choice; did you mean 'vit-tiny'?",
        ),
    ],
)
def test_a_wrong_value_in_the_file(tmp_path, line, message):
    assert _message(_write(tmp_path, line)).startswith(message)


def test_a_dataclass_of_another_room_is_refused():
    with pytest.raises(UserError, match=r"config\.model\.vision\.kind: 'linear' is not a choice; choose from resnet"):
        from_dict(Config, {"model": {"vision": LinearProjectorConfig()}})


def test_numbers_inside_tuples_are_read_like_numbers_elsewhere():
    config = from_dict(ModelConfig, {"vision": {"kind": "resnet", "mean": [0, 1, 0.5]}})
    assert config.vision == ResNetConfig(mean=(0.0, 1.0, 0.5))
    assert [type(value) for value in config.vision.mean] == [float] * 3


def test_of_several_settings_one_is_changed_by_its_number(tmp_path):
    path = _write(
        tmp_path,
        "config.train.rules = ({'globs': ('vision/*',), 'learning_rate': 1}, {'globs': ['*'], 'optimizer': 'muon'})",
    )
    overrides = {"train.rules.1.schedule": "linear", "train.rules.0.learning_rate": "1e-5", "train.b2": "0.9"}
    train = read_config(path, overrides).train
    rules = (
        OptimizerRule(globs=("vision/*",), learning_rate=1e-5),
        OptimizerRule(globs=("*",), optimizer="muon", schedule="linear"),
    )
    assert (train.rules, train.b1, train.b2) == (rules, None, 0.9)
    assert from_dict(Config, json.loads(json.dumps(to_dict(Config(train=train))))).train == train
    assert override(Config(train=train), {"train.rules.0.learning_rate": "none"}).train.rules[0].learning_rate is None
    for name, text, reason in (
        ("train.rules.2.schedule", "linear", "config.train.rules.2: there is no such setting; choose from 0, 1"),
        ("train.rules.0.schedule", "cosin", r"config.train.rules\[0\].schedule: 'cosin' is not a choice; did you mean"),
        ("train.rules.0.warmup_steps", "-1", r"config.train.rules\[0\].warmup_steps: -1 is too small; use 0 or more"),
        ("train.rules.0.globs", "()", r"config.train.rules\[0\].globs: there is none"),
        ("train.b2", "1", "config.train.b2: 1.0 is no share"),
        ("train.b2", "[1]", r"config.train.b2: expected float, got list \[1\]"),
    ):
        with pytest.raises(UserError, match=reason):
            read_config(path, {name: text})


def test_dataclasses_inside_tuples_come_back_from_json_and_from_the_command_line(tmp_path):
    ropes = (RopeConfig(theta=5e5, scaling="linear", factor=2.0), RopeConfig(theta=0.0))
    config = ModelConfig(decoder=TransformerDecoderConfig(ropes=ropes, windows=(4, 0)))
    values = to_dict(config)
    assert values["decoder"]["ropes"][0]["scaling"] == "linear"
    assert from_dict(ModelConfig, json.loads(json.dumps(values))) == config
    path = _write(tmp_path, "config.model.decoder.windows = (4, 0)")
    text = "[{'theta': 5e5, 'scaling': 'linear', 'factor': 2}, {'theta': 0}]"
    assert read_config(path, {"model.decoder.ropes": text}).model.decoder == config.decoder
    with pytest.raises(UserError, match=r"config\.model\.decoder\.ropes\[1\]\.scaling: 'ntk' is not a choice"):
        read_config(path, {"model.decoder.ropes": "[{}, {'scaling': 'ntk'}]"})


@pytest.mark.parametrize(
    ("name", "path"),
    [("train.rules.0.learning_rate", "train.rules"), ("model.lora.0.rank", "model.lora"), ("generate.stop.0", None)],
)
def test_a_setting_of_none_says_how_to_add_one(name, path):
    with pytest.raises(UserError, match=r"\.0: there are none; add one in the config file, or by --config\.") as caught:
        override(Config(), {name: "1"})
    option, _, advised = str(caught.value).partition(" or by ")[2].partition("=")
    if path:
        override(Config(), {option.removeprefix("--config."): advised.strip('"'), name: "1"})  # the advice works
