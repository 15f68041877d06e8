"""Each format as its own tools write it, read back record by record."""

import base64
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from jaxfusion.config.run import DataConfig
from jaxfusion.data.sources import open_format
from jaxfusion.errors import RecordError, UserError
from tests.data.sources.conftest import color_of, picture, seen


def read(name, path, **settings):
    """All records: every place of path's."""
    train, test, labels = open_format(DataConfig(name=name, path=str(path), test_path=str(path), **settings))
    assert len(train) == len(test)
    return [train[place] for place in range(len(train))], labels


def plain(record):
    return {name: value for name, value in record.items() if name not in ("images", "origin")}


@pytest.mark.parametrize("array", [False, True])
def test_json_is_lines_or_one_array(tmp_path, array):
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(picture(number))
    rows = [
        {"id": "a", "image": "0.png", "conversations": [{"from": "human", "value": "<image>\nWhat is it? 那"}]},
        {"id": "b", "images": ["1.png", "2.png"], "messages": [{"role": "user", "content": "é"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "2.png"}}]}]},
        {"text": "no picture"},
    ]
    path = tmp_path / ("records.json" if array else "records.jsonl")
    lines = [json.dumps(row, ensure_ascii=number % 2 == 0) for number, row in enumerate(rows)]
    path.write_text(json.dumps(rows, indent=2, ensure_ascii=False) if array else "\n".join(lines) + "\n\n")
    found, _ = read("json", path, image_root=str(tmp_path / "pictures"))
    without = [{name: value for name, value in row.items() if name not in ("image", "images")} for row in rows]
    assert [plain(record) for record in found] == without
    expected = [[color_of(0)], [color_of(1), color_of(2)], [color_of(2)], []]
    assert [seen(record) for record in found] == expected
    line = path.read_text().splitlines().index("  {", 5) + 1 if array else 2
    assert found[1]["origin"].startswith(f"{path}:{line}")


def write_captions(path, number=4):
    """By the COCO API's form; its own reader is asked in the test."""
    images = [{"id": 100 + n, "file_name": f"{n}.png", "height": 6, "width": 8} for n in range(number)]
    annotations = [
        {"id": 7 * n + m, "image_id": 100 + n, "caption": f"caption {m} of {n} "}
        for m in range(3)
        for n in range(number)
    ]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    path.write_text(json.dumps(content))
    for n in range(number):
        (path.parent / f"{n}.png").write_bytes(picture(n))


def test_coco_gives_all_captions_of_a_picture(tmp_path):
    path = tmp_path / "captions.json"
    write_captions(path)
    found, _ = read("coco", path)
    assert [record["caption"] for record in found] == [[f"caption {m} of {n}" for m in range(3)] for n in range(4)]
    assert [seen(record) for record in found] == [[color_of(n)] for n in range(4)]
    assert "captions.json: image 102 (2.png)" in found[2]["origin"]
    coco = pytest.importorskip("pycocotools.coco").COCO(str(path))
    for record in found:
        theirs = coco.loadAnns(coco.getAnnIds(imgIds=record["image_id"]))
        assert record["caption"] == [annotation["caption"].strip() for annotation in theirs]


def write_vqa(folder, number=3):
    asked, given = [], []
    for n in range(number):
        image = 1000 + 137 * n  # no two alike but for a digit
        for m in range(2):
            place = {"image_id": image, "question_id": 10 * image + m}
            answers = [{"answer": f"{(n + i) % 3}", "answer_confidence": "yes", "answer_id": i + 1} for i in range(10)]
            asked.append(place | {"question": f"Which {m}?"})
            given.append(place | {"question_type": "which", "multiple_choice_answer": str(n), "answers": answers})
        (folder / f"COCO_val2014_{image:012}.jpg").write_bytes(picture(n, "JPEG"))
    head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "val2014"}
    (folder / "v2_questions.json").write_text(json.dumps(head | {"task_type": "Open-Ended", "questions": asked}))
    (folder / "v2_annotations.json").write_text(json.dumps(head | {"annotations": given}))


