"""What a visit of a record teaches: one sample of it, or a conversation of several, in random order.

Of a sample's answers, where it has several, a visit takes one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations, product

import numpy as np

from jaxfusion.data.messages import Image, Message, Sample, answer
from jaxfusion.data.tokenise import Layout

# The order of a group's samples, and for each of them, in that order, which of its answers.
Draw = tuple[tuple[int, ...], tuple[int, ...]]


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


def visit(samples: Sequence[Sample], rng: np.random.Generator) -> Sample:
    """A group as one conversation, in an order and with answers at random."""
    return _taken(samples, _draw(samples, rng))


def visits(samples: Sequence[Sample], most: int, rng: np.random.Generator) -> Iterator[Sample]:
    """All that `visit` may give, all equally probable, or, where there are more, `most` different ones at random."""
    counts = [len(sample.references) for sample in samples]
    if math.factorial(min(len(samples), 20)) * math.prod(counts) <= most:
        for order in permutations(range(len(samples))):
            for picks in product(*(range(counts[i]) for i in order)):
                yield _taken(samples, (order, picks))
        return
    seen: set[Draw] = set()
    while len(seen) < most:
        drawn = _draw(samples, rng)
        if drawn not in seen:
            seen.add(drawn)
            yield _taken(samples, drawn)


def _draw(samples: Sequence[Sample], rng: np.random.Generator) -> Draw:
    order = tuple(rng.permutation(len(samples)).tolist())
    # Of a single answer nothing is drawn: the order of such data is what it was before there could be several.
    return order, tuple(int(rng.integers(len(samples[i].answers))) if samples[i].answers else 0 for i in order)


def _taken(samples: Sequence[Sample], drawn: Draw) -> Sample:
    return conversation([_with_answer(samples[i], pick) for i, pick in zip(*drawn, strict=True)])


def _with_answer(sample: Sample, pick: int) -> Sample:
    if not sample.answers:
        return sample
    return replace(sample, messages=(*sample.messages[:-1], answer(sample.answers[pick])), answers=())
