"""200 files of each format, damaged at random: what was not touched is read as before, and nothing else happens."""

import io
import json
import re
import tarfile
from typing import NamedTuple

import numpy as np
import pytest

from jaxfusion.config.run import DataConfig
from jaxfusion.data.sources import open_format
from jaxfusion.errors import RecordError, UserError
from tests.data.sources.conftest import picture, seen
from tests.data.sources.test_formats import write_captions, write_vqa

FILES = 200


class Damaged(NamedTuple):
    """touched: of the content before; what is beyond the second place may be anywhere, or gone."""

    content: bytes
    touched: tuple[int, int]


def damage(content: bytes, rng: np.random.Generator) -> Damaged:
    start = int(rng.integers(len(content)))
    end = min(start + int(rng.choice([1, 1, 4, 40, 400])), len(content))
    noise = rng.bytes(end - start)
    match rng.integers(5):
        case 0:
            return Damaged(content[:start] + noise + content[end:], (start, end))
        case 1:
            return Damaged(content[:start] + bytes(end - start) + content[end:], (start, end))
        case 2:
            return Damaged(content[:start] + content[end:], (start, end))
        case 3:
            return Damaged(content[:start] + noise + content[start:], (start, start))
        case _:
            return Damaged(content[:start], (start, len(content)))


def records_of(name, path):
    """What is read of a file, and how many of its records are bad."""
    try:
        source, _, _ = open_format(DataConfig(name=name, path=str(path), test_path=str(path)))
    except UserError as error:
        assert "\n" not in str(error)
        return [], 1
    good, bad = [], 0
    for place in range(len(source)):
        try:
            good.append(told(source[place]))
        except RecordError as error:
            assert path.name in error.where or "v2_" in error.where
            assert "\n" not in str(error)
            bad += 1
    return good, bad


def told(record):
    """A record as something to compare with: its fields, and its pictures' colours where they can be read."""
    try:
        pictures = seen(record)
    except UserError:
        pictures = "damaged"
    fields = {name: value for name, value in record.items() if name not in ("images", "origin")}
    return json.dumps([fields, pictures], sort_keys=True, default=str)


def check(name, path, spans, seed, moved=True, damaged=None):
    """spans: of each record's bytes in the file, in the order of the records.

    moved: whether records are found where bytes before them were taken out or put in.
    """
    damaged = damaged or path
    content = damaged.read_bytes()
    whole, _ = records_of(name, path)
    assert len(whole) == len(spans)
    rng, lost = np.random.default_rng(seed), 0
    for _ in range(FILES):
        hurt = damage(content, rng)
        damaged.write_bytes(hurt.content)
        good, bad = records_of(name, path)
        start, end = hurt.touched
        kept_size = len(hurt.content) == len(content) or end == len(content)
        for record, parts in zip(whole, spans, strict=True):
            untouched = all(b <= start or (a >= end and (moved or kept_size)) for a, b in parts)
            assert record in good or not untouched, hurt.touched
        lost += bad > 0
    damaged.write_bytes(content)
    assert lost > FILES / 4  # or nothing was tried


