"""Batches come in order, each with the iterator's state just after it, however far ahead the thread is."""

import threading

import grain
import pytest

from jaxfusion.training.prefetch import Prefetch


def numbers():
    return iter(grain.MapDataset.range(100).seed(0).shuffle().repeat().to_iter_dataset())


def test_each_state_is_that_of_its_own_batch():
    with Prefetch(numbers(), lambda x: x * 10, depth=3) as batches:
        taken = [batches.take()[0] for _ in range(5)]
        _, state = taken[-1]
        expected = [batches.take()[0][0] for _ in range(4)]
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

    with Prefetch(Reusing(), lambda x: x) as batches:
        assert [(batch, state["inner"]["next"]) for batch, state in (batches.take()[0] for _ in range(4))] == [
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

    with Prefetch(Failing(OSError("disk")), lambda x: x) as batches:
        assert [batches.take()[0][0], batches.take()[0][0]] == [1, 0]
        with pytest.raises(OSError, match="disk"):
            batches.take()
    with Prefetch(Failing(StopIteration), lambda x: x) as batches:
        assert [batches.take()[0] for _ in range(3)] == [(1, {}), (0, {}), None]


def test_input_that_stalls_is_told_of_again_and_again():
    told, enough = [], threading.Event()

    class Stalled:
        def __next__(self):
            assert enough.wait(60)
            return 1

        def get_state(self):
            return {}

    def tell(line: str) -> None:
        told.append(line)
        if len(told) == 3:
            enough.set()

    with Prefetch(Stalled(), lambda x: x, warn_after=0.01, tell=tell) as batches:
        assert batches.take()[0] == (1, {})
    seconds = [float(line.split("came for ")[1].split()[0]) for line in told]
    assert seconds[:3] == [0.01, 0.02, 0.04]


def test_input_is_waited_for_only_while_nothing_else_is_done(monkeypatch):
    """By a clock that goes on when a batch is made: while the devices are busy, then after they have become idle."""
    now, made, asked, idle = [0.0], threading.Semaphore(0), [], []

    class Slow:
        def __next__(self):
            made.acquire()
            now[0] += 1.0
            return 0

        def get_state(self):
            return {}

    def busy() -> bool:
        asked.append(now[0])
        if len(asked) == 3:
            made.release()
        return True

    def clock() -> float:
        reading = now[0]
        if idle:
            made.release(idle.pop())  # the wait has begun
        return reading

    monkeypatch.setattr("jaxfusion.training.prefetch.time.perf_counter", clock)
    with Prefetch(Slow(), lambda x: x, depth=1) as batches:
        assert batches.take(busy)[1] == 0.0
        assert asked[:3] == [0.0] * 3
        idle.append(1)
        assert batches.take(lambda: False)[1] == 1.0
        made.release(9)  # for what is being made ahead
