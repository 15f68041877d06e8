"""Many clients at once, of whom half leave early: nobody else notices, and nothing of them stays."""

import asyncio

from tests.serving.load import left_behind, load

CLIENTS, SECONDS = 64, 5


def test_no_request_is_lost_and_no_row_stays_taken(served):
    counts = asyncio.run(load(served.url, CLIENTS, SECONDS))
    assert {"whole", "streamed", "left a stream", "gave up"} <= counts.keys()
    assert left_behind(served) == (0, 0, 0)