def test_lines(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = [{"id": n, "text": f"line {n} é"} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ends = np.cumsum([len(line) for line in path.read_bytes().splitlines(keepends=True)]).tolist()
    spans = [[(start - 1, end + 1)] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    check("json", path, spans, seed=0)


def items(content: bytes, pattern: str) -> list[tuple[int, int]]:
    """Spans of a file's objects, with the punctuation around them."""
    return [(match.start() - 4, match.end() + 4) for match in re.finditer(pattern.encode(), content, re.DOTALL)]


@pytest.mark.parametrize("indent", [None, 1])
def test_arrays(tmp_path, indent):
    path = tmp_path / "x.json"
    turns = [{"from": "human", "value": "a [b] {c}"}, {"from": "gpt", "value": 'd "e" \\ f'}]
    path.write_text(json.dumps([{"id": n, "conversations": turns} for n in range(12)], indent=indent))
    spans = items(path.read_bytes(), r'\{\s*"id": .*?\]\s*\}')
    check("json", path, [[span] for span in spans], seed=1)


def test_captions(tmp_path):
    path = tmp_path / "captions.json"
    write_captions(path, number=6)
    content = path.read_bytes()
    lists = [(match.start(), match.end()) for match in re.finditer(rb'"(images|annotations)": \[', content)]
    images = items(content, r'\{"id": \d+, "file_name.*?\}')
    captions = items(content, r'\{"id": \d+, "image_id.*?\}')
    check("coco", path, [[*lists, images[n], *captions[n::6]] for n in range(6)], seed=2)


@pytest.mark.parametrize("kind", ["questions", "annotations"])
def test_questions(tmp_path, kind):
    write_vqa(tmp_path, number=4)
    path = tmp_path / f"v2_{kind}.json"
    content = path.read_bytes()
    head = re.search(rf'"data_subtype".*?"{kind}": \['.encode(), content).span()
    end = r"\]\}" if kind == "annotations" else r"\}"
    found = items(content, r'\{"image_id": \d+, ' + f".*?{end}")
    check("vqa", tmp_path / "v2_*.json", [[head, *found[2 * n : 2 * n + 2]] for n in range(4)], 3, damaged=path)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_tars(tmp_path, format):
    path, spans = tmp_path / "x.tar", []
    with tarfile.open(path, "w", format=format) as archive:
        for n in range(8):
            start = archive.offset
            for ending, content in (("png", picture(n)), ("txt", f"caption {n}".encode())):
                info = tarfile.TarInfo(f"{n}.{ending}")
                info.size, info.mtime = len(content), 0.5  # which a pax header has to tell
                archive.addfile(info, io.BytesIO(content))
            spans.append([(start, archive.offset)])
    # Taking bytes out moves what is behind off the blocks that a tar is made of.
    check("webdataset", path, spans, seed=4, moved=False)


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    columns = {
        "image": [{"bytes": picture(n), "path": None} for n in range(12)],
        "caption": [f"c {n}" for n in range(12)],
    }
    parquet.write_table(pyarrow.table(columns), path, row_group_size=3, write_page_checksum=True)
    spans, metadata = [], parquet.ParquetFile(path).metadata
    size, footer = path.stat().st_size, 8 + int.from_bytes(path.read_bytes()[-8:-4], "little")
    for group in range(4):
        chunks = [metadata.row_group(group).column(n) for n in range(3)]
        starts = [min(c.dictionary_page_offset or c.data_page_offset, c.data_page_offset) for c in chunks]
        ends = [start + c.total_compressed_size for start, c in zip(starts, chunks, strict=True)]
        spans += [[(0, 4), (size - footer, size), *zip(starts, ends, strict=True)]] * 3
    check("parquet", path, spans, seed=5, moved=False)


def test_texts(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("".join(f"line {n} é\n" for n in range(20)))
    ends = np.cumsum([len(line) for line in path.read_bytes().splitlines(keepends=True)]).tolist()
    spans = [[(start - 1, end + 1)] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    whole, _ = records_of("text", path)
    assert len(whole) == 20
    content, rng, lost = path.read_bytes(), np.random.default_rng(6), 0
    for _ in range(FILES):
        hurt = damage(content, rng)
        path.write_bytes(hurt.content)
        good, bad = records_of("text", path)
        for record, ((a, b),) in zip(whole, spans, strict=True):
            assert record in good or (a < hurt.touched[1] and b > hurt.touched[0])
        lost += bad
    assert lost  # bytes that are no UTF-8; whatever else a line says is a text


def test_pictures_in_folders(tmp_path):
    for n in range(4):
        (tmp_path / "class").mkdir(exist_ok=True)
        (tmp_path / "class" / f"{n}.png").write_bytes(picture(n))
    rng, lost = np.random.default_rng(7), 0
    whole, _ = records_of("folder", tmp_path)
    for n in range(FILES):
        path = tmp_path / "class" / f"{n % 4}.png"
        content = path.read_bytes()
        path.write_bytes(damage(content, rng).content)
        good, bad = records_of("folder", tmp_path)
        assert not bad
        assert all(record in good for place, record in enumerate(whole) if place != n % 4)
        lost += "damaged" in good[n % 4]
        path.write_bytes(content)
    assert lost > FILES / 4
