"""Sources in the training pipeline: the same records however shared out and resumed; bad ones counted, or refused."""

import json
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from jaxfusion.config import Config, from_dict
from jaxfusion.data.bad_records import BadRecords
from jaxfusion.data.dataset import open_dataset
from jaxfusion.data.loader import Reader, settle_images_per_row, train_iterator
from jaxfusion.data.order import visits_of
from jaxfusion.errors import UserError
from jaxfusion.evaluation.evaluate import held_out_samples
from jaxfusion.text.trained import TrainedTokenizer
from tests.data.sources.conftest import picture
from tests.data.sources.test_formats import write_captions, write_vqa

NUMBER = 24


def write_json(folder):
    def turns(n):
        return [{"from": "human", "value": f"<image>\n{n}?"}, {"from": "gpt", "value": f"it is {n}"}]

    for n in range(NUMBER):
        (folder / f"{n}.png").write_bytes(picture(n))
    rows = [{"image": f"{n}.png", "conversations": turns(n)} for n in range(NUMBER)]
    (folder / "x.json").write_text(json.dumps(rows))
    return {"name": "json", "path": f"{folder}/x.json", "task": "dialogue"}


def write_coco(folder):
    write_captions(folder / "captions.json", NUMBER)
    return {"name": "coco", "path": f"{folder}/captions.json"}


def write_questions(folder):
    write_vqa(folder, NUMBER)
    return {"name": "vqa", "path": f"{folder}/v2_*.json", "task": "question_answer"}


def write_folder(folder):
    for n in range(NUMBER):
        (folder / "abc"[n % 3]).mkdir(exist_ok=True)
        (folder / "abc"[n % 3] / f"{n}.png").write_bytes(picture(n))
    return {"name": "folder", "path": str(folder), "task": "classify"}


def write_shards(folder):
    import io
    import tarfile

    for shard in range(3):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for n in range(shard, NUMBER, 3):
                for ending, content in (("png", picture(n)), ("txt", f"caption {n}".encode())):
                    info = tarfile.TarInfo(f"{n}.{ending}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return {"name": "webdataset", "path": f"{folder}/{{0..2}}.tar"}


def write_parquet(folder, said="caption"):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "image": [{"bytes": picture(n), "path": None} for n in range(NUMBER)],
        "text": [f"{said} {n}" for n in range(NUMBER)],
    }
    parquet.write_table(pyarrow.table(columns), folder / "x.parquet", row_group_size=4)
    return {"name": "parquet", "path": str(folder)}


def write_texts(folder):
    (folder / "x.txt").write_text("".join(f"the text of line {n}\n" for n in range(NUMBER)))
    return {"name": "text", "path": str(folder), "task": "text"}


WRITERS = [write_json, write_coco, write_questions, write_folder, write_shards, write_parquet, write_texts]


def opened(settings, **more):
    """The data set, a reader, and a tokenizer."""
    vision = {"kind": "vgg", "image_size": 8, "stage_depths": [1], "stage_widths": [4]}
    values = {
        "model": {"vision": vision, "projector": {"kind": "linear", "pool": "mean"}},
        "data": {"row_length": 160, "images_per_row": 1} | settings | more,
    }
    config = from_dict(Config, values)
    dataset = open_dataset(config.data)
    bad = BadRecords(config.data.bad_records, config.data.max_bad_records)
    return dataset, Reader(config.data, config.model, dataset.labels, bad=bad), TrainedTokenizer.train(["x"], 262)


def batches(parts, seed=0):
    dataset, reader, tokenizer = parts
    return train_iterator(dataset.train, reader, tokenizer, batch_size=4, seed=seed)


def take(number, parts):
    return [batch for _, batch in zip(range(number), batches(parts), strict=False)]


def rows(batch):
    return [(tokens.tobytes(), image.tobytes()) for tokens, image in zip(batch.tokens, batch.images, strict=True)]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__[6:])
