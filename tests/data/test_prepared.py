"""Prepared records hold what a visit may teach, in files that say when something is missing."""

import json
from dataclasses import asdict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxfusion.batch import TopK
from jaxfusion.data.messages import Image, Sample, answer, ask
from jaxfusion.data.packing import pack
from jaxfusion.data.prepared import (
    ABOUT,
    About,
    Prepared,
    Shard,
    columns_of,
    from_bytes,
    shards_of,
    to_bytes,
    variants_of,
    with_told,
)
from jaxfusion.data.tokenise import PER_POSITION, Layout, tokenise
from jaxfusion.data.visits import conversation
from jaxfusion.errors import UserError
from jaxfusion.text.trained import TrainedTokenizer

TOKENIZER = TrainedTokenizer.train(["x"], 262)
NEXT = Layout(tokens_per_image=2, fusion="place", predict="next")
PICTURE = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)


def test_a_full_disk_is_one_line(tmp_path):
    shard = Shard(tmp_path / "records.array_record", range(1))
    shard.path.with_name("records.array_record.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot be written \(.*No space left.*\); make room there"):
        shard.write([b"a"])
    assert not shard.path.exists()


def samples(*texts: str, group: str = "en", label: int | None = None) -> list[Sample]:
    return [
        Sample(f"7-{i}", group, (ask(Image(PICTURE), text), answer(text.upper())), label)
        for i, text in enumerate(texts)
    ]


def columns(found: list[Sample], layout: Layout = NEXT, most: int = 8):
    return columns_of(found, TOKENIZER, layout, most, np.random.default_rng(0))


def read_back(found, **settings):
    return from_bytes(to_bytes(columns(found, **settings)))


def text_of(segment) -> str:
    return TOKENIZER.decode([i for i in segment.tokens if i != TOKENIZER.eos_id])


def test_all_orders_of_a_short_conversation_are_there_whole_and_once():
    a, b, c = found = samples("a", "b", "c")
    record = read_back(found)
    expected = [
        tokenise(conversation(order), TOKENIZER, NEXT)
        for order in ([a, b, c], [a, c, b], [b, a, c], [b, c, a], [c, a, b], [c, b, a])
    ]
    for segment, wanted in zip(record.variants, expected, strict=True):
        for ours, theirs in ((getattr(segment, name), getattr(wanted, name)) for name in PER_POSITION):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
    assert record.names == ["7-0", "7-0", "7-1", "7-1", "7-2", "7-2"]
    np.testing.assert_array_equal(record.images, PICTURE[None])


def test_of_a_long_conversation_there_are_so_many_different_orders():
    record = read_back(samples(*"abcdef"), most=10)
    assert len({text_of(segment) for segment in record.variants}) == len(record.variants) == 10


def test_of_several_answers_each_is_there_or_so_many_of_them():
    captions = Sample("7", "en", (ask(Image(PICTURE)), answer("a")), answers=("a", "b", "a"))
    assert [text_of(segment) for segment in read_back([captions]).variants] == ["a", "b", "a"]
    asked = [Sample(q, "en", (ask(Image(PICTURE), q), answer("a")), answers=("a", "b")) for q in "qr"]
    everything = {f"q{x}r{y}" for x in "ab" for y in "ab"} | {f"r{x}q{y}" for x in "ab" for y in "ab"}
    assert {text_of(segment) for segment in read_back(asked).variants} == everything
    some = [text_of(segment) for segment in read_back(asked, most=5).variants]
    assert len(set(some)) == len(some) == 5 and set(some) < everything


def test_a_visit_takes_groups_alike_and_the_picture_with_it():
    found = samples("a", "b") + samples("q", group="zh")
    record = read_back(found)
    assert [text_of(segment) for segment in record.variants] == ["aAbB", "bBaA", "qQ"]
    rng = np.random.default_rng(0)
    drawn = [record.draw(rng) for _ in range(400)]
    counts = {text: sum(text_of(segment) == text for _, segment in drawn) for text in ("aAbB", "bBaA", "qQ")}
    assert 160 < counts["qQ"] < 240 and min(counts["aAbB"], counts["bBaA"]) > 60
    np.testing.assert_array_equal(drawn[0][1].images[0], PICTURE)


