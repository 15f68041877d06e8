"""Which samples share a row: best fit over two budgets at once, positions and image slots.

Every sample has a size, (positions, images). All here are pure functions of sizes.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Room(NamedTuple):
    """What a row can hold."""

    positions: int
    images: int


def fill_row(sizes: Int[np.ndarray, "n 2"], room: Room) -> list[int]:
    """Which of the waiting samples make the next row: the first, then, one by one, the one that leaves the least room.

    Room is measured as the sum of both budgets' squared free shares, so that a row that is short of slots takes text
    and one that is short of text takes images (the norm-based greedy method of Panigrahy et al. 2011, "Heuristics for
    vector bin packing"). The first always goes, so none waits for ever. Each size must fit an empty row.
    """
    scale = 1 / np.maximum(room, 1)
    chosen, left = [0], np.array(room) - sizes[0]
    waiting = np.ones(len(sizes), bool)
    waiting[0] = False
    while True:
        rest = left - sizes
        fits = waiting & (rest >= 0).all(axis=1)
        if not fits.any():
            return chosen
        best = int(np.argmin(np.where(fits, ((rest * scale) ** 2).sum(axis=1), np.inf)))
        chosen.append(best)
        waiting[best] = False
        left = rest[best]


def rows_of(sizes: Int[np.ndarray, "n 2"], room: Room, num_waiting: int) -> Iterator[list[int]]:
    """All of a stream's samples in rows, by their places in it: each row is filled from `num_waiting` at a time."""
    waiting = list(range(min(num_waiting, len(sizes))))
    following = len(waiting)
    while waiting:
        row = [waiting[place] for place in fill_row(sizes[waiting], room)]
        arrived = range(following, min(following + len(row), len(sizes)))
        waiting = [place for place in waiting if place not in row] + list(arrived)
        following += len(arrived)
        yield row


def images_per_row(sizes: Int[np.ndarray, "n 2"], row_length: int, num_waiting: int) -> int:
    """The number of image slots with which rows fill up best, by trial.

    Tried are the numbers about the samples' mean, as many images to positions as they have; the best has the largest
    product of the share of positions and the share of slots that are used. 0 where no sample has an image.
    """
    lengths, images = sizes.sum(axis=0)
    if images == 0:
        return 0
    even, least = math.floor(row_length * images / lengths), int(sizes[:, 1].max())

    def used(slots: int) -> float:
        rows = sum(1 for _ in rows_of(sizes, Room(row_length, slots), num_waiting))
        return (lengths / (rows * row_length)) * (images / (rows * slots))

    return max(sorted({max(least, even + more) for more in (0, 1, 2)}), key=used)
