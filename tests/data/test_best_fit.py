"""Which samples share a row: against what must hold of any packing, and against the best there can be."""

import numpy as np
import pytest

from jaxfusion.data.best_fit import Room, fill_row, images_per_row, rows_of


def random_sizes(seed, number=600):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 4, number)
    return np.stack([rng.integers(3, 60, number) + 8 * images, images], axis=1)


@pytest.mark.parametrize("seed", range(3))
def test_every_sample_is_in_one_row_and_no_row_holds_too_much(seed):
    sizes, room = random_sizes(seed), Room(200, 6)
    rows = list(rows_of(sizes, room, num_waiting=50))
    assert sorted(place for row in rows for place in row) == list(range(len(sizes)))
    assert all((sizes[row].sum(axis=0) <= room).all() for row in rows)


def test_the_first_sample_goes_whatever_fits_better():
    sizes = np.array([[1, 0], [10, 2], [9, 2], [8, 2]])
    assert fill_row(sizes, Room(10, 2)) == [0, 2]
    assert fill_row(sizes[1:], Room(10, 2)) == [0]


def test_a_row_short_of_slots_takes_text_and_one_short_of_text_takes_images():
    sizes = np.array([[60, 4], [20, 0], [20, 4]])
    assert fill_row(sizes, Room(100, 4)) == [0, 1]
    assert fill_row(sizes, Room(100, 8)) == [0, 2, 1]


def test_rows_are_as_full_at_the_end_of_the_stream_as_at_its_beginning_and_samples_as_long():
    sizes = random_sizes(3, number=3000)
    room = Room(400, images_per_row(sizes, 400, num_waiting=128))
    rows = list(rows_of(sizes, room, num_waiting=128))
    fifth = len(rows) // 5
    parts = [rows[start : start + fifth] for start in range(0, 4 * fifth, fifth)]
    filled = [np.mean([sizes[row].sum(axis=0) / room for row in part], axis=0) for part in parts]
    assert np.min(filled) > 0.9
    assert np.ptp(filled, axis=0).max() < 0.03
    lengths = [np.mean([sizes[place, 0] for row in part for place in row]) for part in parts]
    assert np.ptp(lengths) < 0.15 * np.mean(lengths)  # a packer that sorts has several times as much


def test_image_slots_are_chosen_for_the_fullest_rows():
    sizes, room_for = random_sizes(4), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    chosen = images_per_row(sizes, 200, num_waiting=50)

    def used(slots):
        rows = list(rows_of(sizes, Room(200, slots), 50))
        positions, images = sizes.sum(axis=0)
        return positions / (200 * len(rows)) * images / (slots * len(rows))

    assert used(chosen) == max(used(slots) for slots in room_for if slots >= sizes[:, 1].max())


def test_text_alone_has_no_slots_and_single_pictures_in_short_rows_one():
    assert images_per_row(np.array([[5, 0], [9, 0]]), 10, 50) == 0
    assert images_per_row(np.array([[30, 1]] * 20 + [[22, 1]] * 5), 48, 50) == 1


def test_no_slots_are_fewer_than_one_sample_needs():
    assert images_per_row(np.array([[30, 0]] * 50 + [[30, 5]]), 60, 50) == 5
