"""Bulk answers against each record alone; bad records, interruption, and going on."""

import io
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

import jaxfusion
from jaxfusion.bulk.inputs import open_input
from jaxfusion.bulk.job import Job, answer_all
from jaxfusion.bulk.output import open_answers
from jaxfusion.config import Config, from_dict
from jaxfusion.data.images import encode_png
from jaxfusion.generation.sampling import Sampling
from tests.bulk.test_inputs import write_parquet, write_tar
from tests.generation.test_generate import VISION
from tests.models.test_vlm import random_params

SAMPLING = Sampling(temperature=0.7)
GENERATE = {"max_new_tokens": 24, "batch_size": 3, "num_positions": 64, "temperature": 0.7, "seed": 5}
PROMPTS = ["what?", "why?", "who?", "is it?", "so?", "which?", "no?"]


@pytest.fixture(scope="module")
def config():
    text = {"vocab_size": 262, "max_positions": 64}
    model = {"width": 16, "vision": VISION, "text_embedding": text}
    decoder = {"kind": "transformer", "num_layers": 1, "num_heads": 2}
    return from_dict(Config, {"model": model | {"decoder": decoder}, "generate": GENERATE})


@pytest.fixture(scope="module")
def model(config):
    from jaxfusion.text.trained import TrainedTokenizer

    model = jaxfusion.build(config, TrainedTokenizer.train(["x"], 262))
    return model, random_params(model)


@pytest.fixture(scope="module")
def pictures():
    return list(np.random.default_rng(0).integers(0, 256, (len(PROMPTS), 8, 8, 3), np.uint8))


@pytest.fixture(scope="module")
def alone(model, pictures):
    """What each prompt with its picture is answered by itself."""
    settings = {"max_new_tokens": 24, "sampling": SAMPLING}
    return [
        jaxfusion.generate(*model, [prompt], [picture], seed=5 + place, **settings)[0]
        for place, (prompt, picture) in enumerate(zip(PROMPTS, pictures, strict=True))
    ]


@pytest.fixture
def job(config, model):
    return lambda path, **changes: Job(
        replace(config, generate=replace(config.generate, **changes)), *model, open_input(path), "what?", SAMPLING
    )


@pytest.fixture
def lines(tmp_path, pictures):
    """A .jsonl of all prompts with their pictures."""
    rows = []
    for place, (prompt, picture) in enumerate(zip(PROMPTS, pictures, strict=True)):
        (tmp_path / f"{place}.png").write_bytes(encode_png(picture))
        rows.append({"id": f"r{place}", "image": f"{place}.png", "prompt": prompt})
    return write_lines(tmp_path / "records.jsonl", rows)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(job, output, places=None):
    """What is written, by id, and what is said."""
    said = io.StringIO()
    with open_answers(output, {}) as answers:
        answer_all(job, range(len(job.records.ids))[places or slice(None)], answers, Console(file=said))
    return read(output), said.getvalue()


def read(output):
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows), "a record was done twice"
    return {row.pop("id"): row for row in rows}


def test_every_kind_of_input_gets_what_each_record_gets_alone(job, lines, pictures, alone, tmp_path):
    files = [encode_png(picture) for picture in pictures]
    members = {
        f"r{n}.{end}": content
        for n, pair in enumerate(zip(files, PROMPTS, strict=True))
        for end, content in (("png", pair[0]), ("txt", pair[1].encode()))
    }
    asked = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    columns = {"id": [f"r{n}" for n in range(len(files))], "images": [[file] for file in files], "messages": asked}
    inputs = [lines, write_tar(tmp_path / "shard.tar", members), write_parquet(tmp_path / "rows.parquet", columns)]
    for number, path in enumerate(inputs):
        rows, said = run(job(path), tmp_path / f"answers-{number}.jsonl")
        assert {name: row["answer"] for name, row in rows.items()} == {f"r{n}": text for n, text in enumerate(alone)}
        assert [rows[f"r{n}"]["prompt"] for n in range(len(PROMPTS))] == PROMPTS
        assert {row["end"] for row in rows.values()} == {"stop", "length"}
        assert all(0 < row["num_tokens"] <= 24 for row in rows.values())
        assert f"record {len(PROMPTS)}/{len(PROMPTS)}" in said and "has all of its 7 records" in said