def test_vqa_joins_questions_and_ten_answers(tmp_path):
    write_vqa(tmp_path)
    found, _ = read("vqa", tmp_path / "v2_{questions,annotations}.json")
    assert [record["image_id"] for record in found] == [1000, 1137, 1274]
    assert found[1]["questions"] == ["Which 0?", "Which 1?"]
    assert found[1]["answers"] == [[str((1 + i) % 3) for i in range(10)]] * 2
    assert all(Path(record["images"][0]).exists() for record in found)
    with pytest.raises(UserError, match=r"^config\.data\.path: none of .* has VQA's annotations; name both files"):
        read("vqa", tmp_path / "v2_questions.json")
    content = json.loads((tmp_path / "v2_annotations.json").read_text())
    content["annotations"][0]["question_id"] = [1]
    (tmp_path / "v2_annotations.json").write_text(json.dumps(content))
    train, _, _ = open_format(DataConfig(name="vqa", path=str(tmp_path), test_path=str(tmp_path)))
    with pytest.raises(RecordError, match="question 10000: no annotation answers it"):
        train[0]
    (tmp_path / "v2_folder.json").mkdir()  # which nobody can read as a file
    (tmp_path / "v2_folder.json" / "x.json").symlink_to("nothing")
    with pytest.raises(UserError, match=r"x\.json: cannot be read \(No such file or directory\); check the file"):
        read("vqa", tmp_path)


def test_folders_are_classes(tmp_path):
    for split, names in (("train", ("cat", "dog")), ("val", ("dog",))):
        for label, name in enumerate(names):
            (tmp_path / split / name / "deeper").mkdir(parents=True)
            (tmp_path / split / name / "deeper" / "x.png").write_bytes(picture(label))
            (tmp_path / split / name / "y.JPG").write_bytes(picture(label, "JPEG"))
    (tmp_path / "train" / "cat" / "notes.txt").touch()
    config = DataConfig(name="folder", path=str(tmp_path / "train"), test_path=str(tmp_path / "val"))
    train, test, labels = open_format(config)
    assert labels == ("cat", "dog")
    assert [train[place]["label"] for place in range(len(train))] == [0, 0, 1, 1]
    assert [test[place]["label"] for place in range(len(test))] == [1, 1]
    (tmp_path / "val" / "bird").mkdir()
    with pytest.raises(UserError, match=r"bird: no class of that name is trained \(cat, dog\)"):
        open_format(config)


