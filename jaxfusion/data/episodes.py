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


def check_names(config: EpisodesConfig, labels: Sequence[str]) -> None:
    """Raises UserError where there are too few names, two that are alike, or not as many as classes have of their
    own."""
    count = len(config.names)
    if again := sorted({name for name in config.names if config.names.count(name) > 1}):
        raise UserError(
            f"config.data.episodes.names: {', '.join(map(repr, again))} would name two classes; give each name once"
        )
    if config.own_names > 1:
        if count != (needed := config.own_names * len(labels)):
            raise UserError(
                f"config.data.episodes.names: {count} of them, and {len(labels)} classes have {config.own_names} each; "
                f"give {needed}, class by class"
            )
    elif count < config.ways:
        raise UserError(
            f"config.data.episodes.names: {count} of them, and {config.ways} classes in an episode; add names"
        )


def most_of_a_class(config: EpisodesConfig) -> int:
    """How many records of one class a training episode may take: one example of each, and all questions of one."""
    return config.shots + 1 if config.own_names > 1 else config.ways * config.shots + 1


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
    """The record at the place and others, as many in each episode: some examples in random order, then questions. They
    are `ways` x (`shots` + 1), of which from 1 to `shots` of each class are examples; where classes have their own
    names `shots` + 1, of which up to `shots` are. Where that record, or another that is drawn, is left out, one of its
    class at random is in its place."""
    own = int(source.classes[place])
    classes = _classes(own, list(source.places_of), config.ways, rng)
    names = _names(config, classes, rng)
    if config.own_names > 1:
        num_given = int(rng.integers(config.shots + 1))
        numbers = rng.integers(config.ways, size=config.shots + 1).tolist()
        numbers[int(rng.integers(len(numbers)))] = classes.index(own)
    else:
        num_given = config.ways * int(rng.integers(1, config.shots + 1))
        given = rng.permutation(np.arange(num_given) % config.ways)
        asked = rng.integers(config.ways, size=config.ways * (config.shots + 1) - num_given)
        numbers = [*given.tolist(), *asked.tolist()]
    samples = [
        iter(_drawn(source, kind, numbers.count(number), [place] if kind == own else [], read, rng))
        for number, kind in enumerate(classes)
    ]
    drawn = [next(samples[number]) for number in numbers]
    learned = [place >= num_given for place in range(len(numbers))]
    intro = names if config.own_names == 1 else ()
    return _episode(drawn[-1], drawn, [names[number] for number in numbers], intro, learned)


def held_out_episodes(
    source: ByClass,
    known: Sequence[int],
    new: Sequence[int],
    config: EpisodesConfig,
    shots: int,
    read: Read,
    limit: int,
) -> list[Sample]:
    """Questions behind `shots` examples of each class, or, where classes have their own names, `shots` of them in all,
    always the same; only the question's answer carries loss.

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
        names = _names(config, classes, rng)
        if config.own_names > 1:
            support = np.random.default_rng((SEED, index, len(classes))).integers(len(classes), size=shots).tolist()
        else:
            support = rng.permutation(np.arange(shots * len(classes)) % len(classes)).tolist()
        # The question and then the examples of a class, in an order that more of them do not change.
        samples = []
        for number_of_class, kind in enumerate(classes):
            own = np.random.default_rng((SEED, index, number_of_class))
            wanted = support.count(number_of_class) + (number_of_class == asked)
            samples.append(_drawn(source, kind, wanted, [], read, own))
        query = samples[asked].pop(0)
        drawn = [*(samples[n].pop(0) for n in support), query]
        told = [names[n] for n in (*support, asked)]
        intro, learned = names if config.own_names == 1 else (), [False] * len(support) + [True]
        sample = _episode(query, drawn, told, intro, learned)
        found.append(replace(sample, group=group, label=config.names.index(names[asked]), record=index))
    return found


def _classes(first: int, kinds: Sequence[int], ways: int, rng: np.random.Generator) -> list[int]:
    """So many different ones, the first among them, in random order: where it stands tells nothing."""
    others = rng.choice([kind for kind in kinds if kind != first], ways - 1, replace=False).tolist()
    classes = [first, *others]
    return [classes[i] for i in rng.permutation(ways)]


def _names(config: EpisodesConfig, classes: Sequence[int], rng: np.random.Generator) -> list[str]:
    if config.own_names > 1:
        return [config.names[kind * config.own_names + rng.integers(config.own_names)] for kind in classes]
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
    if names:
        messages[0] = replace(messages[0], parts=(", ".join(names), *messages[0].parts))
    return replace(query, messages=tuple(messages), label=None)
