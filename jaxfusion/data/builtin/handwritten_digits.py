"""`handwritten_digits`: one real handwritten digit a picture, as a TFDS builder; classes for few-shot episodes and the
like."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from jaxfusion.data.builtin.digit_scenes import handwriting, ink, split_sources
from jaxfusion.data.images import encode_png

CANVAS = 24
SIZES = (18, 22)  # of the square that the digit is drawn in, its margin included

# split -> number of pictures; the handwriting is divided as that of digit_scenes is
SPLITS = {"train": 8_000, "validation": 500, "test": 2_000}
SEED = 25


def draw_digit(source: int, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Draw it somewhere on a dark ground, light and of any colour. source: index into `handwriting()`."""
    background, shade = rng.uniform(16, 60, size=3), rng.uniform(170, 250, size=3)
    side = int(rng.integers(SIZES[0], SIZES[1] + 1))
    down, across = rng.integers(CANVAS - side + 1, size=2)
    cover = np.zeros((CANVAS, CANVAS, 1), np.float32)
    cover[down : down + side, across : across + side, 0] = ink(source, side)
    return (background + cover * (shade - background)).round().astype(np.uint8)


def make_record(split: str, index: int) -> dict:
    """Make picture `index` of a split. It depends on nothing but these two, so any record can be made again alone."""
    rng = np.random.default_rng((SEED, list(SPLITS).index(split), index))
    source = int(rng.choice(split_sources()[split]))
    return {
        "image": encode_png(draw_digit(source, rng)),
        "image_id": index,
        "digit": int(handwriting()[1][source]),
        "source": source,
    }


class HandwrittenDigits(tfds.core.GeneratorBasedBuilder):
    """Pictures of one real handwritten digit each, split by handwriting."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        return self.dataset_info_from_configs(
            description=self.__doc__,
            homepage="https://archive.ics.uci.edu/dataset/80",
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(CANVAS, CANVAS, 3), encoding_format="png"),
                    "image_id": np.int64,
                    "digit": features.ClassLabel(names=list("0123456789")),
                    "source": np.int64,
                }
            ),
            # Pictures are independent already: kept in order, record i is the one whose image_id is i.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for index in range(SPLITS[split]):
            yield index, make_record(split, index)