def test_webdataset_shards_are_read_by_pattern(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "train-%03d.tar"), maxcount=4, verbose=0) as writer:
        for n in range(10):
            name = f"{n:06}" if n != 5 else "a/" + "long" * 40 + "/é5"
            row = {"__key__": name, "png": picture(n), "txt": f"caption {n}", "json": {"score": n}, "cls": n % 3}
            writer.write(row)
    found, _ = read("webdataset", tmp_path / "train-{000..002}.tar")
    assert [plain(record) for record in found] == [
        {"text": f"caption {n}", "score": n, "label": n % 3} for n in range(10)
    ]
    assert [seen(record) for record in found] == [[color_of(n)] for n in range(10)]
    assert found[4]["origin"] == f"{tmp_path}/train-001.tar:000004"
    again, _ = read("webdataset", tmp_path / "*.tar")
    assert again == found


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("format", ["ustar", "gnu", "pax"])
def test_tars_of_every_kind_have_the_members_that_tarfile_finds(tmp_path, format):
    from jaxfusion.data.sources.tar import members_of

    path, formats = tmp_path / "x.tar", {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": None}
    with tarfile.open(path, "w", format=formats[format] or tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("folder/"))
        for n, name in enumerate(["a.txt", "f" * 90 + "/" + "g" * 80 + ".json", "empty.txt", "ü.txt"]):
            info = tarfile.TarInfo(name)
            info.size = 700 * n % 1400
            archive.addfile(info, io.BytesIO(bytes([n]) * info.size))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname, link.size = tarfile.SYMTYPE, "a.txt", 1000  # which is nothing's
        archive.addfile(link)
        folder = tarfile.TarInfo("folder")
        folder.type, folder.size = tarfile.DIRTYPE, 10**5
        archive.addfile(folder)
        info = tarfile.TarInfo("last.txt")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    with tarfile.open(path) as archive:
        theirs = [(member.name, member.offset_data, member.size) for member in archive if member.isreg()]
    theirs = [one for one in theirs if not one[0].startswith("folder")]
    assert [tuple(member) for member in members_of(path) if not member.name.startswith("folder")] == theirs


@pytest.mark.parametrize("digits", [16, 21, 5000])
def test_sizes_beyond_the_end_of_a_tar_are_damage(tmp_path, digits):
    def read_hurt(header, content=b""):
        path.write_bytes(whole[:1024] + header + content + bytes(-len(content) % 512) + whole[1024:])
        train, _, _ = open_format(DataConfig(name="webdataset", path=str(path), test_path=str(path)))
        found, bad = [], []
        for place in range(len(train)):
            try:
                found.append(train[place]["text"])
            except RecordError as error:
                bad.append(str(error).removeprefix(str(path)))
        return found, bad

    path, header = tmp_path / "x.tar", tarfile.TarInfo("header")
    write_tar(path, {"a.txt": b"a", "b.txt": b"b", "c.txt": b"c"})
    whole = path.read_bytes()
    header.type = tarfile.XHDTYPE
    line = b"%d size=%s\n" % (digits + 7 + len(str(digits + 7)), b"9" * digits)
    header.size = len(line)
    kept = (["a", "c"], [":b.txt: the tar ends within it; copy it again"]) if digits < 20 else (["a", "b", "c"], [])
    assert read_hurt(header.tobuf(tarfile.USTAR_FORMAT), line) == kept
    header.size = 10 ** min(digits, 26)
    lost = ": byte 1024: a file's header is broken; write the tar again"
    assert read_hurt(header.tobuf(tarfile.GNU_FORMAT)) == (["a", "b", "c"], [lost])


def test_parquet_is_read_as_datasets_writes_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "caption": datasets.Value("string"),
        }
    )
    for shard in range(2):
        numbers = range(5 * shard, 5 * shard + 5)
        columns = {
            "image": [{"bytes": picture(n), "path": None} for n in numbers],
            "label": [n % 2 for n in numbers],
            "caption": [f"caption {n}" for n in numbers],
        }
        rows = datasets.Dataset.from_dict(columns, features=features)
        rows.to_parquet(tmp_path / f"train-0000{shard}-of-00002.parquet", batch_size=2)
    found, labels = read("parquet", tmp_path / "train-*.parquet")
    assert labels == ("cat", "dog")
    assert [plain(record) for record in found] == [{"label": n % 2, "caption": f"caption {n}"} for n in range(10)]
    assert [seen(record) for record in found] == [[color_of(n)] for n in range(10)]
    assert found[6]["origin"] == f"{tmp_path}/train-00001-of-00002.parquet: row 1"


def test_text_is_lines_or_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n  two é \nthree")
    (tmp_path / "b.txt").write_text("four\r\n")
    found, _ = read("text", tmp_path)
    assert [record["text"] for record in found] == ["one", "two é", "three", "four"]
    assert [record["origin"] for record in found[1:]] == [
        f"{tmp_path}/a.txt:3",
        f"{tmp_path}/a.txt:4",
        f"{tmp_path}/b.txt:1",
    ]
    found, _ = read("documents", tmp_path)
    assert [record["text"] for record in found] == ["one\n\n  two é \nthree", "four"]


def test_pictures_may_stand_in_data_urls(tmp_path):
    path = tmp_path / "x.jsonl"
    url = "data:image/png;base64," + base64.b64encode(picture(3)).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    rows = [{"image": url}, {"messages": [{"role": "user", "content": [part]}]}, {"video": [url]}]
    odd = ["data:image/png;base64,é", "data:image/svg+xml,<svg/>", "http://here.net/" + "x" * 10**5, "x/" * 10**5]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *({"image": one} for one in odd)]))
    train, _, _ = open_format(DataConfig(name="json", path=str(path), test_path=str(path)))
    assert [seen(train[place]) for place in range(2)] == [[color_of(3)]] * 2
    assert train[2]["video"] == [picture(3)]
    for place, reason in enumerate(["not in base64", "not in base64", "is on another host", "a path is wanted"], 3):
        with pytest.raises(RecordError, match=reason) as caught:
            train[place]
        assert len(caught.value.reason) < 200


