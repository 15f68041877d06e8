"""Data sets that are trained on together: each has its share, its task and its own records in place of bad ones."""

import json
from collections import Counter

import numpy as np
import pytest

from jaxfusion.config import Config, from_dict, override
from jaxfusion.data.bad_records import BadRecords
from jaxfusion.data.dataset import open_dataset
from jaxfusion.data.loader import Reader, train_iterator
from jaxfusion.data.order import visits_of
from jaxfusion.data.sources.mixture import shares_of
from jaxfusion.errors import UserError
from jaxfusion.text.trained import TrainedTokenizer


def opened(folder, other=(), **settings):
    """Texts, and dialogues beside them."""
    (folder / "x.txt").write_text("".join(f"text {n}\n" for n in range(40)))
    turns = [[{"from": "human", "value": "say"}, {"from": "gpt", "value": f"said {n}"}] for n in range(20)]
    turns[3] = "bad"
    (folder / "x.jsonl").write_text("".join(json.dumps({"conversations": one}) + "\n" for one in turns))
    others = ({"name": "json", "path": f"{folder}/x.jsonl", "task": "dialogue"} | dict(other),)
    data = {"name": "text", "path": f"{folder}/x.txt", "test_path": f"{folder}/x.txt", "task": "text"}
    config = from_dict(
        Config, {"model": {"vision": None}, "data": data | {"others": others, "row_length": 16} | settings}
    )
    return config, open_dataset(config.data)


def test_shares_go_by_records_epochs_weights_and_temperature(tmp_path):
    def shares(other=(), **settings):
        return opened(tmp_path, other, **settings)[1].train.shares

    np.testing.assert_allclose(shares(), [2 / 3, 1 / 3])
    np.testing.assert_allclose(shares({"epochs": 2.0}), [1 / 2, 1 / 2])
    np.testing.assert_allclose(shares({"weight": 3.0}, weight=1.0), [1 / 4, 3 / 4])
    np.testing.assert_allclose(shares({"weight": 9.0}, weight=1.0, temperature=2.0), [1 / 4, 3 / 4])
    with pytest.raises(UserError, match=r"^config\.data\.weight: 0 leaves nothing of it"):
        shares({"weight": 1.0})
    with pytest.raises(UserError, match=r"^config\.data\.others\[0\]\.epochs: 0 leaves nothing"):
        shares({"epochs": 0.0})
    with pytest.raises(UserError, match=r"^config\.data\.epochs: it has a weight as well"):
        shares({"weight": 1.0}, weight=1.0, epochs=2.0)
    for name in ("weight", "epochs", "temperature"):
        with pytest.raises(UserError, match=rf"^config\.data\.{name}: it shares visits out with config\.data\.others"):
            shares(others=(), **{name: 3.0})
    config, _ = opened(tmp_path)
    with pytest.raises(UserError, match=r"^config\.data\.others\[0\]\.weight: -1\.0 is too small"):
        override(config, {"data.others.0.weight": "-1"})
    np.testing.assert_allclose(shares_of((config.data,), [5], 1.0), [1.0])


def test_visits_have_these_shares_and_each_part_its_epochs(tmp_path):
    _, dataset = opened(tmp_path, {"weight": 1.0}, weight=3.0)
    visits = visits_of(dataset.train, 0)
    places = [visits[n] for n in range(160)]
    counts = Counter(places)
    assert [counts[place] for place in range(40)] == [3] * 40
    assert [counts[place] for place in range(40, 60)] == [2] * 20
    assert sum(place >= 40 for place in places[:40]) == 10  # and so all along


def test_parts_have_their_tasks_and_bad_records_are_replaced_by_their_own(tmp_path):
    config, dataset = opened(tmp_path, {"weight": 1.0}, weight=1.0, bad_records="skip")
    tokenizer = TrainedTokenizer.train(["x"], 262)
    reader = Reader(config.data, config.model, dataset.labels, bad=BadRecords("skip", 1), parts=dataset.parts)

    def texts(iterator, number):
        return [
            tokenizer.decode(row).strip()
            for _, batch in zip(range(number), iterator, strict=False)
            for row in batch.tokens
        ]

    iterator = train_iterator(dataset.train, reader, tokenizer, batch_size=4, seed=0)
    found = texts(iterator, 20)
    assert sum("said" in text for text in found) == sum(text.startswith("text") for text in found) == 40
    assert len(reader.bad) == 1
    state = iterator.get_state()
    expected = texts(iterator, 5)
    again = train_iterator(dataset.train, reader, tokenizer, batch_size=4, seed=0)
    again.set_state(state)
    assert texts(again, 5) == expected
    assert {dataset.test[place]["text"] for place in range(40)} == {f"text {n}" for n in range(40)}


def test_records_may_have_whatever_fields_they_like(tmp_path):
    rows = [{"part": part, "text": "a"} for part in (0, 1, "two")]
    (tmp_path / "parts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = f"{tmp_path}/parts.jsonl"
    config, dataset = opened(tmp_path, name="json", path=path, test_path=path)
    reader = Reader(config.data, config.model, dataset.labels, parts=dataset.parts)
    for source in (dataset.train, dataset.test):
        assert [reader.read(source, place)[0].reference for place in range(3)] == ["a"] * 3
    assert reader.read(dataset.train, 3)[0].reference == "said 0"


def test_errors_name_the_data_set_that_they_are_of(tmp_path):
    def refuses(other, message, **settings):
        with pytest.raises(UserError, match=message):
            opened(tmp_path, other, **settings)

    (tmp_path / "broken.json").write_text('{"images": []}')
    broken = {"name": "coco", "path": f"{tmp_path}/broken.json", "task": "caption"}
    refuses(broken, r"^config\.data\.others\[0\]\.path: .*broken\.json has no list 'annotations'")
    refuses(broken | {"name": "vqa"}, r"^config\.data\.others\[0\]\.path: .*broken\.json has no list 'annotations'")
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps({"images": [{"id": 1, "file_name": "1.png"}], "annotations": []}))
    settings = {"name": "coco", "path": str(whole), "test_path": broken["path"], "task": "caption"}
    refuses((), r"^config\.data\.test_path: .*broken\.json has no list 'annotations'", **settings)
    refuses({"name": "absent", "path": ""}, r"^config\.data\.others\[0\]\.name: there is no data set 'absent'")
    (tmp_path / "bad.jsonl").write_text("bad\n")
    config, dataset = opened(tmp_path, {"path": f"{tmp_path}/bad.jsonl", "weight": 9.0}, weight=1.0)
    reader = Reader(config.data, config.model, (), bad=BadRecords("skip", 9), parts=dataset.parts)
    message = r"config\.data\.others\[0\]\.path: .*/bad\.jsonl has nothing but bad records"
    with pytest.raises(UserError, match=message):
        next(train_iterator(dataset.train, reader, TrainedTokenizer.train(["x"], 262), batch_size=4, seed=0))


def test_built_in_data_may_be_among_them(tmp_path, small_data):
    scenes = {"name": "digit_scenes", "data_dir": str(small_data), "task": "question_answer", "path": ""}
    config, dataset = opened(tmp_path, scenes)
    assert len(dataset.train) == 64
    reader = Reader(config.data, config.model, dataset.labels, parts=dataset.parts)
    assert reader.read(dataset.train, 0)[0].messages[0].text == "text 0"
    assert reader.read(dataset.train, 63)[0].messages[0].text.endswith("?")
