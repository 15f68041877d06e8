"""Each kind of input gives its records by their ids; what is broken is said of the record where it can be."""

import io
import json
import sys
import tarfile

import pytest

from jaxfusion.bulk.inputs import open_input
from jaxfusion.errors import UserError


def read(path, places=None):
    found = open_input(path)
    places = range(len(found.ids)) if places is None else places
    return {found.ids[place]: parse() for place, parse in found.read(places)}


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_parquet(path, columns, row_group_size=2):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)
    return path


def test_a_directory_is_its_pictures_by_name(tmp_path):
    for name in ("b.JPG", "sub/a.png", "sub/deeper/c.webp", "notes.txt", ".hidden/d.png", ".e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert read(tmp_path) == {name: {"image": name} for name in ("b.JPG", "sub/a.png", "sub/deeper/c.webp")}
    assert open_input(tmp_path).folder == tmp_path


def test_lines_are_known_by_their_id_or_number_and_broken_ones_are_named(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"id": "a", "prompt": "x"}\n\n{"prompt": "\xc3\xa9"}\r\n{"id": "b"\n[1]\n{"id": true}')
    found = open_input(path)
    assert found.ids == ["a", 3, 4, 5, 6]
    parsed = dict(found.read([1, 2, 3]))
    assert parsed[1]() == {"prompt": "é"}
    with pytest.raises(UserError, match=r"records.jsonl:4: not JSON"):
        parsed[2]()
    with pytest.raises(UserError, match=r"records.jsonl:5: a JSON object is wanted"):
        parsed[3]()


def test_rows_of_parquet_are_read_where_they_are_wanted(tmp_path):
    pictures = [{"bytes": bytes([n]), "path": None} for n in range(5)]
    rows = {"id": ["a", "b", None, "d", "e"], "image": pictures, "prompt": list("vwxyz"), "other": [0] * 5}
    path = write_parquet(tmp_path / "records.parquet", rows)
    found = read(path, [1, 2, 4])
    assert list(found) == ["b", 3, "e"]
    assert found[3] == {"id": None, "image": pictures[2], "prompt": "x"}
    assert list(read(write_parquet(tmp_path / "none.parquet", {"prompt": ["v", "w"]}))) == [1, 2]


def test_members_of_a_tar_are_joined_by_name(tmp_path):
    members = {
        "a/1.jpg": b"jpg",
        "a/1.txt": b" what?\n",
        "a/2.left.png": b"left",
        "a/2.right.png": b"right",
        "a/2.json": json.dumps({"prompt": "both?", "image": "elsewhere.png"}).encode(),
        "a/2.txt": b"not this",
        "a/2.cls": b"7",
        "3.json": b"{",
        "4.json": json.dumps({"text": "the answer", "id": 4}).encode(),
        "5.json": json.dumps({"text": "the answer"}).encode(),
        "5.txt": b"what?",
    }
    found = open_input(write_tar(tmp_path / "shard.tar", members))
    assert found.ids == ["a/1", "a/2", "3", "4", "5"]
    parsed = dict(found.read(range(5)))
    assert (parsed[3](), parsed[4]()) == ({"id": 4}, {"prompt": "what?"})
    assert parsed[0]() == {"prompt": "what?", "image": None, "images": [b"jpg"]}
    assert parsed[1]() == {"prompt": "both?", "image": None, "images": [b"left", b"right"]}
    with pytest.raises(UserError, match=r"shard.tar:3.json: not JSON"):
        parsed[2]()


def test_inputs_that_cannot_be_used_are_named(tmp_path, monkeypatch):
    def refuses(path, message):
        with pytest.raises(UserError, match=message) as caught:
            open_input(path)
        assert "\n" not in str(caught.value)

    twice = tmp_path / "twice.jsonl"
    twice.write_text('{"id": "a"}\n{"id": "b"}\n{"id": "a"}\n')
    refuses(twice, "the id 'a' twice; give each record one of its own")
    refuses(tmp_path / "absent", "there is no .*absent; check the path")
    (tmp_path / "records.csv").touch()
    refuses(tmp_path / "records.csv", "no directory of pictures")
    (tmp_path / "empty.jsonl").touch()
    refuses(tmp_path / "empty.jsonl", "holds no records")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", "holds no records")
    refuses(write_tar(tmp_path / "packed.tar", {"a.txt": b"x"}, "w:gz"), "not a whole, uncompressed tar")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing more")
    refuses(tmp_path / "broken.parquet", "not a whole Parquet file")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refuses(tmp_path / "broken.parquet", r"pip install 'jaxfusion\[parquet\]'")
