"""Episodes: classes under names that are made up anew each time, some solved examples of each, and a question.

This is the open-ended fast binding of Frozen (Tsimpoukelli et al. 2021): what a name means is told by the episode's own
examples and by nothing else. An episode is a conversation, whose first message tells the names that there are:

    user: dax, blicket [image]  assistant: blicket  user: [image]  assistant: dax  user: [image]  assistant: blicket ...

An episode to learn from is some examples of each class and then questions, each of a class at random whatever came
before: were there as many of each, what is left would be told by counting. Learned are the questions' answers, and each
of them is an example for the next.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxfusion.config.run import DataConfig, EpisodesConfig
from jaxfusion.data.bad_records import BadRecords
from jaxfusion.data.messages import Message, Sample, answer
from jaxfusion.data.sources.joined import Chosen
from jaxfusion.data.tasks import class_of
from jaxfusion.errors import RecordError, UserError

# Of the draws of held-out episodes, which are the same for all runs.
SEED = 2021

# The first sample of a source's record, None where the record is left out.
Read = Callable[[Sequence[Any], int], Sample | None]


class ByClass(Chosen):
    """Records of a sequence, with the number of each one's class. places: of the sequence, in increasing order."""

    def __init__(self, source: Sequence[Any], places: Int[np.ndarray, " n"], classes: Int[np.ndarray, " n"]) -> None:
        super().__init__(source, places)
        self.classes = classes
        self.places_of = {int(number): np.flatnonzero(classes == number) for number in np.unique(classes)}

    def only(self, wanted: Sequence[int]) -> "ByClass":
        """The records of some classes."""
        kept = np.isin(self.classes, np.asarray(wanted))
        return ByClass(self.source, self.places[kept], self.classes[kept])


def by_class(source: Sequence[Any], config: DataConfig, labels: Sequence[str], bad: BadRecords) -> ByClass:
    """Reads all records once for their classes; those whose class cannot be told are bad, and not among the result."""
    found = np.full(len(source), -1)
    for place in range(len(source)):
        try:
            found[place] = class_of(source[place], config, labels)
        except RecordError as error:
            bad.leave_out(error)
    places = np.flatnonzero(found >= 0)
    return ByClass(source, places, found[places])


def known_and_new(labels: Sequence[str], config: EpisodesConfig) -> tuple[range, range]:
    """The classes to learn from, and those, the last, that are left for the test. Raises UserError where an episode
    has more classes than either has."""
    known = len(labels) - config.held_out
    for number, name in ((known, "to learn from"), (config.held_out, "held out")):
        if number < config.ways and not (number == 0 and name == "held out"):
            raise UserError(
                f"config.data.episodes: of {len(labels)} classes {max(number, 0)} are {name}, which is fewer than the "
                f"{config.ways} of an episode; change held_out or ways"
            )
    return range(known), range(known, len(labels))


def most_of_a_class(config: EpisodesConfig) -> int:
    """How many records of one class a training episode may take: one example of each, and all questions of one."""
    return config.ways * config.shots + 1


def check_numbers(source: ByClass, classes: Sequence[int], labels: Sequence[str], needed: int, setting: str) -> None:
    """Raises UserError where a class has too few records."""
    for number in classes:
        if (count := len(source.places_of.get(number, ()))) < needed:
            raise UserError(
                f"{setting}: an episode may take {needed} records of a class, and {labels[number]!r} has {count}; "
                "lower it, or add records"
            )