def test_a_classifier_learns_each_sample_by_itself():
    record = read_back(samples("a", "b", label=3), layout=Layout(tokens_per_image=2, fusion="place", predict="class"))
    assert [segment.targets[-1] for segment in record.variants] == [3, 3]
    assert record.groups.tolist() == [0, 1]


def test_features_in_16_bits_and_records_without_a_picture_come_back():
    features = np.random.default_rng(0).normal(size=(1, 4, 6)).astype(ml_dtypes.bfloat16)
    again = from_bytes(to_bytes(columns(samples("a")) | {"images": features})).images
    assert again.dtype == features.dtype
    np.testing.assert_array_equal(again, features)
    text = Sample("1", "en", (ask("a"), answer("b")))
    assert read_back([text]).draw(np.random.default_rng(0))[1].images == []


def write(directory: Path, records: int = 5, **changes) -> Path:
    about = About("pixels", records, {}, variants=8, complete=True)
    (directory / ABOUT).write_text(json.dumps(asdict(about) | changes))
    for shard in shards_of(directory, 5, each=2):
        shard.write(to_bytes(columns(samples(str(place)))) for place in shard.places)
    return directory


def test_shards_are_read_by_the_records_numbers(tmp_path):
    prepared = Prepared(write(tmp_path))
    assert len(prepared) == 5 and len(list(tmp_path.glob("*.array_record"))) == 3
    assert [text_of(prepared[place].variants[0]) for place in range(5)] == ["00", "11", "22", "33", "44"]


def test_a_shard_that_is_not_finished_is_not_there(tmp_path):
    def interrupted():
        yield to_bytes(columns(samples("a")))
        raise KeyboardInterrupt

    shard = Shard(tmp_path / "records-00000-of-00001.array_record", range(2))
    with pytest.raises(KeyboardInterrupt):
        shard.write(interrupted())
    assert list(tmp_path.glob("*.array_record")) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"complete": False}, r"is not finished; go on with the --mode prepare that began it"),
        ({"records": 9}, r"holds 5 records and prepared.json speaks of 9"),
        ({"colour": "red"}, r"prepared.json: broken .*colour"),
    ],
)
def test_unfinished_and_broken_directories_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        Prepared(write(tmp_path, **changes))


def test_a_directory_of_something_else_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^config\.data\.prepared: there is no .*prepared\.json; prepare the data by"):
        Prepared(tmp_path)


def test_what_a_teacher_says_comes_back_in_its_place_and_only_where_it_is_wanted():
    plain = columns(samples("a", "bc"))
    counts = [int(segment.loss_weights.sum()) for segment in variants_of(plain)]
    rng = np.random.default_rng(0)
    told = [
        TopK(
            rng.permuted(np.tile(np.arange(262, dtype=np.int32), (n, 1)), axis=1)[:, :3],
            rng.normal(size=(n, 3)).astype(np.float32),
            rng.normal(size=n).astype(np.float32),
        )
        for n in counts
    ]
    content = to_bytes(with_told(plain, told, num_classes=262))
    assert all(variant.told is None for variant in from_bytes(content).variants)
    record = from_bytes(content, told=True)
    assert record.variants[0].told.ids.dtype == np.uint16
    for variant, said in zip(record.variants, told, strict=True):
        for ours, theirs in zip(variant.told, said, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    _, segment = record.draw(rng)
    other = record.variants[0]
    batch = pack([[other, segment], [segment]], 32, 2)
    for row, at, given in ((0, 0, other), (0, len(other.tokens), segment), (1, 0, segment)):
        where = at + np.flatnonzero(given.loss_weights)
        assert (batch.loss_weights[row, where] > 0).all()
        for grid, said in zip(batch.told, given.told, strict=True):
            np.testing.assert_array_equal(grid[row, where], said)
    assert with_told(plain, told, num_classes=1 << 17)["told_ids"].dtype == np.int32
