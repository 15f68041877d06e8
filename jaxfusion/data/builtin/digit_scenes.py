"""`digit_scenes`: pictures of 1 to 4 real handwritten digits, with captions and questions, as a TFDS builder.

The handwriting is scikit-learn's copy of the UCI digits (8 x 8 pixels, 1,797 images). It is divided between the splits
before any scene is composed, so the digits of a validation or test scene are never seen in training.
"""

import functools
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, Int, UInt8
from PIL import Image

from jaxfusion.data.builtin.digit_language import (
    COLOURS,
    QUADRANTS,
    SIZES,
    SceneDigit,
    caption_en,
    caption_zh,
    questions,
)
from jaxfusion.data.images import encode_png

CANVAS = 48
CELL = CANVAS // 2
MAX_DIGITS = len(QUADRANTS)
# Side of the square that a digit is drawn in, a small margin included: the strokes are about 13 and 18 pixels high.
TILE = {"small": 16, "large": 22}
# How far a digit may be from the middle of its quadrant, in pixels and each direction, where its size leaves room.
JITTER = 2
# One row a colour, in the order of `COLOURS`.
RGB = np.array([(226, 48, 48), (52, 190, 76), (66, 112, 246), (242, 208, 46), (240, 240, 240)], dtype=np.float32)
# split -> (number of scenes, number of digit images)
SPLITS = {"train": (15_000, 1_400), "validation": (500, 97), "test": (1_000, 300)}
SEED = 20


@functools.cache
def handwriting() -> tuple[Float[np.ndarray, "N 8 8"], Int[np.ndarray, " N"]]:
    """Return scikit-learn's digits: ink in [0, 1] and the digit that each image shows."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.float32) / 16, digits.target


@functools.cache
def split_sources() -> dict[str, Int[np.ndarray, " n"]]:
    """Divide the handwriting between the splits: split name -> indices into `handwriting()`, disjoint."""
    order = np.random.default_rng(SEED).permutation(len(handwriting()[0]))
    ends = np.cumsum([images for _, images in SPLITS.values()])
    return dict(zip(SPLITS, np.split(order, ends[:-1]), strict=True))


@functools.lru_cache(maxsize=4096)
def ink(source: int, side: int) -> Float[np.ndarray, "side side"]:
    """Return the coverage in [0, 1] of one digit image, enlarged smoothly to `side` pixels with its margin."""
    # The UCI digits touch the border of their 8 x 8 grid: without a margin the strokes would end in a hard edge.
    padded = np.pad(handwriting()[0][source], 1)
    enlarged = np.asarray(Image.fromarray(padded).resize((side, side), Image.Resampling.BICUBIC))
    # Interpolation blurs the strokes; a steeper ramp gives them back their solid core.
    return np.clip((enlarged - 0.1) / 0.85, 0, 1)


def draw_background(rng: np.random.Generator) -> Float[np.ndarray, "3 H W"]:
    """Return a dark canvas in [0, 255]: a random tint, a gentle gradient and a little grain."""
    tint = rng.uniform(16, 46, size=(3, 1, 1)).astype(np.float32)
    down, across = rng.uniform(-10, 10, size=(2, 3, 1)).astype(np.float32)
    ramp = np.linspace(-1, 1, CANVAS, dtype=np.float32)
    grain = rng.integers(-3, 4, size=(CANVAS, CANVAS), dtype=np.int8)
    return (tint + (down * ramp)[:, :, None]) + ((across * ramp)[:, None, :] + grain)


def draw_scene(digits: list[SceneDigit], rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Draw the digits, each near the middle of its own quadrant and in its own shade of its colour."""
    # Colour planes first: NumPy is slow over an innermost axis of three, and the scenes are made while someone waits.
    canvas = draw_background(rng)
    offsets = rng.random((len(digits), 2)).tolist()
    shades = rng.uniform(-14, 14, size=(len(digits), 3)).astype(np.float32)
    for d, (down, across), shade in zip(digits, offsets, shades, strict=True):
        side = TILE[SIZES[d.size]]
        row, column = divmod(d.quadrant, 2)
        free = (CELL - side) // 2
        reach = min(JITTER, free)
        top = row * CELL + free - reach + int(down * (2 * reach + 1))
        left = column * CELL + free - reach + int(across * (2 * reach + 1))
        tile = canvas[:, top : top + side, left : left + side]
        tile += ink(d.source, side) * ((RGB[d.colour] + shade)[:, None, None] - tile)
    return np.ascontiguousarray(canvas.clip(0, 255).round().astype(np.uint8).transpose(1, 2, 0))


def compose(sources: Int[np.ndarray, " n"], rng: np.random.Generator) -> list[SceneDigit]:
    """Choose the digits of a scene from the handwriting `sources`, in the reading order of their quadrants."""
    quadrants = np.sort(rng.permutation(MAX_DIGITS)[: rng.integers(1, MAX_DIGITS + 1)])
    limits = (len(sources), len(COLOURS), len(SIZES))
    chosen, colours, sizes = rng.integers(0, limits, size=(len(quadrants), 3)).T
    columns = (handwriting()[1][sources[chosen]], quadrants, colours, sizes, sources[chosen])
    return [SceneDigit(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def make_record(split: str, index: int) -> dict:
    """Make scene `index` of a split. It depends on nothing but these two, so any record can be made again alone."""
    rng = np.random.default_rng((SEED, list(SPLITS).index(split), index))
    digits = compose(split_sources()[split], rng)
    return {
        "image": encode_png(draw_scene(digits, rng)),
        "image_id": index,
        "caption_en": caption_en(digits),
        "caption_zh": caption_zh(digits),
        **questions(digits),
        "count": len(digits) - 1,
        "digits": [vars(d) for d in digits],
    }


class DigitScenes(tfds.core.GeneratorBasedBuilder):
    """Composed scenes of real handwritten digits, split by handwriting, with captions and questions."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        texts = features.Sequence(features.Text())
        return self.dataset_info_from_configs(
            description=self.__doc__,
            homepage="https://archive.ics.uci.edu/dataset/80",
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(CANVAS, CANVAS, 3), encoding_format="png"),
                    "image_id": np.int64,
                    "caption_en": features.Text(),
                    "caption_zh": features.Text(),
                    "questions_en": texts,
                    "answers_en": texts,
                    "questions_zh": texts,
                    "answers_zh": texts,
                    "count": features.ClassLabel(names=[str(n + 1) for n in range(MAX_DIGITS)]),
                    "digits": features.Sequence(
                        {
                            "digit": np.int64,
                            "quadrant": features.ClassLabel(names=QUADRANTS),
                            "colour": features.ClassLabel(names=COLOURS),
                            "size": features.ClassLabel(names=SIZES),
                            "source": np.int64,
                        }
                    ),
                }
            ),
            # Scenes are independent already: kept in order, record i is the one whose image_id is i.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for index in range(SPLITS[split][0]):
            yield index, make_record(split, index)
