"""Episodes: bound anew, never with the asked picture among the examples, and the same wherever a run goes on."""

import json
from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxfusion.config import Config, from_dict
from jaxfusion.data.bad_records import BadRecords
from jaxfusion.data.dataset import Dataset, with_classes
from jaxfusion.data.episodes import ByClass
from jaxfusion.data.loader import Reader, held_out, settle_images_per_row, train_iterator
from jaxfusion.data.tokenise import Layout, tokenise
from jaxfusion.errors import RecordError, UserError
from jaxfusion.text.trained import TrainedTokenizer

NAMES = ("dax", "wug", "fep", "zup", "modi")
TOKENIZER = TrainedTokenizer.train([", ".join(NAMES), *NAMES] * 4, 300)
VISION = {"kind": "vgg", "image_size": 4, "stage_depths": [1], "stage_widths": [2]}
NUM_CLASSES = 7


class Pictures:
    """Each of one colour, which tells its place: class = place % NUM_CLASSES. Some are broken."""

    def __init__(self, number=70, broken=()):
        self.number, self.broken = number, broken

    def __len__(self):
        return self.number

    def __getitem__(self, place):
        if place in self.broken:
            return {"origin": f"picture {place}", "image": b"broken", "kind": place % NUM_CLASSES}
        return {"image_id": place, "image": np.full((4, 4, 3), place, np.uint8), "kind": place % NUM_CLASSES}


def opened(train=None, test=None, *, bad="refuse", asked=0, packing="none", **episodes):
    episodes = {"ways": 3, "shots": 2, "held_out": 3, "names": NAMES} | episodes
    data = {"task": "classify", "label": "kind", "episodes": episodes, "row_length": 80, "bad_records": bad}
    config = from_dict(Config, {"data": data | {"packing": packing}, "model": {"vision": VISION}})
    labels = tuple(f"kind {number}" for number in range(NUM_CLASSES))
    records = BadRecords(bad, 10)
    dataset = Dataset(train or Pictures(), test or Pictures(), labels)
    dataset = with_classes(dataset, config.data, asked or config.data.episodes.shots, records)
    return dataset, Reader(config.data, replace(config.model, width=8), labels, bad=records)


def told(sample):
    """(place of the picture, name) of each example and the question, in order; and the names that there are."""
    first, *_ = sample.messages
    pictures = [int(m.images[0].value[0, 0, 0]) for m in sample.messages[::2]]
    return list(zip(pictures, [m.text for m in sample.messages[1::2]], strict=True)), first.text.split(", ")


def rows(dataset, reader, number=30):
    iterator = train_iterator(dataset.train, reader, TOKENIZER, batch_size=1, seed=0)
    return [jax.tree.map(lambda leaf: np.asarray(leaf)[0], next(iterator)) for _ in range(number)]


def words(row):
    """Names and where they are learned, of a row: (text, learned)."""
    tokens, weights = row.tokens.tolist(), row.loss_weights
    starts = [place for place, token in enumerate(tokens) if token == TOKENIZER.sep_id]
    ends = [tokens.index(TOKENIZER.eos_id, start) for start in starts]
    return [
        (TOKENIZER.decode(tokens[a + 1 : b]), bool(weights[a]), weights[a:b]) for a, b in zip(starts, ends, strict=True)
    ]


