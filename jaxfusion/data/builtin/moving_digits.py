"""`moving_digits`: clips of one real handwritten digit that moves in one of 8 directions, as a TFDS builder.

What leaves the picture on one side comes in on the other, and the digit begins anywhere. So at every moment it may be
anywhere with the same probability, whichever way it moves: no single frame tells the direction, to anyone.
"""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from jaxfusion.data.builtin.digit_scenes import handwriting, ink, split_sources
from jaxfusion.data.images import encode_png

CANVAS = 32
TILE = 20  # side of the square that the digit is drawn in, its margin included
NUM_FRAMES = 8
FRAMES_PER_SECOND = 4
# Pixels a frame, down and across: the digit is never moved by half the canvas, beyond which a way would look like the
# way back, not even where three of four frames are left out.
SPEEDS = (2, 3)

# (down, across), in English and in Chinese.
DIRECTIONS = {
    "left": (0, -1),
    "right": (0, 1),
    "up": (-1, 0),
    "down": (1, 0),
    "up and to the left": (-1, -1),
    "up and to the right": (-1, 1),
    "down and to the left": (1, -1),
    "down and to the right": (1, 1),
}
DIRECTIONS_ZH = ("左", "右", "上", "下", "左上方", "右上方", "左下方", "右下方")

# split -> number of clips; the handwriting is divided as that of digit_scenes is
SPLITS = {"train": 8_000, "validation": 500, "test": 1_000}
SEED = 22


def draw_clip(
    source: int, direction: tuple[int, int], speed: int, rng: np.random.Generator
) -> list[UInt8[np.ndarray, "H W 3"]]:
    """Draw the frames. source: index into `handwriting()`. direction: (down, across), each -1, 0 or 1."""
    background = rng.uniform(16, 60, size=3)
    shade = rng.uniform(190, 250, size=3)
    start = rng.integers(CANVAS, size=2)
    digit = np.zeros((CANVAS, CANVAS, 1), np.float32)
    digit[:TILE, :TILE, 0] = ink(source, TILE)
    frames = []
    for number in range(NUM_FRAMES):
        place = start + speed * number * np.array(direction)
        cover = np.roll(digit, tuple(place % CANVAS), axis=(0, 1))
        frames.append((background + cover * (shade - background)).round().astype(np.uint8))
    return frames


def make_record(split: str, index: int) -> dict:
    """Make clip `index` of a split. It depends on nothing but these two, so any record can be made again alone."""
    rng = np.random.default_rng((SEED, list(SPLITS).index(split), index))
    source = int(rng.choice(split_sources()[split]))
    number = int(rng.integers(len(DIRECTIONS)))
    name, name_zh = list(DIRECTIONS)[number], DIRECTIONS_ZH[number]
    digit, speed = int(handwriting()[1][source]), int(rng.choice(SPEEDS))
    frames = draw_clip(source, DIRECTIONS[name], speed, rng)
    return {
        "video": [encode_png(frame) for frame in frames],
        "video_times": np.arange(NUM_FRAMES, dtype=np.float32) / FRAMES_PER_SECOND,
        "image_id": index,
        "caption_en": f"{'an' if digit == 8 else 'a'} {digit} moves {name}",
        "caption_zh": f"一个{digit}向{name_zh}移动",
        "questions_en": ["Which digit is it?", "Which way does it move?"],
        "answers_en": [str(digit), name],
        "questions_zh": ["这是数字几？", "它向哪个方向移动？"],
        "answers_zh": [str(digit), name_zh],
        "direction": name,
        "digit": digit,
        "source": source,
        "speed": speed,
    }


class MovingDigits(tfds.core.GeneratorBasedBuilder):
    """Clips of a real handwritten digit that moves, split by handwriting, with captions and questions."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        texts = features.Sequence(features.Text())
        frame = features.Image(shape=(CANVAS, CANVAS, 3), encoding_format="png")
        return self.dataset_info_from_configs(
            description=self.__doc__,
            homepage="https://archive.ics.uci.edu/dataset/80",
            features=features.FeaturesDict(
                {
                    "video": features.Sequence(frame, length=NUM_FRAMES),
                    "video_times": features.Tensor(shape=(NUM_FRAMES,), dtype=np.float32),  # in seconds
                    "image_id": np.int64,
                    "caption_en": features.Text(),
                    "caption_zh": features.Text(),
                    "questions_en": texts,
                    "answers_en": texts,
                    "questions_zh": texts,
                    "answers_zh": texts,
                    "direction": features.ClassLabel(names=list(DIRECTIONS)),
                    "digit": np.int64,
                    "source": np.int64,
                    "speed": np.int64,  # pixels a frame
                }
            ),
            # Clips are independent already: kept in order, record i is the one whose image_id is i.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for index in range(SPLITS[split]):
            yield index, make_record(split, index)