def test_a_link_to_what_it_is_in_multiplies_nothing(tmp_path):
    (tmp_path / "data" / "deeper").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("data/a.txt", "data/deeper/b.txt", "elsewhere/c.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "data" / "deeper" / "up").symlink_to("..")
    (tmp_path / "data" / "other").symlink_to(tmp_path / "elsewhere")
    found, _ = read("text", tmp_path / "data")
    assert [record["text"] for record in found] == ["data/a.txt", "data/deeper/b.txt", "elsewhere/c.txt"]


@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_around_an_array_is_the_array(tmp_path, indent):
    path = tmp_path / "x.json"
    around = {"note": {"data": [1]}, "data": [{"text": "ä"}, {"text": "]}, b"}], "end": "é"}
    path.write_text(json.dumps(around, indent=indent, ensure_ascii=False), encoding="utf-8")
    found, _ = read("json", path)
    assert [record["text"] for record in found] == ["ä", "]}, b"]
    lines = ("x.json:1 (", "x.json:1 (") if indent is None else ("x.json:8 (", "x.json:11 (")
    assert all(line in record["origin"] for record, line in zip(found, lines, strict=True))


@pytest.mark.parametrize(
    ("around", "number"),
    [
        ({"documents": [{"document": "a", "summary": "b"}] * 2}, 2),
        ({"questions": [{"question": "a?", "answer": "b"}] * 3, "licence": "none"}, 3),
        ({"textbook": [{"page": 1}] * 2, "videography": "nobody"}, 2),
        ({"data": [{"caption_en": "a"}] * 2, "sources": [{"url": "a"}]}, 2),
    ],
)
def test_an_object_around_records_may_call_them_what_it_likes(tmp_path, around, number):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(around, indent=1))
    assert len(read("json", path)[0]) == number


def test_an_object_that_is_a_record_is_none_around_others(tmp_path):
    path = tmp_path / "x.json"
    for fields, record in (
        ((), {"id": 1, "dialog": [{"from": "human", "value": "a"}]}),
        ((), {"conversations": [{"from": "human", "value": "a"}]}),
        (("conversations=dialog",), {"dialog": [{"from": "human", "value": "a"}]}),
        ((), {"captions_en": ["a"], "regions": [{"text": "a"}]}),
        ((), {"messages": [{"role": "user", "text": "a"}]}),
    ):
        path.write_text(json.dumps(record))
        (found,), _ = read("json", path, fields=fields)
        assert found.items() >= record.items()


def test_an_object_of_which_no_list_is_the_one_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": [{"text": "a"}], "b": [{"text": "b"}]}, indent=2))
    train, _, _ = open_format(DataConfig(name="json", path=str(path), test_path=str(path)))
    with pytest.raises(RecordError, match=r"x\.json: .*an array is wanted, and it is an object with 'a', 'b'"):
        train[0]


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name in ("x.txt", "x.jsonl"):
        (tmp_path / name).write_text('{"text": "é"}\n', encoding="utf-8-sig")
    write_tar(tmp_path / "x.tar", {"a.txt": "é".encode("utf-8-sig")})
    for name, kind in (("text", "txt"), ("documents", "txt"), ("json", "jsonl"), ("webdataset", "tar")):
        (record,), _ = read(name, tmp_path / f"x.{kind}")
        assert record["text"] == ("é" if kind != "txt" else '{"text": "é"}')


def test_fields_are_taken_from_where_records_have_them(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"meta": {"title": "t", "all": [{"v": 1}, {"v": 2}]}, "text": "x"}) + "\n")
    (record,), _ = read("json", path, fields=("caption=meta.title", "values=meta.all.v", "other=absent"))
    assert (record["caption"], record["values"], record["text"]) == ("t", [1, 2], "x")
    assert "other" not in record
    path.write_text(json.dumps({"pages": [{"file": "a.png"}, {"file": "b.png"}], "text": "x"}) + "\n")
    (record,), _ = read("json", path, fields=("images=pages.file",))
    assert record["images"] == [tmp_path / "a.png", tmp_path / "b.png"]
    with pytest.raises(UserError, match=r"config\.data\.fields: 'caption' is not of the form"):
        read("json", path, fields=("caption",))


