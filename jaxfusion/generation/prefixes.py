"""Prefix reuse: the keys and values of a prompt's leading parts, kept for the next prompt that begins the same.

Where a prompt is cut depends on the prompt alone, and it is read part by part whether a part is found or not. So a
prompt's numbers are the same, to the bit, whatever is found.
"""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple

import jax
import numpy as np

from jaxfusion.data.tokenise import PER_POSITION, Segment
from jaxfusion.models.stack import Unstacked

# Positions after which text is cut. Fewer would leave a GPU waiting for the weights; more would find less.
PART = 256


class Part(NamedTuple):
    """What a prompt says from position `start` on. key: of all up to its end; None for the last part, which nobody
    finds again because the answer begins in it."""

    start: int
    segment: Segment
    key: bytes | None


def parts(segment: Segment, tokens_per_image: int) -> list[Part]:
    """Cuts a prompt after each image, so that it can be asked about again, and where `PART` positions are full.

    No image is ever cut, and the last part holds at least the last position.
    """
    bounds = [0, *_cuts(segment.visual_index, max(1, tokens_per_image)), len(segment.tokens)]
    found, key = [], b""
    for start, end in pairwise(bounds):
        part = _between(segment, start, end, tokens_per_image)
        key = _key(key, part)
        found.append(Part(start, part, key if end < len(segment.tokens) else None))
    return found


def _cuts(visual_index: np.ndarray, tokens_per_image: int) -> list[int]:
    image = np.where(visual_index >= 0, visual_index // tokens_per_image, -1)
    last_before = np.maximum.accumulate(image)[:-1]
    first_after = np.minimum.accumulate(np.where(image >= 0, image, np.iinfo(np.int32).max)[::-1])[::-1][1:]
    cuts, last = [], 0
    for place in np.flatnonzero(last_before < first_after) + 1:
        if image[place - 1] >= 0 or place - last >= PART:
            cuts.append(last := int(place))
    return cuts


def _between(segment: Segment, start: int, end: int, tokens_per_image: int) -> Segment:
    columns = {name: getattr(segment, name)[start:end] for name in PER_POSITION}
    index, images = columns["visual_index"], []
    if (index >= 0).any():
        first = index[index >= 0].min() // tokens_per_image
        images = segment.images[first : index.max() // tokens_per_image + 1]
        columns["visual_index"] = np.where(index >= 0, index - first * tokens_per_image, -1)
    return Segment(**columns, images=images)


def _key(before: bytes, part: Segment) -> bytes:
    """Of the part and all before it: ids, where images stand, and what they are."""
    content = blake2b(before, digest_size=32)
    for array in (part.tokens, part.visual_index, *part.images):
        content.update(f"{array.dtype} {array.shape} ".encode())
        content.update(np.ascontiguousarray(array).tobytes())
    return content.digest()


class PrefixCache:
    """Keys and values of parts, on the device, the least recently used of which make room.

    hits, misses: parts that were found, and that were computed; those that are never kept do not count.
    positions:    that were found. num_bytes: that are held, max_bytes at most.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self.hits = self.misses = self.positions = 0
        self._kept: OrderedDict[bytes, Unstacked] = OrderedDict()

    def leading(self, prompt: Sequence[Part]) -> list[Unstacked]:
        """Of as many leading parts as are there without a gap."""
        found = []
        for part in prompt:
            if part.key is None or part.key not in self._kept:
                break
            found.append(self._kept[part.key])
            self.positions += len(part.segment.tokens)
        for part in reversed(prompt[: len(found)]):  # the first is worth most: without it no other is found
            self._kept.move_to_end(part.key)
        self.hits += len(found)
        self.misses += sum(part.key is not None for part in prompt[len(found) :])
        return found

    def keep(self, key: bytes, part: Unstacked) -> None:
        """Does nothing with a part for which there will never be room."""
        self._drop(key)
        size = _size(part)
        if size > self.max_bytes:
            return
        while self.num_bytes + size > self.max_bytes:
            self._drop(next(iter(self._kept)))
        self._kept[key], self.num_bytes = part, self.num_bytes + size

    def clear(self) -> None:
        """Lets all go."""
        self._kept.clear()
        self.num_bytes = 0

    def _drop(self, key: bytes) -> None:
        if key in self._kept:
            self.num_bytes -= _size(self._kept.pop(key))


def _size(part: Unstacked) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(part))
