"""The load that `benchmarks.serve` replays, of servers that run elsewhere and of its own."""

import json
import time

import numpy as np
import pytest

from benchmarks.load import Client, make_load
from benchmarks.serve import main

SMALL = ["--words", "6", "--tokens", "12", "--image-size", "8", "--rounds", "1"]
LOAD = {"words": 6, "tokens": 12, "image_size": 8, "seed": 1}


def test_the_load_is_mixed_and_only_its_contents_change_with_them():
    first, second = (make_load(400, **LOAD, rate=20.0, contents=contents) for contents in (0, 1))
    shares = np.bincount([ask.pictures for ask in first]) / 400
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.08)
    limits = [ask.body["max_tokens"] for ask in first]
    assert (min(limits), max(limits)) == (8, 12)
    arrivals = np.array([ask.at for ask in first])
    assert (np.diff(arrivals) > 0).all() and 15 < 400 / arrivals[-1] < 26
    for one, other in zip(first, second, strict=True):
        assert (one.at, one.pictures, one.body["max_tokens"]) == (other.at, other.pictures, other.body["max_tokens"])
        texts = [ask.body["messages"][0]["content"][-1]["text"] for ask in (one, other)]
        assert len(texts[0].split()) == len(texts[1].split()) and texts[0] != texts[1]
        contents = [ask.body["messages"][0]["content"] for ask in (one, other)]
        assert (len(contents[0]) == one.pictures + 1 and contents[0][:-1] != contents[1][:-1]) or not one.pictures
    assert make_load(400, **LOAD, rate=20.0, contents=1) == second


@pytest.mark.parametrize("how", [["--clients", "3"], ["--rate", "40"]])
def test_a_server_elsewhere_answers_all_of_it(served, how, tmp_path):
    path = tmp_path / "found.json"
    url = ["--url", f"{served.url}/v1"]
    assert main([*url, *SMALL, *how, "--requests", "6", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert (found["server_model"], found["failed"], found["url"]) == ("tiny", {}, url[1])
    assert found["environment"].keys() == {"host_cpu", "host_cores", "load_average"}  # whose devices are not these
    assert sum(found["requests_with_pictures"].values()) == 6
    first, end = found["seconds_to_first_token"], found["seconds_to_end"]
    assert 0 < first["p50"] <= end["p50"] <= end["p99"]
    assert found["answer_tokens_per_second"]["median"] > found["requests_per_second"]["median"] > 0


def test_a_request_counts_from_when_it_was_due_and_a_refused_one_says_why(served):
    client, (ask,) = Client(f"{served.url}/v1"), make_load(1, **LOAD, rate=None, contents=0)
    late = client.ask(ask, time.perf_counter() - 100)
    assert 100 < late.first <= late.whole and 0 < late.tokens <= ask.body["max_tokens"]
    ask.body["max_tokens"] = 10**6
    assert client.ask(ask).failed == "400 Bad Request"


def test_where_nothing_is_answered_the_reason_is_told(served, capsys):
    def limit(seed):
        (ask,) = make_load(1, **LOAD | {"tokens": 10**9, "seed": seed}, rate=None, contents=0)
        return ask.body["max_tokens"]

    seed = next(seed for seed in range(9) if limit(seed) > 10**6)
    sizes = ["--words", "6", "--tokens", "1000000000", "--image-size", "8", "--requests", "1", "--seed", str(seed)]
    assert main(["--url", f"{served.url}/v1", *sizes]) == 2
    error = capsys.readouterr().err
    assert "none of 1 requests was answered, and 1 of them for this: 400 Bad Request; mend that" in error
    assert error.count("\n") == 1


def test_its_own_server_is_there_for_as_long_as_it_is_asked(tmp_path):
    path = tmp_path / "found.json"
    assert main([*SMALL, "--clients", "2", "--requests", "2", "--seed", "2", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["requests_with_pictures"] == {"0": 2}  # which compiles least
    assert (found["preset"], found["failed"], found["environment"]["platform"]) == ("tiny_vlm", {}, "cpu")
    assert found["seconds_to_end"]["p50"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--words", "2"], "--words: 2 is too few; use 4 or more"),
        (["--words", "4000"], "and the model's context has "),
        (["--url", "x", "--rows", "2"], "--rows: the server at --url has its own; leave it out"),
        (["--model", "x"], "--model: it belongs to --url, and none was given; leave it out"),
        (["--rate", "0"], "--rate: 0 is not a positive number"),
        (["--url", "http://127.0.0.1:9/v1"], "--url: http://127.0.0.1:9/v1/models is not answered as it should be"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
