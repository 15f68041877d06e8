"""`written_signs`: 360 made-up letters, each written anew in every picture, as a TFDS builder.

A letter is a few strokes through points in a square; whoever writes it moves these a little, turns, slants and
stretches the whole, and takes another pen. As with Omniglot (Lake et al. 2015) there are many classes with few pictures
each: what has to be learned is to see that two pictures show the same letter, whichever it is.
"""

import functools
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from jaxfusion.data.images import encode_png

CANVAS = 24
OVERSAMPLING = 4
NUM_SIGNS = 360
# split -> writings of each sign
SPLITS = {"train": 20, "validation": 4, "test": 10}
SEED = 24
# Between two points of a stroke the pen is at so many more.
STEPS = 6


@functools.cache
def sign(number: int) -> tuple[Float[np.ndarray, "p 2"], ...]:
    """The strokes of a sign: points (across, down) in [-1, 1], through which the pen goes."""
    rng = np.random.default_rng((SEED, number))
    strokes = []
    for _ in range(int(rng.integers(2, 4))):
        points = [rng.uniform(-1, 1, size=2)]
        for _ in range(int(rng.integers(1, 4))):
            new = rng.uniform(-1, 1, size=2)
            while np.linalg.norm(new - points[-1]) < 0.6:  # a dot would be lost
                new = rng.uniform(-1, 1, size=2)
            points.append(new)
        strokes.append(np.array(points))
    return tuple(strokes)


def draw_sign(number: int, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Write the sign once, by a hand of its own."""
    turn, slant = rng.uniform(-0.22, 0.22), rng.uniform(-0.2, 0.2)
    across, down = rng.uniform(0.62, 0.82, size=2)
    cos, sin = np.cos(turn), np.sin(turn)
    hand = np.array([[across, slant], [0, down]]) @ np.array([[cos, -sin], [sin, cos]])
    middle = rng.uniform(-0.1, 0.1, size=2)
    side = CANVAS * OVERSAMPLING
    image = Image.new("L", (side, side))
    draw, width = ImageDraw.Draw(image), int(rng.uniform(0.06, 0.1) * side)
    for stroke in sign(number):
        points = stroke + rng.normal(0, 0.07, size=stroke.shape)
        places = (_curve(points) @ hand.T + middle + 1) * side / 2
        draw.line([tuple(place) for place in places.tolist()], fill=255, width=width, joint="curve")
        for x, y in (places[0].tolist(), places[-1].tolist()):  # round ends
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    cover = np.asarray(image.resize((CANVAS, CANVAS), Image.Resampling.BOX), np.float32)[..., None] / 255
    paper, ink = rng.uniform(16, 60, size=3), rng.uniform(180, 250, size=3)
    return (paper + cover * (ink - paper)).round().astype(np.uint8)


def _curve(points: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "n 2"]:
    """A Catmull-Rom spline through the points: smooth, as a pen goes."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.linspace(0, 1, STEPS, endpoint=False)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False)
    ]
    return np.concatenate([*pieces, points[-1:]])


def make_record(split: str, index: int) -> dict:
    """Make picture `index` of a split. It depends on nothing but these two, so any record can be made again alone."""
    rng = np.random.default_rng((SEED, NUM_SIGNS, list(SPLITS).index(split), index))
    number = index % NUM_SIGNS
    return {"image": encode_png(draw_sign(number, rng)), "image_id": index, "sign": number}


class WrittenSigns(tfds.core.GeneratorBasedBuilder):
    """Made-up letters, each written anew in every picture."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(CANVAS, CANVAS, 3), encoding_format="png"),
                    "image_id": np.int64,
                    "sign": features.ClassLabel(names=[f"sign {number}" for number in range(NUM_SIGNS)]),
                }
            ),
            # Kept in order, record i is the one whose image_id is i, and shows sign i modulo their number.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for index in range(SPLITS[split] * NUM_SIGNS):
            yield index, make_record(split, index)