def test_every_twentieth_is_held_out_where_nothing_else_is(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("".join(f"{n}\n" for n in range(50)))
    train, test, _ = open_format(DataConfig(name="text", path=str(path)))
    assert [test[place]["text"] for place in range(len(test))] == ["19", "39"]
    texts = [train[place]["text"] for place in range(len(train))]
    assert texts == [str(n) for n in range(50) if n not in (19, 39)]
    path.write_text("one\n")
    with pytest.raises(UserError, match=r"config\.data\.test_path: .* has 1 records, of which none is held out"):
        open_format(DataConfig(name="text", path=str(path)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "json"}, "config.data.path: 'json' is a format; name its files"),
        ({"name": "json", "path": "absent.jsonl"}, "config.data.path: there is no absent.jsonl; check the path"),
        ({"name": "folder", "path": "absent"}, "config.data.path: there is no directory absent; check the path"),
        ({"name": "webdataset", "path": "{0..1}/*.tar"}, r"config.data.path: there is no 0/\*.tar; check the path"),
        ({"name": "text", "path": ".", "image_root": "absent"}, "config.data.image_root: there is no directory absent"),
        (
            {"name": "text", "path": "x", "fields": ("a=b",)},
            "config.data.fields: records of 'text' have the same",
        ),
        ({"name": "text", "path": "."}, "config.data.path: . holds no .md or .text or .txt file; check the path"),
    ],
)
def test_paths_that_name_nothing_are_refused(tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^{message}"):
        open_format(DataConfig(**settings))


def test_a_large_file_is_looked_through_once(tmp_path, monkeypatch):
    from jaxfusion.data.sources import index, lines

    monkeypatch.setattr(index, "LARGE", 1)
    path = tmp_path / "x.txt"
    path.write_text("one\ntwo\n")
    assert list(lines.Lines(path)) == [b"one", b"two"]
    monkeypatch.setattr(lines, "_look_through", None)
    assert list(lines.Lines(path)) == [b"one", b"two"]
    (kept,) = (tmp_path / "cache" / "jaxfusion" / "indexes").iterdir()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "LARGE", 1)
    monkeypatch.setattr(index, "VERSION", index.VERSION + 1)  # what is kept has another form now
    assert list(lines.Lines(path)) == [b"one", b"two"]
    assert len(list(kept.parent.iterdir())) == 2
    kept.write_bytes(b"damaged")
    path.write_text("three\n")  # another file now
    assert list(lines.Lines(path)) == [b"three"]


def test_many_files_are_not_all_kept_open(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from jaxfusion.data.sources.files import KEPT_OPEN

    here = Path("/proc/self/fd")
    if not here.exists():
        pytest.skip("who has which files open is told by Linux")
    number = 2 * KEPT_OPEN
    for n in range(number):
        (tmp_path / f"{n:03}.txt").write_text(f"{n}\n")
    before = len(list(here.iterdir()))
    found, _ = read("text", tmp_path)
    assert [record["text"] for record in found] == [str(n) for n in range(number)]
    assert len(list(here.iterdir())) <= before + KEPT_OPEN
    train, _, _ = open_format(DataConfig(name="text", path=str(tmp_path), test_path=str(tmp_path)))
    with ThreadPoolExecutor(8) as threads:  # files are closed that another thread may be reading
        places = [*range(number)] * 4
        assert list(threads.map(lambda place: int(train[place]["text"]), places)) == places
    assert len(list(here.iterdir())) <= before + KEPT_OPEN


def test_files_that_cannot_be_read_any_more_are_bad_records(tmp_path):
    write_tar(tmp_path / "x.tar", {"a.txt": b"a"})
    (tmp_path / "x.txt").write_text("a\n")
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "x.json").write_text('[{"text": "a"}]')
    for name, kind in (("webdataset", "tar"), ("text", "txt"), ("json", "jsonl"), ("json", "json")):
        path = str(tmp_path / f"x.{kind}")
        train, _, _ = open_format(DataConfig(name=name, path=path, test_path=path))
        Path(path).unlink()
        with pytest.raises(RecordError, match=rf"x\.{kind}:.*: cannot be read \(No such file or directory\)"):
            train[0]


def test_bad_rows_are_named_and_others_read(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": \n["list"]\n\xff\n{"image": 3}\n{"text": "b"}')
    train, _, _ = open_format(DataConfig(name="json", path=str(path), test_path=str(path)))
    assert (train[0]["text"], train[5]["text"]) == ("a", "b")
    reasons = {1: "x.jsonl:2: not JSON", 2: "x.jsonl:3: a JSON object is wanted", 3: "x.jsonl:4: not JSON"}
    for place, reason in (reasons | {4: "x.jsonl:5: image: a path is wanted and it is 3"}).items():
        with pytest.raises(RecordError, match=reason):
            train[place]
    np.testing.assert_equal(len(train), 6)
