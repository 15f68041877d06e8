"""Data sets are made once, whoever asks and however often a run is killed, and read back as they were made."""

import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxfusion.data.builtin import (
    BUILTIN,
    builder,
    digit_choices,
    digit_dialogues,
    digit_scenes,
    guest_reviews,
    handwritten_digits,
    moving_digits,
    prepare,
    restaurant_reviews,
    written_signs,
)
from jaxfusion.data.images import read_image
from jaxfusion.errors import UserError

# A process of its own that makes a small digit_scenes; `slow` gives the test time to catch it at work.
SCRIPT = """
import sys, time
from jaxfusion.data.builtin import digit_scenes, prepare
for split, (_, images) in digit_scenes.SPLITS.items():
    digit_scenes.SPLITS[split] = (20, images)
make_record, slow = digit_scenes.make_record, float(sys.argv[2])
digit_scenes.make_record = lambda *args: time.sleep(slow) or make_record(*args)
print(len(prepare("digit_scenes", sys.argv[1]).as_data_source("train")))
"""


def start(data_dir, slow: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(data_dir), str(slow)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def small(monkeypatch):
    for split, (_, images) in digit_scenes.SPLITS.items():
        monkeypatch.setitem(digit_scenes.SPLITS, split, (12, images))
    for module in (
        digit_choices,
        digit_dialogues,
        guest_reviews,
        handwritten_digits,
        moving_digits,
        restaurant_reviews,
    ):
        for split in module.SPLITS:
            monkeypatch.setitem(module.SPLITS, split, 12)
    monkeypatch.setattr(written_signs, "NUM_SIGNS", 3)
    for split in written_signs.SPLITS:
        monkeypatch.setitem(written_signs.SPLITS, split, 4)


def plain(value):
    """What TFDS gives, as plain Python: text for bytes, lists for arrays, rows for columns."""
    if isinstance(value, dict):
        return [dict(zip(value, row, strict=True)) for row in zip(*map(plain, value.values()), strict=True)]
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray | list):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("digit_choices", digit_choices),
        ("digit_dialogues", digit_dialogues),
        ("digit_scenes", digit_scenes),
        ("guest_reviews", guest_reviews),
        ("handwritten_digits", handwritten_digits),
        ("moving_digits", moving_digits),
        ("restaurant_reviews", restaurant_reviews),
        ("written_signs", written_signs),
    ],
)
@pytest.mark.usefixtures("small")
def test_records_come_back_as_they_were_made(name, module, tmp_path):
    made = prepare(name, tmp_path)
    assert set(made.info.splits) == {"train", "validation", "test"}
    for split in made.info.splits:
        source = pickle.loads(pickle.dumps(made.as_data_source(split)))  # as it travels to a worker process
        assert len(source) == 12
        for index, record in enumerate(source):
            expected = module.make_record(split, index)
            seen, stored = (
                (record.pop("video"), expected.pop("video"))
                if name == "moving_digits"
                else ([record.pop("image", None)], [expected.pop("image", None)])
            )
            if stored != [None]:  # a text has no picture
                np.testing.assert_array_equal(seen, [read_image(picture) for picture in stored])
            expected |= {"video_times": plain(expected["video_times"])} if name == "moving_digits" else {}
            for field in ("label", "source", "direction"):
                if isinstance(expected.get(field), str):
                    expected[field] = made.info.features[field].str2int(expected[field])
            assert {field: plain(value) for field, value in record.items()} == expected


@pytest.mark.usefixtures("small")
def test_making_is_quiet_and_happens_once(tmp_path, capfd):
    prepare("digit_scenes", tmp_path)
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and "digit_scenes" in err
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    prepare("digit_scenes", tmp_path)
    assert capfd.readouterr() == ("", "")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files


def test_several_processes_at_once(tmp_path):
    outputs = [process.communicate() for process in [start(tmp_path, 0.01) for _ in range(2)]]
    assert [out for out, _ in outputs] == ["20\n"] * 2
    assert sorted(err.count("made the data set") for _, err in outputs) == [0, 1]


def test_a_killed_run_leaves_nothing_behind(tmp_path):
    process = start(tmp_path, 0.5)
    while not list(tmp_path.rglob("incomplete*")):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(tmp_path.rglob("incomplete*"))
    again = start(tmp_path, 0)
    assert again.communicate()[0] == "20\n"
    assert not list(tmp_path.rglob("incomplete*"))
    assert [path.name for path in (tmp_path / "digit_scenes").iterdir() if path.is_dir()] == ["1.0.0"]


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"'digits_scene'; did you mean 'digit_scenes'\?"):
        builder("digits_scene")
    with pytest.raises(UserError, match="restaurant_reviews"):
        prepare("mnist")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/digit_scenes.*choose another data_dir"):
        prepare("digit_scenes", tmp_path / "file")


def test_names_are_resolved_when_asked_for():
    code = "import sys, jaxfusion.data.builtin; sys.exit('tensorflow_datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert [builder(name).name for name in BUILTIN] == list(BUILTIN)