def test_training_episodes_are_examples_of_known_classes_and_then_questions():
    dataset, reader = opened()
    numbers = Counter()
    for row in rows(dataset, reader):
        places = row.images[:, 0, 0, 0].astype(int).tolist()
        classes = [place % NUM_CLASSES for place in places]
        assert len(set(places)) == 9 and len(set(classes)) == 3
        assert max(classes) < 4  # the last three are held out
        said = words(row)
        bound = dict(zip(classes, (name for name, *_ in said), strict=True))
        assert [name for name, *_ in said] == [bound[kind] for kind in classes] and len(set(bound.values())) == 3
        learned = [is_learned for _, is_learned, _ in said]
        assert all((weights == is_learned).all() for _, is_learned, weights in said)  # the end of an answer, too
        given = learned.index(True)
        assert learned == [False] * given + [True] * (9 - given)
        assert set(Counter(classes[:given]).values()) == {given // 3}  # as many of each
        numbers[given // 3] += 1
    assert set(numbers) == {1, 2}


def test_what_was_shown_tells_nothing_of_the_next_class():
    """Not even how often a class was shown."""
    dataset, reader = opened(ways=2, shots=3)
    last = []
    for row in rows(dataset, reader, 300):
        classes = (row.images[:, 0, 0, 0] % NUM_CLASSES).tolist()
        last.append(Counter(classes[:-1])[classes[-1]] > 3)  # of 7
    assert abs(np.mean(last) - 0.5) < 0.1  # 3.5 standard errors


def test_names_are_bound_anew_in_each_episode():
    dataset, reader = opened()
    bound = {kind: set() for kind in range(4)}
    for row in rows(dataset, reader, 40):
        for place, (name, *_) in zip(row.images[:, 0, 0, 0].tolist(), words(row), strict=True):
            bound[place % NUM_CLASSES].add(name)
    assert all(names == set(NAMES) for names in bound.values())


def test_classes_with_names_of_their_own_go_by_one_of_them():
    names = tuple(f"{first}{last}" for first in "abcdefg" for last in "xy")
    dataset, reader = opened(own_names=2, names=names, shots=4, held_out=0, ways=NUM_CLASSES)
    given, used = Counter(), set()
    for row in rows(dataset, reader, 60):
        classes = (row.images[:, 0, 0, 0] % NUM_CLASSES).tolist()
        said = words(row)
        bound = dict(zip(classes, (name for name, *_ in said), strict=True))
        assert len(classes) == 5 and [name for name, *_ in said] == [bound[kind] for kind in classes]
        assert all(names.index(name) // 2 == kind for kind, name in bound.items())
        given[[is_learned for _, is_learned, _ in said].index(True)] += 1
        used |= set(bound.values())
    assert set(given) == {0, 1, 2, 3, 4} and used == set(names)

    by_shots = held_out(dataset, reader, [0, 3, 4], 60)
    for none, three, four in zip(*by_shots.values(), strict=True):
        pictures = [[message.images[0].value[0, 0, 0] for message in s.messages[::2]] for s in (none, three, four)]
        assert [len(p) for p in pictures] == [1, 4, 5] and len(set(pictures[2])) == 5
        assert pictures[0][-1] == pictures[1][-1] == pictures[2][-1]
        assert pictures[1][:3] == pictures[2][:3]  # more examples come after those that there were
        assert not any(message.text for message in four.messages[::2])  # nothing says what the names are
        assert none.reference == four.reference and names.index(none.reference) // 2 == pictures[0][-1] % NUM_CLASSES


def test_it_goes_on_exactly_where_its_state_says():
    for packing in ("none", "best-fit"):
        dataset, reader = opened(packing=packing)
        number = settle_images_per_row(dataset.train, reader, TOKENIZER, seed=0)
        assert number == 9 or packing == "best-fit"
        reader = replace(reader, data=replace(reader.data, images_per_row=number))
        first = train_iterator(dataset.train, reader, TOKENIZER, batch_size=4, seed=3)
        for _ in range(13):  # into the next epoch
            next(first)
        state = json.dumps(first.get_state())
        again = train_iterator(dataset.train, reader, TOKENIZER, batch_size=4, seed=3)
        again.set_state(json.loads(state))
        for _ in range(3):
            ours, theirs = jax.tree.leaves(next(again)), jax.tree.leaves(next(first))
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_held_out_episodes_never_show_the_asked_picture_before():
    dataset, reader = opened()
    for sample in held_out(dataset, reader, [5], 60)[5]:
        pairs, names = told(sample)
        *examples, (asked, answer) = pairs
        places = [place for place, _ in pairs]
        assert len(set(places)) == len(places) == 16
        bound = {place % NUM_CLASSES: name for place, name in examples}
        assert sorted(Counter(place % NUM_CLASSES for place, _ in examples).values()) == [5, 5, 5]
        assert sorted(bound.values()) == sorted(names) and bound[asked % NUM_CLASSES] == answer
        assert {kind >= 4 for kind in bound} == {sample.group == "new"}  # all of the held-out classes, or none
        assert NAMES[sample.label] == answer == sample.reference
        segment = tokenise(sample, TOKENIZER, Layout.of(reader.model))
        learned = np.flatnonzero(segment.loss_weights)
        assert TOKENIZER.decode(segment.targets[learned]) == answer and learned[-1] == len(segment.tokens) - 2


def test_held_out_episodes_are_the_same_with_any_number_of_examples():
    dataset, reader = opened()
    by_shots = held_out(dataset, reader, [0, 1, 4], 40)
    assert [told(s) for s in by_shots[4]] == [told(s) for s in held_out(dataset, reader, [4], 40)[4]]
    for none, one, four in zip(*by_shots.values(), strict=True):
        assert told(none)[0][-1] == told(one)[0][-1] == told(four)[0][-1]
        assert told(none)[1] == told(four)[1] and len(told(none)[0]) == 1
        assert set(told(one)[0]) < set(told(four)[0])
        assert none.record == four.record and none.group == four.group


def test_neither_the_order_of_the_names_nor_that_of_the_examples_tells_the_answer():
    dataset, reader = opened()
    samples = held_out(dataset, reader, [1], 300)[1]
    told_first = np.mean([told(s)[1][0] == s.reference for s in samples])
    shown_last = np.mean([told(s)[0][-2][1] == s.reference for s in samples])
    assert abs(told_first - 1 / 3) < 0.1 and abs(shown_last - 1 / 3) < 0.1  # 3.7 standard errors


def test_broken_pictures_are_replaced_by_others_of_their_class():
    dataset, reader = opened(Pictures(broken=(0, 7, 8)), Pictures(broken=(1,)), bad="skip")
    for row in rows(dataset, reader, 20):
        places = row.images[:, 0, 0, 0].tolist()
        assert not {0, 7, 8} & set(places) and len(set(places)) == 9
    assert len(reader.bad) == 3
    assert len(held_out(dataset, reader, [2], 30)[2]) == 30


def test_records_without_a_class_are_bad_ones():
    class Odd(Pictures):
        def __getitem__(self, place):
            return super().__getitem__(place) | ({"kind": 99} if place == 5 else {})

    dataset, reader = opened(Odd(), bad="skip")
    assert isinstance(dataset.train, ByClass) and len(reader.bad) == 1
    with pytest.raises((UserError, RecordError), match=r"^record 5 of .* 'kind' is 99, which is no class"):
        opened(Odd())


def test_they_are_of_one_data_set_with_classes():
    labels = tuple(map(str, range(7)))
    for settings in ({"task": "caption"}, {"task": "classify", "prepared": "there"}, {"others": [{"path": "b"}]}):
        data = from_dict(Config, {"data": {"episodes": {"ways": 2}} | settings}).data
        with pytest.raises(
            UserError, match=r"^config\.data\.episodes: they are of the task 'classify', of one data set"
        ):
            with_classes(Dataset(Pictures(), Pictures(), labels), data, 1, BadRecords())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"names": ("dax", "wug", "fep", "wug")},
            "config.data.episodes.names: 'wug' would name two classes; give each",
        ),
        ({"ways": 6}, "config.data.episodes.names: 5 of them, and 6 classes in an episode; add names"),
        ({"own_names": 2}, "config.data.episodes.names: 5 of them, and 7 classes have 2 each; give 14, class by class"),
        ({"held_out": 2}, "of 7 classes 2 are held out, which is fewer than the 3 of an episode"),
        ({"held_out": 5}, "of 7 classes 2 are to learn from, which is fewer"),
        ({"shots": 4}, "config.data.episodes.shots: an episode may take 13 records of a class, and 'kind 0' has 10"),
        ({"shots": 2, "test": Pictures(14)}, "config.evaluate.shots: an episode may take 3 records of a class, and"),
    ],
)
def test_what_cannot_be_is_refused_by_name(settings, message):
    with pytest.raises(UserError, match=message):
        opened(**settings)


def test_augmentation_is_drawn_at_each_visit_for_all_pictures_of_an_episode():
    dataset, reader = opened()
    plain = rows(dataset, reader, 40)
    changed = rows(dataset, replace(reader, data=replace(reader.data, augment="colour(0.9)")), 40)
    seen = {}
    for one, other in zip(plain, changed, strict=True):
        for ours, theirs in zip(one.images[:, 0, 0, 0].tolist(), other.images[:, 0, 0, 0].tolist(), strict=False):
            seen.setdefault(ours, set()).add(theirs)
    assert max(map(len, seen.values())) > 3  # and none is kept from the first visit
