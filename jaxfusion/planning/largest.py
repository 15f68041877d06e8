"""The search for the largest batch that fits a card."""

from collections.abc import Callable, Iterator, Sequence

from jaxfusion.planning.step import USABLE, StepPlan

MAX_COMPILATIONS = 8


def largest_batch(first: StepPlan, unit: int, plan: Callable[[int], StepPlan]) -> Iterator[StepPlan]:
    """Plans of the same run with other numbers of rows, as they are made; the largest that fits is the answer.

    The search goes by the straight line through what it knows, and ends within a fiftieth, or a `unit`.

    unit: what numbers of rows are multiples of. plan: compiles a step of so many rows.
    """
    plans = {first.rows: first}
    limit = USABLE * first.card.memory_bytes
    for _ in range(MAX_COMPILATIONS):
        rows = next_rows({rows: known.program.total_bytes for rows, known in plans.items()}, unit, limit)
        if rows is None:
            return
        plans[rows] = plan(rows)
        yield plans[rows]


def best_fit(plans: Sequence[StepPlan]) -> StepPlan:
    """Of plans of one run the one with most rows that fits; where none does, the one with the fewest rows."""
    fitting = [plan for plan in plans if plan.fits]
    return max(fitting, key=lambda plan: plan.rows) if fitting else min(plans, key=lambda plan: plan.rows)


def next_rows(known: dict[int, int], unit: int, limit: float) -> int | None:
    """The number of rows to try next, given bytes for some; None where the largest that fits is known, or none does."""
    fits = max((rows for rows, size in known.items() if size <= limit), default=0)
    fails = min((rows for rows, size in known.items() if size > limit), default=None)
    if fails is not None and fails - fits <= max(unit, fits // 50):
        return None
    if len(known) == 1:
        return 2 * fits or max(fails // 2 // unit * unit, unit)
    (rows, size), (other, other_size) = sorted(known.items(), key=lambda item: abs(item[1] - limit))[:2]
    slope = (other_size - size) / (other - rows)
    guess = rows + (limit - size) / slope if slope > 0 else 2 * rows
    guess = max(int(guess // unit) * unit, fits + unit)
    return guess if fails is None else min(guess, fails - unit)
