"""A mixed workload made on the spot: captions, dialogues, questions on several images, and text alone, in equal parts.

Texts go round in a circle of words, and the first image's shade says where an answer starts, so there is something to
learn from both. Lengths are spread as such data spread: the longest sample is a few times as long as the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxfusion.config.model import ModelConfig
from jaxfusion.config.run import DataConfig
from jaxfusion.data.messages import Image, Message, Sample, answer, ask

TEXT = "one boat sails past two red hills while three birds look down at four green fields and a slow river"
WORDS = TEXT.split()
KINDS = ("caption", "dialogue", "several images", "text")


@dataclass(frozen=True)
class MixedReader:
    """Record n, any number, is one sample; in the place of `jaxfusion.data.loader.Reader`."""

    data: DataConfig
    model: ModelConfig

    def read(self, source: Sequence[int], place: int, *, decode: bool = True) -> list[Sample]:
        return self.samples(source[place], decode=decode)

    def samples(self, record: int, *, decode: bool = True) -> list[Sample]:
        """decode: whether images have pixels."""
        rng = np.random.default_rng(record)
        kind, start = KINDS[record % len(KINDS)], int(rng.integers(len(WORDS)))
        number = {"text": 0, "several images": int(rng.integers(2, 5))}.get(kind, 1)
        images = [Image(self._picture(rng, start, decode)) for _ in range(number)]
        return [Sample(str(record), kind, tuple(_messages(rng, kind, images, start)))]

    def _picture(self, rng: np.random.Generator, start: int, decode: bool) -> np.ndarray:
        if not decode:
            return np.zeros(0, np.uint8)
        noise = rng.integers(0, 256 // len(WORDS), (self.model.vision.image_size, self.model.vision.image_size, 3))
        return (noise + start * (256 // len(WORDS))).astype(np.uint8)


def _messages(rng: np.random.Generator, kind: str, images: list[Image], start: int) -> list[Message]:
    def words(least: int, most: int) -> str:
        return " ".join(WORDS[(start + i) % len(WORDS)] for i in range(int(rng.integers(least, most + 1))))

    match kind:
        case "caption":
            return [ask(*images), answer(words(3, 10))]
        case "several images":
            return [ask(*images, words(2, 6)), answer(words(2, 14))]
        case "dialogue":
            turns = [[ask(words(2, 5)), answer(words(1, 8))] for _ in range(int(rng.integers(1, 5)))]
            first, *rest = [message for turn in turns for message in turn]
            return [ask(*images, *first.parts), *rest]
        case _:
            return [ask(words(2, 8)), answer(words(4, 36))]
