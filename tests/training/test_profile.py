"""Which steps of a run are traced, and that the trace is there to be looked at."""

import jax
import jax.numpy as jnp
import pytest

from jaxfusion.training.profile import Trace


@pytest.mark.parametrize(
    ("first", "last", "traced"), [(1, 1000, (10, 14)), (101, 1000, (110, 114)), (1, 12, (8, 12)), (9, 11, (9, 11))]
)
def test_the_steps_that_are_traced_are_warm_and_within_the_run(tmp_path, first, last, traced):
    trace = Trace(tmp_path, first, last)
    assert (trace.begin, trace.end) == traced


def test_a_trace_is_written_of_its_steps_even_where_the_run_stops_within_them(tmp_path):
    for name, last_done in (("whole", 8), ("stopped", 5)):
        said = []
        with Trace(tmp_path / name, 1, 8) as trace:
            for step in range(1, last_done + 1):
                trace.start_before(step)
                jax.block_until_ready(jnp.ones(3) + 1)
                if trace.is_over_after(step):
                    said.append((step, trace.stop()))
        assert [step for step, _ in said] == ([8] if name == "whole" else [])
        assert list((tmp_path / name).rglob("*.xplane.pb"))


def test_without_a_directory_nothing_is_traced():
    with Trace(None, 1, 8) as trace:
        for step in range(1, 9):
            trace.start_before(step)
            assert not trace.is_over_after(step)
