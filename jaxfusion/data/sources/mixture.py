"""Several data sets to be trained on together, each with its share of the visits."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxfusion.config.run import DataConfig, OtherDataConfig
from jaxfusion.data.sources.joined import Joined, Record
from jaxfusion.errors import UserError


class Mixture(Joined):
    """The records of several data sets, one set after the other. shares: of the visits, one in all."""

    def __init__(self, parts: Sequence[Sequence[Record]], shares: Float[np.ndarray, " n"]) -> None:
        super().__init__(parts)
        self.shares = shares

    def start(self, number: int) -> int:
        """The first place of a data set."""
        return int(self._ends[number]) - len(self.parts[number])

    def part_of(self, place: int) -> int:
        """The number of the data set that a place is of."""
        return int(np.searchsorted(self._ends, place, side="right"))


def shares_of(
    configs: Sequence[DataConfig | OtherDataConfig], numbers: Sequence[int], temperature: float
) -> np.ndarray:
    """numbers: of records. Raises UserError where some have weights and others have none, or nothing is left of one."""
    weights = np.array([config.weight for config in configs], float)
    if not weights.any():
        weights = np.array([config.epochs * number for config, number in zip(configs, numbers, strict=True)], float)
    names = [f"config.data.{name}" for name in ("", *(f"others[{i}]." for i in range(len(configs) - 1)))]
    for name, weight, config in zip(names, weights, configs, strict=True):
        if not weight:
            lacking = "weight" if any(one.weight for one in configs) else "epochs"
            raise UserError(f"{name}{lacking}: {getattr(config, lacking):g} leaves nothing of it; give all a share")
        if config.weight and config.epochs != 1:
            raise UserError(f"{name}epochs: it has a weight as well, which says all; set one of them")
    shares = (weights / weights.sum()) ** (1 / temperature)
    return shares / shares.sum()