def test_records_are_the_same_however_shared_out_and_resumed(tmp_path, write, monkeypatch):
    settings = write(tmp_path)
    parts = opened(settings, test_path=settings["path"])
    dataset, reader, tokenizer = parts
    assert settle_images_per_row(dataset.train, reader, tokenizer, seed=0) == (settings["name"] != "text")
    first = batches(parts)
    for _ in range(2):
        next(first)
    state = json.dumps(first.get_state())
    expected = [rows(next(first)) for _ in range(7)]  # into the next epoch
    resumed = batches(opened(settings, test_path=settings["path"]))
    resumed.set_state(json.loads(state))
    assert [rows(next(resumed)) for _ in range(7)] == expected

    told = [repr(dataset.train[place]) for place in range(NUMBER)]
    assert len(set(told)) == NUMBER
    for number in (1, 3):  # each of so many readers, in a process of its own, has every n-th visit
        copies = [pickle.loads(pickle.dumps(dataset.train)) for _ in range(number)]
        visits = [iter(visits_of(copy, 0)[i::number][: NUMBER // number]) for i, copy in enumerate(copies)]
        seen = [repr(copy[place]) for copy, mine in zip(copies, visits, strict=True) for place in mine]
        assert sorted(seen) == sorted(told)


def test_worker_processes_give_what_threads_give(tmp_path):
    (tmp_path / "rows").mkdir()
    settings = write_shards(tmp_path)
    other = write_parquet(tmp_path / "rows", "row")
    shard = tmp_path / "0.tar"
    shard.write_bytes(shard.read_bytes().replace(picture(3), bytes(len(picture(3)))))
    given = []
    for number in (0, 2):
        kept = tmp_path / f"bad{number}.jsonl"
        dataset, reader, tokenizer = opened(settings, others=[other], bad_records="skip", num_workers=number)
        reader = replace(reader, bad=BadRecords("skip", 1, kept), parts=dataset.parts)
        found = take(2 * NUMBER // 4, (dataset, reader, tokenizer))
        given.append({row for batch in found for row in rows(batch)})
        (line,) = kept.read_text().splitlines()
        assert json.loads(line)["record"] == f"{shard}:3"
    assert given[0] == given[1]
    assert len(given[0]) == 2 * NUMBER - 2  # one is held out


def test_row_groups_are_read_a_window_at_a_time(tmp_path, monkeypatch):
    from jaxfusion.data.sources import parquet

    monkeypatch.setattr(parquet, "FEWEST", 2)
    monkeypatch.setattr(parquet, "MOST", 2)
    dataset, _, _ = opened(write_parquet(tmp_path), test_path=str(tmp_path))
    assert dataset.train.blocks.window == 2
    read = Counter()
    read_group = parquet.ParquetRows.read_group
    monkeypatch.setattr(
        parquet.ParquetRows, "read_group", lambda self, group: read.update([group]) or read_group(self, group)
    )
    visits = visits_of(dataset.train, 5)
    for epoch in range(3):
        places = [visits[epoch * NUMBER + n] for n in range(NUMBER)]
        assert sorted(places) == list(range(NUMBER))
        assert all(len({place // 4 for place in places[start : start + 8]}) == 2 for start in range(0, NUMBER, 8))
        for place in places:
            dataset.train[place]
    assert max(read.values()) <= 3
    assert [visits[n] for n in range(NUMBER)] != [visits[NUMBER + n] for n in range(NUMBER)]
    assert [visits_of(dataset.train, 6)[n] for n in range(NUMBER)] != [visits[n] for n in range(NUMBER)]


def test_no_more_row_groups_are_kept_than_the_largest_allow(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    from jaxfusion.data.sources import parquet

    kept = []
    read_group = parquet.ParquetRows.read_group
    monkeypatch.setattr(
        parquet.ParquetRows,
        "read_group",
        lambda self, group: kept.append(len(self._groups._tables)) or read_group(self, group),
    )
    monkeypatch.setattr(parquet, "WINDOW_BYTES", 2**16)
    for name, texts in {"a": ["short"] * 4, "b": ["long" * 2**12 + str(n) for n in range(NUMBER)]}.items():
        write_table(pyarrow.table({"text": texts}), tmp_path / f"{name}.parquet", row_group_size=1)
    dataset, _, _ = opened({"name": "parquet", "path": str(tmp_path), "task": "text"}, test_path=str(tmp_path))
    assert dataset.train.blocks.window == parquet.FEWEST
    for place in range(len(dataset.train)):
        dataset.train[place]
    assert max(kept) == parquet.FEWEST + 2


def test_bad_records_are_refused_by_file_and_line(tmp_path):
    settings = write_json(tmp_path)
    (tmp_path / "7.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"x\.json:1 \(record 7\): the image .*7\.png is not an image.* = 'skip'"):
        take(NUMBER, opened(settings))


def test_bad_records_are_left_out_and_counted(tmp_path):
    settings = write_json(tmp_path)
    (tmp_path / "7.png").unlink()
    rows = json.loads((tmp_path / "x.json").read_text())
    rows[5]["conversations"][1]["value"] = " "
    rows[11]["conversations"] = "text"
    rows[19]["image"] = "absent.png"  # held out
    (tmp_path / "x.json").write_text(json.dumps(rows))
    parts = opened(settings, bad_records="skip", max_bad_records=4)
    dataset, reader, tokenizer = parts
    kept = tmp_path / "bad.jsonl"
    reader = Reader(reader.data, reader.model, reader.labels, bad=BadRecords("skip", 4, kept))
    found = batches((dataset, reader, tokenizer))
    texts = [tokenizer.decode(row) for _, batch in zip(range(18), found, strict=False) for row in batch.tokens]
    assert len(texts) == 72  # three epochs, with others in the place of bad ones
    said = {text.rpartition("it is ")[2].split()[0] for text in texts}
    assert said == {str(n) for n in range(NUMBER) if n not in (5, 7, 11, 19)}
    assert len(reader.bad) == 3
    with pytest.raises(UserError, match=r"no held-out record that is whole"):
        held_out_samples(dataset.test, reader, 0)
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    places = sorted(int(line["record"].rpartition(" ")[2][:-1]) for line in lines)
    assert places == [5, 7, 11, 19]
    assert {line["reason"].partition(":")[0] for line in lines} >= {"the answer in turn 1 is empty; correct it"}
    again = BadRecords("skip", 4, kept)  # of a run that goes on
    assert len(again) == 4


def test_too_many_bad_records_end_the_run(tmp_path):
    settings = write_folder(tmp_path)
    for path in list(tmp_path.glob("*/*.png"))[:5]:
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"^config\.data\.max_bad_records: more than 4 records are bad, the last .*png"):
        take(3 * NUMBER, opened(settings, bad_records="skip", max_bad_records=4))


def test_long_documents_are_learned_piece_by_piece(tmp_path):
    (tmp_path / "x.txt").write_text("".join(map(chr, range(97, 123))) * 3 + "\nshort\n")
    settings = {"name": "text", "path": str(tmp_path), "test_path": str(tmp_path), "task": "text"}
    dataset, reader, tokenizer = opened(settings, row_length=32)
    seen = set()
    for batch in take(8, (dataset, reader, tokenizer)):
        for tokens, weights in zip(batch.tokens, batch.loss_weights, strict=True):
            seen.add(tokenizer.decode(tokens[: int((tokens != tokenizer.pad_id).sum())]))
            assert weights.sum() >= 5
    assert seen == {"short", *(("".join(map(chr, range(97, 123))) * 3)[max(at - 1, 0) : at + 31] for at in (0, 32, 64))}


def test_labels_may_be_named_in_the_config_and_written_as_text(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"review {n}", "label": ["bad", "good", 1][n]}) + "\n" for n in range(3))
    )
    settings = {
        "name": "json",
        "path": str(path),
        "test_path": str(path),
        "task": "classify",
        "labels": ("bad", "good"),
    }
    dataset, reader, _ = opened(settings)
    assert [sample.label for sample in held_out_samples(dataset.test, reader, 0)] == [0, 1, 1]
    path.write_text('{"text": "review", "label": "odd"}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:1: 'label' is 'odd', which is no class; the classes are bad, good"):
        held_out_samples(opened(settings)[0].test, reader, 0)
    np.testing.assert_equal(dataset.labels, ("bad", "good"))


def test_held_out_records_that_cannot_be_read_are_told_before_training(tmp_path):
    from jaxfusion.experiment import train_run

    for name, row in (("train", {"text": "a b"}), ("test", {"words": "a b"})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    decoder = {"kind": "transformer", "num_layers": 1, "num_heads": 2}
    paths = {"path": str(tmp_path / "train.jsonl"), "test_path": str(tmp_path / "test.jsonl")}
    settings = {
        "model": {"width": 16, "vision": None, "decoder": decoder},
        "data": {"name": "json", "task": "text", "row_length": 16} | paths,
    }
    with pytest.raises(UserError, match=r"test\.jsonl:1: "):
        train_run(from_dict(Config, settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_on_texts_tells_its_perplexity_and_what_it_left_out(tmp_path):
    from jaxfusion.experiment import train_run

    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "x.txt").write_bytes("".join(f"the text of line {n}\n" for n in range(40)).encode() + b"\xff\n")
    decoder = {"kind": "transformer", "num_layers": 1, "num_heads": 2}
    settings = {
        "model": {"width": 16, "vision": None, "decoder": decoder},
        "data": {"name": "text", "path": str(texts), "task": "text", "row_length": 16, "bad_records": "skip"},
        "train": {"num_steps": 6, "batch_size": 8},
    }
    metrics = train_run(from_dict(Config, settings), tmp_path / "run")
    assert metrics["perplexity"] == pytest.approx(np.exp(metrics["test_loss"]))
    told = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert told["bad_records"] == 1
    (line,) = (tmp_path / "run" / "bad_records.jsonl").read_text().splitlines()
    assert json.loads(line)["record"].endswith("x.txt:41")
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Bad records left out" in report
    # The data may have moved, but they must be the same.
    moved = tmp_path / "moved"
    texts.rename(moved)
    settings["data"]["path"] = str(moved)
    train_run(from_dict(Config, settings), tmp_path / "run")
    text = (moved / "x.txt").read_bytes()
    (moved / "x.txt").write_bytes(text.replace(b"of line 7\n", b"of word 7\n"))
    with pytest.raises(
        UserError, match=r"^config\.data: other records, and the run in .* began with as many different ones; give it"
    ):
        train_run(from_dict(Config, settings), tmp_path / "run")
    (moved / "x.txt").write_bytes(text)
    with (moved / "x.txt").open("a") as file:
        file.write("one more\n")
    with pytest.raises(
        UserError, match=r"^config\.data: 40 records, and the run in .* began with 39; give it the same"
    ):
        train_run(from_dict(Config, settings), tmp_path / "run")
