"""Several compile at once, and one measures alone."""

import threading
from contextlib import ExitStack

import pytest

from benchmarks.turns import compiling, measuring


@pytest.mark.parametrize("other", [compiling, measuring])
def test_who_measures_waits_for_all_others(tmp_path, other):
    turn, measured = tmp_path / "turn", threading.Event()

    def measure():
        with measuring(turn):
            measured.set()

    thread = threading.Thread(target=measure, daemon=True)
    with other(turn):
        thread.start()
        assert not measured.wait(0.3)
    assert measured.wait(60)
    thread.join()


def test_many_compile_at_once(tmp_path):
    with ExitStack() as stack:  # would wait for ever if they did not
        for _ in range(3):
            stack.enter_context(compiling(tmp_path / "turn"))
