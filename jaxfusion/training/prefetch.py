"""Batches go to the devices in the background, while the step before them runs."""

import copy
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jaxfusion.batch import Batch


def prefetch(
    iterator: Any, put_batch: Callable[[Batch], Batch], depth: int = 2
) -> Iterator[tuple[Batch, dict[str, Any]]]:
    """(batch on the devices, the iterator's state just after that batch), in order, `depth` of them made ahead.

    iterator: gives batches and has `get_state`. Whatever it raises is raised here, in its place in the order.
    Close the generator to stop the thread.
    """

    def fetch() -> tuple[Batch, dict[str, Any]] | None:
        batch = next(iterator, None)
        # A copy: some iterators give out a state that they go on to change.
        return None if batch is None else (put_batch(batch), copy.deepcopy(iterator.get_state()))

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
        waiting = deque(pool.submit(fetch) for _ in range(depth))
        try:
            while (ready := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(fetch))
                yield ready
        finally:
            pool.shutdown(cancel_futures=True)
