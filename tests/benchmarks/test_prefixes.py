"""benchmarks.prefixes: both engines answer the same, and one of them reads less."""

import json

from benchmarks.prefixes import main


def test_questions_about_the_same_pictures_get_the_same_answers_from_both_engines(tmp_path, capsys):
    file = tmp_path / "found.json"
    assert main(f"--images 2 --questions 2 --tokens 3 --rounds 1 --json {file}".split()) == 0
    found = json.loads(file.read_text())
    assert found["answers_alike"] == 1 and found["kept_bytes_of_a_prompt"] > 0
    assert set(found["milliseconds_of_a_further_question"]) == {"kept", "read"}
    assert "read_to_kept" in capsys.readouterr().out


def test_wrong_arguments_are_one_line(capsys):
    assert main(["--questions", "1"]) == 2
    assert capsys.readouterr().err.startswith("benchmarks.prefixes: --questions: the first one reads")
