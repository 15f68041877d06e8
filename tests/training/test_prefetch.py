"""Batches come in order, each with the iterator's state just after it, however far ahead the thread is."""

from contextlib import closing

import grain
import pytest

from jaxfusion.training.prefetch import prefetch


def numbers():
    return iter(grain.MapDataset.range(100).seed(0).shuffle().repeat().to_iter_dataset())


def test_each_state_is_that_of_its_own_batch():
    with closing(prefetch(numbers(), lambda x: x * 10, depth=3)) as batches:
        taken = [next(batches) for _ in range(5)]
        _, state = taken[-1]
        expected = [next(batches)[0] for _ in range(4)]
    resumed = numbers()
    resumed.set_state(state)
    assert [next(resumed) * 10 for _ in range(4)] == expected
    assert [batch for batch, _ in taken] == [x * 10 for x, _ in zip(numbers(), range(5), strict=False)]


def test_a_state_is_not_changed_by_later_batches():
    class Reusing:
        """Gives out its own state, as some of Grain's iterators do."""

        def __init__(self):
            self.state = {"inner": {"next": 0}}

        def __next__(self):
            self.state["inner"]["next"] += 1
            return self.state["inner"]["next"]

        def get_state(self):
            return self.state

    with closing(prefetch(Reusing(), lambda x: x)) as batches:
        assert [(batch, state["inner"]["next"]) for batch, state in (next(batches) for _ in range(4))] == [
            (1, 1),
            (2, 2),
            (3, 3),
            (4, 4),
        ]


def test_errors_and_the_end_come_in_their_place():
    class Failing:
        def __init__(self, error):
            self.left, self.error = 2, error

        def __next__(self):
            self.left -= 1
            if self.left < 0:
                raise self.error
            return self.left

        def get_state(self):
            return {}

    with closing(prefetch(Failing(OSError("disk")), lambda x: x)) as batches:
        assert [next(batches)[0], next(batches)[0]] == [1, 0]
        with pytest.raises(OSError, match="disk"):
            next(batches)
    assert [batch for batch, _ in prefetch(Failing(StopIteration), lambda x: x)] == [1, 0]
