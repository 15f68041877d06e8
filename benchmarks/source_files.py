"""The same pictures and captions written in each format that `config.data.name` knows, to measure how they are read."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Records in a tar shard and in a row group, as far as there are as many.
SHARD = 32

Records = Sequence[dict[str, Any]]


def write(name: str, records: Records, folder: Path) -> dict[str, Any]:
    """Writes a format's files to a new folder; returns the settings of `config.data` that read them."""
    folder.mkdir()
    return {"name": name} | WRITERS[name](records, folder)


def _pictures(records: Records, folder: Path, name: Callable[[int], str] = "{}.jpg".format) -> list[str]:
    names = [name(number) for number in range(len(records))]
    for file, record in zip(names, records, strict=True):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(record["image"])
    return names


def _json(records: Records, folder: Path) -> dict[str, Any]:
    rows = [
        {
            "id": str(number),
            "image": file,
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is this?"},
                {"from": "gpt", "value": record["caption_en"]},
            ],
        }
        for number, (file, record) in enumerate(zip(_pictures(records, folder), records, strict=True))
    ]
    (folder / "records.json").write_text(json.dumps(rows))
    return {"path": str(folder / "records.json"), "task": "dialogue"}


def _coco(records: Records, folder: Path) -> dict[str, Any]:
    names = _pictures(records, folder)
    images = [{"id": number, "file_name": file} for number, file in enumerate(names)]
    annotations = [{"id": n, "image_id": n, "caption": record["caption_en"]} for n, record in enumerate(records)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return {"path": str(folder / "captions.json"), "task": "caption"}


def _vqa(records: Records, folder: Path) -> dict[str, Any]:
    _pictures(records, folder, "COCO_val2014_{:012}.jpg".format)
    ids = [{"image_id": number, "question_id": number} for number in range(len(records))]
    asked = [place | {"question": "What is this?"} for place in ids]
    given = [
        place | {"answers": [{"answer": record["caption_en"], "answer_id": i} for i in range(10)]}
        for place, record in zip(ids, records, strict=True)
    ]
    (folder / "questions.json").write_text(json.dumps({"data_subtype": "val2014", "questions": asked}))
    (folder / "annotations.json").write_text(json.dumps({"data_subtype": "val2014", "annotations": given}))
    return {"path": f"{folder}/{{questions,annotations}}.json", "task": "question_answer"}


def _folder(records: Records, folder: Path) -> dict[str, Any]:
    _pictures(records, folder, lambda number: f"class{number % 2}/{number}.jpg")
    return {"path": str(folder), "task": "classify"}


def _webdataset(records: Records, folder: Path) -> dict[str, Any]:
    for start in range(0, len(records), SHARD):
        with tarfile.open(folder / f"{start // SHARD:03}.tar", "w") as archive:
            for number, record in enumerate(records[start : start + SHARD], start):
                for ending, content in (("jpg", record["image"]), ("txt", record["caption_en"].encode())):
                    info = tarfile.TarInfo(f"{number:06}.{ending}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return {"path": str(folder), "task": "caption"}


def _parquet(records: Records, folder: Path) -> dict[str, Any]:
    import pyarrow
    from pyarrow import parquet

    columns = {
        "image": [{"bytes": record["image"], "path": None} for record in records],
        "text": [record["caption_en"] for record in records],
    }
    features = {"image": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}}
    table = pyarrow.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    parquet.write_table(table, folder / "train-00000-of-00001.parquet", row_group_size=SHARD)
    return {"path": str(folder), "task": "caption"}


def _text(records: Records, folder: Path) -> dict[str, Any]:
    (folder / "lines.txt").write_text("".join(f"{record['caption_en']}\n" for record in records))
    return {"path": str(folder / "lines.txt"), "task": "text"}


WRITERS: dict[str, Callable[[Records, Path], dict[str, Any]]] = {
    "json": _json,
    "coco": _coco,
    "vqa": _vqa,
    "folder": _folder,
    "webdataset": _webdataset,
    "parquet": _parquet,
    "text": _text,
}