def test_a_directory_is_asked_the_prompt_and_bad_pictures_do_not_end_the_job(job, lines, alone, tmp_path):
    lines.unlink()
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.png").write_text("no picture")
    rows, said = run(job(tmp_path), tmp_path / "answers.jsonl")
    assert sorted(rows) == [f"{n}.png" for n in range(7)]
    assert (rows["0.png"]["prompt"], rows["0.png"]["answer"]) == ("what?", alone[0])
    assert "1.png is truncated or damaged" in rows["1.png"]["error"]
    assert "2.png is not an image of a known kind" in rows["2.png"]["error"]
    assert sum("error" in row for row in rows.values()) == 2
    assert "2 records could not be answered" in said


def test_bad_records_are_lines_with_what_is_wrong(job, lines, tmp_path):
    rows = [
        {"id": "long", "prompt": "words " * 20},
        {"id": "missing", "image": "absent.png"},
        {"id": "surrogate", "prompt": "\ud800"},
        {"id": "turns", "messages": [{"role": "assistant", "content": "x"}]},
        {"id": "good", "prompt": "what?", "image": "0.png"},
    ]
    path = write_lines(tmp_path / "bad.jsonl", rows)
    with path.open("a") as file:
        file.write('{"id": "torn", "prom')
    found, said = run(job(path), tmp_path / "answers.jsonl")
    assert "more than the 64 that there are" in found["long"]["error"]
    assert "absent.png does not exist" in found["missing"]["error"]
    assert "bad.jsonl:6: not JSON" in found[6]["error"]
    assert "messages: " in found["turns"]["error"]
    assert "error" in found["surrogate"] and "answer" in found["good"]
    assert "5 records could not be answered" in said
    again, said = run(job(path), tmp_path / "answers.jsonl")
    assert again == found and "has 6 of 6 records already" in said


def test_a_killed_job_goes_on_without_doing_a_record_twice(job, lines, tmp_path):
    output = tmp_path / "answers.jsonl"
    expected, _ = run(job(lines), output)
    content = output.read_bytes()
    for end in (len(content) // 2, len(content) - 1, content.index(b"\n") + 1):
        output.write_bytes(content[:end])
        left = job(lines)
        places = []

        def reading(wanted, read=left.records.read, places=places):
            places += wanted
            return read(wanted)

        rows, said = run(replace(left, records=replace(left.records, read=reading)), output)
        assert rows == expected
        kept = content[:end].count(b"\n")
        assert len(places) == len(PROMPTS) - kept and f"has {kept} of 7 records already" in said


def test_a_signal_finishes_what_is_growing(job, lines, tmp_path):
    left, output = job(lines), tmp_path / "answers.jsonl"

    def reading(wanted, read=left.records.read):
        for number, record in enumerate(read(wanted)):
            if number == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            yield record

    with pytest.raises(SystemExit) as stopped:
        run(replace(left, records=replace(left.records, read=reading)), output)
    assert stopped.value.code == 128 + signal.SIGTERM
    before = read(output)
    assert 2 <= len(before) < len(PROMPTS)
    after, _ = run(left, output)
    assert after == run(left, tmp_path / "unbroken.jsonl")[0]
    assert before.items() <= after.items()


def test_shards_share_the_records_and_answer_as_one(job, lines, alone, tmp_path):
    parts = [run(job(lines), tmp_path / f"{index}.jsonl", slice(index, None, 2))[0] for index in range(2)]
    assert [len(part) for part in parts] == [4, 3]
    rows = parts[0] | parts[1]
    assert [rows[f"r{n}"]["answer"] for n in range(7)] == alone


def test_an_answer_ends_at_a_stop_text(job, lines, alone, tmp_path):
    stop = next(letter for letter in alone[0][4:] if letter.isascii() and letter.isprintable())
    rows, _ = run(job(lines, stop=(stop,)), tmp_path / "answers.jsonl")
    assert [rows[f"r{n}"]["answer"] for n in range(7)] == [text.split(stop)[0] for text in alone]
    assert rows["r0"]["end"] == "stop"
