"""In which order training visits the places of a data set: endless, anew each epoch, and told by the seed alone."""

import sys
import threading
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from jaxfusion.data.sources.joined import Blocks
from jaxfusion.data.sources.mixture import Mixture

# Records whose order is kept as a list; of more Grain computes each place, which takes longer, the longer the fewer.
LISTED = 2**24


def visits_of(source: Sequence[Any], seed: int) -> grain.MapDataset:
    """The places of a source's records, all of them each epoch; of a mixture's parts each by its share.

    Files that are read by blocks are visited by as many blocks at a time as can be held: the blocks in random order,
    and the records of these among each other.
    """
    number = len(source)
    if isinstance(source, Mixture):
        orders = [
            visits_of(part, seed + number).map(source.start(number).__add__) for number, part in enumerate(source.parts)
        ]
        return grain.MapDataset.mix(orders, source.shares.tolist()).seed(seed)
    if not hasattr(source, "blocks") or (source.blocks is None and number > LISTED):
        return grain.MapDataset.range(number).seed(seed).shuffle().repeat()
    return Windows(number, source.blocks or Blocks(np.zeros(1, np.int64), 1), seed).seed(seed)


class Windows(grain.MapDataset):
    """Places by windows of blocks. number: of places."""

    def __init__(self, number: int, blocks: Blocks, seed: int) -> None:
        super().__init__()
        self._number, self._seed, self._window = number, seed, blocks.window
        self._bounds = np.append(blocks.starts, number)
        self._start()

    def _start(self) -> None:
        self._orders: dict[int, np.ndarray] = {}
        self._making = threading.Lock()

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in ("_orders", "_making")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._start()

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        epoch, place = divmod(index, self._number)
        return int(self._order(epoch)[place])

    def _order(self, epoch: int) -> Int[np.ndarray, " n"]:
        with self._making:
            if epoch not in self._orders:
                for old in sorted(self._orders)[:-1]:  # readers ahead may be in the next epoch already
                    del self._orders[old]
                self._orders[epoch] = self._new_order(np.random.default_rng((self._seed, epoch)))
            return self._orders[epoch]

    def _new_order(self, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
        blocks = rng.permutation(len(self._bounds) - 1)
        windows = []
        for start in range(0, len(blocks), self._window):
            ranges = [np.arange(self._bounds[b], self._bounds[b + 1]) for b in blocks[start : start + self._window]]
            windows.append(rng.permutation(np.concatenate(ranges)))
        return np.concatenate(windows)
