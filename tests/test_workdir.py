"""A run's directory: whose run it is, sizes that come from the data, and errors for what is not there."""

import pytest

from jaxfusion.config import Config, from_dict, to_dict
from jaxfusion.errors import UserError
from jaxfusion.files import write_json
from jaxfusion.workdir import (
    CONFIG,
    check_run,
    claimed,
    held,
    latest_step,
    load_run,
    make_workdir,
    read_workdir_config,
    resolve,
)


def test_sizes_come_from_the_data_where_the_config_leaves_them_open():
    classifier = from_dict(Config, {"model": {"decoder": "pooled-classifier"}})
    resolved = resolve(classifier, vocab_size=300, num_classes=2).model
    assert (resolved.text_embedding.vocab_size, resolved.decoder.num_classes) == (300, 2)
    tagger = from_dict(Config, {"model": {"decoder": "token-classifier"}})
    assert resolve(tagger, vocab_size=300, num_classes=0).model.decoder.num_classes == 300
    fixed = from_dict(Config, {"model": {"text_embedding": {"vocab_size": 512}}})
    assert resolve(fixed, vocab_size=300, num_classes=0) == fixed


def test_a_run_may_change_what_does_not_touch_its_parameters(tmp_path):
    data = {"languages": ["en", "zh"], "others": [{"name": "text", "path": "x.txt"}]}
    config = from_dict(Config, {"model": {"vision": "vit-tiny"}, "data": data})
    write_json(tmp_path / CONFIG, to_dict(config))
    other = from_dict(Config, {"train": {"seed": 5}})
    check_run(tmp_path, other)  # nothing is trained yet, so nothing is lost
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    assert latest_step(tmp_path) == 10
    assert read_workdir_config(tmp_path) == config
    free = to_dict(config) | {"evaluate": {"num_examples": 3}, "parallel": {"strategy": "pmap"}}
    free["model"]["vision"]["scan_layers"] = free["model"]["decoder"]["scan_layers"] = True
    free["data"] |= {"path": "moved", "others": [{"name": "text", "path": "moved.txt"}]}
    check_run(tmp_path, from_dict(Config, free))
    with pytest.raises(
        UserError, match=r"config\.data\.others = .*'task': 'caption'.* and here it is .*'task': 'text'"
    ):
        others = {"others": [{"name": "text", "path": "x.txt", "task": "text"}]}
        check_run(tmp_path, from_dict(Config, to_dict(config) | {"data": data | others}))
    with pytest.raises(UserError, match=r"config\.train\.learning_rate = 0\.001, and here it is 0\.1"):
        check_run(tmp_path, from_dict(Config, to_dict(config) | {"train": {"learning_rate": 0.1}}))


def test_what_is_missing_or_broken_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent: no such workdir"):
        load_run(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no run in it \(config\.json is missing\)"):
        load_run(tmp_path)
    (tmp_path / CONFIG).write_text('{\n"model": }')
    with pytest.raises(UserError, match=r"config\.json:2: not JSON"):
        load_run(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/run: cannot write there"):
        make_workdir(tmp_path / "file" / "run")


def test_two_processes_do_not_train_in_one_directory(tmp_path):
    with held(tmp_path), pytest.raises(UserError, match="another process is at work there"), held(tmp_path):
        pass
    with held(tmp_path):  # and it is free again
        pass


def test_sizes_that_are_too_small_are_refused():
    small = from_dict(Config, {"model": {"text_embedding": {"vocab_size": 10}}})
    with pytest.raises(UserError, match=r"vocab_size: 10 is less than the tokenizer's 300"):
        resolve(small, vocab_size=300, num_classes=0)
    few = from_dict(Config, {"model": {"decoder": {"kind": "pooled-classifier", "num_classes": 2}}})
    with pytest.raises(UserError, match=r"num_classes: 2 is less than the 3"):
        resolve(few, vocab_size=300, num_classes=3)


@pytest.mark.parametrize("existed", [False, True])
def test_work_that_is_refused_before_it_has_begun_leaves_nothing(tmp_path, existed):
    workdir = tmp_path / "runs" / "new"
    if existed:
        workdir.mkdir(parents=True)
    with pytest.raises(UserError, match="no"), claimed(workdir, lambda path: False):
        (workdir / "checkpoints").mkdir()
        (workdir / "config.json").touch()
        raise UserError("no")
    assert list(tmp_path.rglob("*")) == ([workdir.parent, workdir] if existed else [])


@pytest.mark.parametrize("begun", [True, False])
def test_what_is_worth_keeping_stays_where_work_is_refused(tmp_path, begun):
    if not begun:
        (tmp_path / "notes.txt").touch()  # somebody's
    with pytest.raises(UserError, match="no"), claimed(tmp_path, lambda path: begun):
        (tmp_path / "metrics.jsonl").touch()
        raise UserError("no")
    assert (tmp_path / "metrics.jsonl").exists()
