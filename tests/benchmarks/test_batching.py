"""The batching benchmark at a size for tests: both sides give the same answers."""

import json

import pytest

from benchmarks.batching import all_at_once, main


def test_both_sides_answer_alike_and_what_was_found_is_written(tmp_path, capsys):
    path, found = tmp_path / "found.json", {}
    for requests in (5, 2):
        sizes = ["--requests", str(requests), "--rows", "2", "--longest", "24", "--rounds", "1"]
        assert main([*sizes, "--json", str(path)]) == 0
        found[requests] = json.loads(path.read_text())
    assert found[2]["note"] == all_at_once(2, 2) and found[2]["answers_alike"] == found[2]["most_to_win"] == 1
    found = found[5]
    assert found["requests"] == 5 and found["answer_tokens"]["longest"] <= 24
    assert found["answers_alike"] == 1
    assert 1 < found["most_to_win"] <= 2  # of two rows one may be idle
    assert set(found["tokens_per_second"]) == {"static", "continuous"}
    assert "continuous_to_static" in capsys.readouterr().out
    assert "note" not in found


def test_where_every_request_has_a_row_it_says_so():
    assert "each of the 2 requests has one of the 2 rows from the start" in all_at_once(2, 2)
    assert not all_at_once(3, 2)


@pytest.mark.parametrize("wrong", [["--longest", "2"], ["--rows", "0"]])
def test_a_mistake_is_one_line(wrong, capsys):
    assert main(wrong) == 2
    assert capsys.readouterr().err.startswith("benchmarks.batching: ")
