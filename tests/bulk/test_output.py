"""The file of answers: what is done is known again, and nothing else gets into it."""

import json

import pytest

from jaxfusion.bulk.output import open_answers, shard_path
from jaxfusion.errors import UserError

SETTINGS = {"--prompt": "", "config.generate.stop": ["\n"], "config.generate.temperature": 0.0}


@pytest.fixture
def path(tmp_path):
    """With two answers and an error."""
    path = tmp_path / "new" / "answers.jsonl"
    with open_answers(path, SETTINGS) as answers:
        assert not answers.done
        answers.write("a", {"answer": "é\n\ud800"})
        answers.write(2, {"error": "bad"})
        answers.write("2", {"answer": ""})
    return path


def test_a_torn_line_is_cut_off_wherever_it_was_torn(path):
    content = path.read_bytes()
    assert [json.loads(line)["id"] for line in content.splitlines()] == ["a", 2, "2"]
    assert json.loads(content.splitlines()[0])["answer"] == "é\n\ud800"
    last = content.rstrip(b"\n").rindex(b"\n") + 1
    for end in range(last, len(content)):
        path.write_bytes(content[:end])
        with open_answers(path, SETTINGS) as answers:
            assert (answers.done, answers.errors) == ({"a", 2}, 1)
            answers.write("2", {"answer": ""})
        assert path.read_bytes() == content
    with open_answers(path, SETTINGS) as answers:
        assert answers.done == {"a", 2, "2"}


def test_other_settings_are_refused_by_name(path):
    content = path.read_bytes()
    changed = SETTINGS | {"config.generate.temperature": 0.5}
    message = "was begun with config.generate.temperature = 0.0, and here it is 0.5; name another file, or change it"
    with pytest.raises(UserError, match=message), open_answers(path, changed):
        pass
    assert path.read_bytes() == content
    path.write_bytes(content[:5])  # killed before its first answer: nothing speaks against other settings
    with open_answers(path, changed) as answers:
        answers.write("a", {})
    with pytest.raises(UserError, match=r"temperature = 0.5"), open_answers(path, SETTINGS):
        pass


def test_a_setting_that_came_later_counts_as_its_default(path):
    def begun_with(weights):
        return open_answers(path, SETTINGS | {"config.generate.weights": weights}, {"config.generate.weights": "given"})

    with begun_with("given") as answers:
        assert len(answers.done) == 3
    with pytest.raises(UserError, match="weights = 'given', and here it is 'int8'; name another"), begun_with("int8"):
        pass


def test_what_is_no_file_of_answers_is_left_alone(path, tmp_path):
    def refuses(path, message):
        with pytest.raises(UserError, match=message), open_answers(path, SETTINGS):
            pass

    for content in (b"some text\n", b"[1]\n", b'{"id": []}\n', b'{"identity": 1}\n', b"no newline"):
        other = tmp_path / "other.jsonl"
        other.write_bytes(content)
        refuses(other, "holds something else than answers of a bulk job; name another file")
        assert other.read_bytes() == content
    refuses(tmp_path, "cannot be written")
    with open_answers(path, SETTINGS):
        refuses(path, "another process is at work on .*answers.jsonl")
    path.with_name("answers.jsonl.about.json").unlink()
    refuses(path, "what .*answers.jsonl was begun with is not known")


def test_each_process_has_a_file_of_its_own_and_their_number_stays(tmp_path):
    output = tmp_path / "a[b].jsonl"
    assert shard_path(output, 0, 1) == output
    shard = shard_path(output, 1, 2)
    assert shard.name == "a[b]-00001-of-00002.jsonl"
    shard.touch()
    assert shard_path(output, 0, 2).name == "a[b]-00000-of-00002.jsonl"
    for count in (1, 3):
        with pytest.raises(UserError, match=f"was begun by 2 processes, and here they are {count}; go on with as many"):
            shard_path(output, 0, count)
    shard.unlink()
    output.touch()
    with pytest.raises(UserError, match="was begun by 1 processes"):
        shard_path(output, 0, 2)
