"""The training iterator: endless, shuffled anew each epoch, and able to say and find its exact place."""

import json
from dataclasses import replace

import grain
import jax
import numpy as np
import pytest

from jaxfusion.config import Config, from_dict
from jaxfusion.config.run import DataConfig, OtherDataConfig
from jaxfusion.data.best_fit import Room
from jaxfusion.data.dataset import check_lookup, open_dataset
from jaxfusion.data.loader import Reader, names_in_batch, settle_images_per_row, train_iterator
from jaxfusion.data.rows import BestFitRows
from jaxfusion.data.tokenise import Segment
from jaxfusion.errors import UserError
from jaxfusion.text.trained import TrainedTokenizer


@pytest.fixture(scope="module")
def parts(small_data):
    vision = {"kind": "vgg", "image_size": 24, "stage_depths": [1], "stage_widths": [4]}
    settings = {
        "model": {"vision": vision, "projector": {"kind": "linear", "pool": "mean"}},
        "data": {"task": "question_answer", "languages": ["en", "zh"], "data_dir": str(small_data), "row_length": 640},
    }
    config = from_dict(Config, settings)
    dataset = open_dataset(config.data)
    return dataset, Reader(config.data, config.model, dataset.labels), TrainedTokenizer.train(["x"], 262)


@pytest.fixture(scope="module", params=["none", "best-fit"])
def packings(request, parts):
    return with_packing(parts, request.param)


def with_packing(parts, packing, **settings):
    dataset, reader, tokenizer = parts
    settings = {
        "images_per_row": 1 if packing == "none" else 5,
        "row_length": 640 if packing == "none" else 1500,
    } | settings
    return dataset, replace(reader, data=replace(reader.data, packing=packing, **settings)), tokenizer


def iterator(parts, seed=0):
    dataset, reader, tokenizer = parts
    return train_iterator(dataset.train, reader, tokenizer, batch_size=4, seed=seed)


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_it_goes_on_exactly_where_its_state_says(packings):
    first = iterator(packings)
    for _ in range(3):
        next(first)
    state = json.dumps(first.get_state())
    more = 8 if packings[1].data.packing == "none" else 2  # well into the next epoch
    expected = [next(first) for _ in range(more)]
    again = iterator(packings)
    again.set_state(json.loads(state))
    assert all(equal(next(again), batch) for batch in expected)
    assert again.get_state() == first.get_state()
    assert len(state) < 2000


def test_the_samples_of_a_batch_can_be_named_afterwards(packings):
    dataset, reader, tokenizer = packings
    made = iterator(packings)
    for _ in range(3):
        before = json.loads(json.dumps(made.get_state()))
        batch = next(made)
    names = names_in_batch(dataset.train, reader, tokenizer, 4, 0, before)
    assert len(names) == int((np.diff(batch.segment_ids, axis=1, prepend=0) > 0).sum())
    samples = [sample for place in range(len(dataset.train)) for sample in reader.read(dataset.train, place)]
    asked = {sample.id: set(tokenizer.encode(sample.messages[0].text)) for sample in samples}
    first = set(np.asarray(batch.tokens[0][batch.segment_ids[0] == 1]).tolist())
    assert asked[names[0]] <= first
    assert names != names_in_batch(dataset.train, reader, tokenizer, 4, 0, made.get_state())


def test_worker_processes_go_on_exactly_too(parts):
    dataset, reader, tokenizer = with_packing(parts, "best-fit")
    parts = dataset, replace(reader, data=replace(reader.data, num_workers=1)), tokenizer
    first, again = iterator(parts), iterator(parts)
    next(first)
    again.set_state(first.get_state())
    assert equal(next(again), next(first))
    for made in (first, again):
        made.close()


def test_several_workers_with_packing_are_refused(parts):
    dataset, reader, tokenizer = with_packing(parts, "best-fit")
    with pytest.raises(UserError, match=r"^config\.data\.num_workers: with best-fit packing there can be 1 at most"):
        iterator((dataset, replace(reader, data=replace(reader.data, num_workers=2)), tokenizer))


