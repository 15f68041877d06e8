"""What a visit of a record teaches: one sample of it, or a conversation of several, in random order."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np

from jaxfusion.data.messages import Image, Message, Sample
from jaxfusion.data.tokenise import Layout


def groups_of(samples: Sequence[Sample], layout: Layout) -> list[list[Sample]]:
    """Of which a visit takes one: for a language model all samples of a group, to be learned on one picture as a
    conversation; for other models each sample by itself."""
    if layout.predict != "next":
        return [[sample] for sample in samples]
    names = sorted({sample.group for sample in samples})
    return [[sample for sample in samples if sample.group == name] for name in names]


def conversation(samples: Sequence[Sample]) -> Sample:
    """Samples on the same picture as one, in which the picture is shown once."""
    first, *rest = samples
    messages = list(first.messages)
    for sample in rest:
        question, reply = sample.messages
        text = tuple(part for part in question.parts if not isinstance(part, Image))
        messages += [Message("user", text), reply]
    return replace(first, messages=tuple(messages))


def orders(number: int, most: int, rng: np.random.Generator) -> Iterator[tuple[int, ...]]:
    """All orders of so many samples, or, where there are more than that, `most` different ones at random."""
    if math.factorial(min(number, 20)) <= most:
        yield from permutations(range(number))
        return
    seen: set[tuple[int, ...]] = set()
    while len(seen) < most:
        order = tuple(rng.permutation(number).tolist())
        if order not in seen:
            seen.add(order)
            yield order