def training_episode(
    source: ByClass, place: int, config: EpisodesConfig, read: Read, rng: np.random.Generator
) -> Sample:
    """`ways` x (`shots` + 1) pictures, the record at the place among them: from 1 to `shots` examples of each class in
    random order, then questions. Where that record, or another that is drawn, is left out, one of its class at random
    is in its place."""
    own = int(source.classes[place])
    classes = _classes(own, list(source.places_of), config.ways, rng)
    names = _names(config, rng)
    num_given = config.ways * int(rng.integers(1, config.shots + 1))
    given = rng.permutation(np.arange(num_given) % config.ways)
    numbers = [*given.tolist(), *rng.integers(config.ways, size=config.ways * (config.shots + 1) - num_given).tolist()]
    samples = [
        iter(_drawn(source, kind, numbers.count(number), [place] if kind == own else [], read, rng))
        for number, kind in enumerate(classes)
    ]
    drawn = [next(samples[number]) for number in numbers]
    learned = [place >= num_given for place in range(len(numbers))]
    return _episode(drawn[-1], drawn, [names[number] for number in numbers], names, learned)


def held_out_episodes(
    source: ByClass,
    known: Sequence[int],
    new: Sequence[int],
    config: EpisodesConfig,
    shots: int,
    read: Read,
    limit: int,
) -> list[Sample]:
    """Questions behind `shots` examples of each class, always the same; only the question's answer carries loss.

    Half of them, the group "new", are of classes that were held out, where any were. With another number of shots they
    are the same questions, the same names, and examples that are the same as far as both have them.
    """
    found, number = [], limit or len(source)
    groups = [("new", new), ("known", known)] if len(new) else [("known", known)]
    for index in range(number):
        group, kinds = groups[index % len(groups)]
        rng = np.random.default_rng((SEED, index))
        classes = _classes(int(rng.choice(list(kinds))), kinds, config.ways, rng)
        asked = int(rng.integers(len(classes)))
        names = _names(config, rng)
        # The question and then the examples of a class, in an order that more of them do not change.
        samples = []
        for number_of_class, kind in enumerate(classes):
            own, wanted = np.random.default_rng((SEED, index, number_of_class)), shots + (number_of_class == asked)
            samples.append(_drawn(source, kind, wanted, [], read, own))
        query = samples[asked].pop(0)
        support = [(n, sample) for n, drawn in enumerate(samples) for sample in drawn]
        support = [support[i] for i in rng.permutation(len(support))]
        told = [names[n] for n, _ in support] + [names[asked]]
        learned = [False] * len(support) + [True]
        sample = _episode(query, [*(sample for _, sample in support), query], told, names, learned)
        found.append(replace(sample, group=group, label=config.names.index(names[asked]), record=index))
    return found


def _classes(first: int, kinds: Sequence[int], ways: int, rng: np.random.Generator) -> list[int]:
    """So many different ones, the first among them, in random order: where it stands tells nothing."""
    others = rng.choice([kind for kind in kinds if kind != first], ways - 1, replace=False).tolist()
    classes = [first, *others]
    return [classes[i] for i in rng.permutation(ways)]


def _names(config: EpisodesConfig, rng: np.random.Generator) -> list[str]:
    return [config.names[i] for i in rng.permutation(len(config.names))[: config.ways]]


def _drawn(
    source: ByClass, kind: int, number: int, first: Sequence[int], read: Read, rng: np.random.Generator
) -> list[Sample]:
    """So many different records of a class, some given ones first. Raises UserError where it has too few good ones."""
    order = [*first, *(place for place in rng.permutation(source.places_of[kind]).tolist() if place not in first)]
    found: list[Sample] = []
    for place in order:
        if len(found) == number:
            break
        sample = read(source, place)
        if sample is not None:
            found.append(sample)
    if len(found) < number:
        raise UserError(
            f"config.data.episodes.shots: class {kind} has {len(found)} records that are whole, and an episode takes "
            f"{number}; lower it, or add records"
        )
    return found


def _episode(
    query: Sample, samples: Sequence[Sample], answers: Sequence[str], names: Sequence[str], learned: Sequence[bool]
) -> Sample:
    messages: list[Message] = []
    for sample, text, is_learned in zip(samples, answers, learned, strict=True):
        messages += [sample.messages[0], replace(answer(text), learned=is_learned)]
    messages[0] = replace(messages[0], parts=(", ".join(names), *messages[0].parts))
    return replace(query, messages=tuple(messages), label=None)