def test_seeds_and_epochs_have_orders_of_their_own(parts):
    dataset, *_ = parts
    one, same, other = iterator(parts), iterator(parts), iterator(parts, seed=1)
    first = next(one)
    assert equal(first, next(same))
    assert not equal(first, next(other))
    rest = [next(one) for _ in range(len(dataset.train) // 4)]
    assert not equal(first, rest[-1])


def test_rows_hold_one_dialogue_on_one_picture(parts):
    batch = next(iterator(parts))
    assert not batch.packed
    assert batch.images.shape == (4, 1, 24, 24, 3)
    _, _, tokenizer = parts
    for tokens in batch.tokens:
        assert (tokens == tokenizer.sep_id).sum() in (4, 6, 8, 10)  # two questions a digit, and two on all of them
        assert (tokens == tokenizer.image_id).sum() == 1


def test_packed_rows_hold_several_dialogues_each_with_its_picture(parts):
    batches = iterator(with_packing(parts, "best-fit"))
    for batch in (next(batches) for _ in range(3)):
        assert batch.packed
        assert batch.tokens.shape == (4, 1500)
        assert batch.images.shape == (4, 5, 24, 24, 3)
        for segment_ids, image_ids in zip(batch.segment_ids, batch.image_segment_ids, strict=True):
            number = segment_ids.max()
            assert number >= 2
            assert image_ids.tolist() == [*range(1, number + 1)] + [0] * (5 - number)


def numbered(length):
    """Samples of many sizes, each of which says its number."""

    def sample(number):
        rng = np.random.default_rng(number)
        size, images = int(rng.integers(3, 40)), int(rng.integers(0, 3))
        column = np.full(size, number, np.int32)
        pictures = [np.full((1, 1, 3), number % 256, np.uint8)] * images
        return Segment(column, column, np.ones(size, np.float32), np.ones(size, bool), np.full(size, -1), pictures)

    return grain.MapDataset.range(length).seed(0).shuffle().map(sample)


@pytest.mark.parametrize("epochs", [1, 3])
def test_every_visit_of_a_record_is_in_exactly_one_row(epochs):
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    rows = list(BestFitRows(numbered(50).repeat(epochs), reading, Room(80, 4), num_waiting=16))
    seen = [int(segment.tokens[0]) for row in rows for segment in row]
    assert sorted(seen) == sorted([*range(50)] * epochs)
    assert seen != sorted(seen)


def test_rows_go_on_from_every_place_and_read_again_what_waits_alone():
    read = []
    segments = numbered(60).map(lambda segment: read.append(int(segment.tokens[0])) or segment)
    dataset = BestFitRows(segments, grain.ReadOptions(num_threads=0, prefetch_buffer_size=0), Room(80, 4), 10)
    whole, states, rows = iter(dataset), [], []
    while True:
        states.append(json.loads(json.dumps(whole.get_state())))
        try:
            rows.append(next(whole))
        except StopIteration:
            break
    for place in range(len(states)):
        read.clear()
        rest = iter(dataset)
        rest.set_state(states[place])
        assert len(read) <= 10
        for expected, row in zip(rows[place:], rest, strict=True):
            assert all(equal(a, b) for a, b in zip(expected, row, strict=True))


def test_image_slots_are_settled_by_a_look(parts):
    def settled(parts):
        dataset, reader, tokenizer = parts
        return settle_images_per_row(dataset.train, reader, tokenizer, seed=0)

    assert settled(with_packing(parts, "none", images_per_row=0)) == 1
    packed = settled(with_packing(parts, "best-fit", images_per_row=0))
    assert packed in (3, 4, 5, 6)
    text = with_packing(parts, "none", images_per_row=0, modalities=("text",))
    assert settled(text) == 0


@pytest.mark.parametrize("packing", ["none", "best-fit"])
def test_a_sample_that_no_row_can_hold_is_named(parts, packing):
    with pytest.raises(
        UserError, match=r"^config\.data\.row_length: sample \d+-\d+ of digit_scenes needs \d+ positions"
    ):
        next(iterator(with_packing(parts, packing, row_length=100)))


def test_unknown_and_unprepared_data_sets_are_named(tmp_path):
    def data(**settings):
        return from_dict(Config, {"data": {"data_dir": str(tmp_path)} | settings}).data

    with pytest.raises(UserError, match=r"config\.data\.name: there is no data set 'digit_scens'; did you mean"):
        open_dataset(data(name="digit_scens"))
    with pytest.raises(UserError, match=r"config\.data\.name: mnist is not prepared in .*; run `tfds build mnist"):
        open_dataset(data(name="mnist"))


def test_a_lookup_table_has_no_place_for_files_of_pictures():
    lookup = from_dict(Config, {"model": {"vision": "lookup"}}).model
    check_lookup(DataConfig(test_split="train"), lookup)
    with pytest.raises(UserError, match=r"^config\.data\.name: a lookup table knows no images of files \(json\)"):
        check_lookup(DataConfig(name="json", path="x.json", test_split="train"), lookup)
    others = (OtherDataConfig(name="coco", path="x.json"),)
    with pytest.raises(UserError, match=r"^config\.data\.others\[0\]\.name: a lookup table"):
        check_lookup(DataConfig(others=others, test_split="train"), lookup)
    others = (OtherDataConfig(name="digit_scenes"),)
    with pytest.raises(UserError, match=r"^config\.data\.others: a lookup table knows images by their numbers"):
        check_lookup(DataConfig(others=others, test_split="train"), lookup)
