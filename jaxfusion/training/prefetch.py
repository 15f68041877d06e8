"""Batches go to the devices in the background, while the step before them runs."""

import concurrent.futures
import copy
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from jaxfusion.batch import Batch

POLL_SECONDS = 0.001


class Prefetch:
    """A context manager that gives an iterator's batches in order, `depth` of them made ahead in a thread.

    iterator: gives batches and has `get_state`. Whatever it raises is raised here, in its place in the order.
    warn_after: seconds of waiting for a batch after which `tell` is told, and again whenever they have doubled; 0: it
        is not.
    """

    def __init__(
        self,
        iterator: Any,
        put_batch: Callable[[Batch], Batch],
        depth: int = 2,
        *,
        warn_after: float = 0.0,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._iterator, self._put_batch = iterator, put_batch
        self._warn_after, self._tell = warn_after, tell
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._waiting = deque(self._pool.submit(self._fetch) for _ in range(depth))

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def take(self, busy: Callable[[], bool] = lambda: False) -> tuple[tuple[Batch, dict[str, Any]] | None, float]:
        """((a batch on the devices, the iterator's state just after it), seconds that the devices waited for it).

        None in the first place once the iterator has ended.
        busy: whether the devices still have something to do, during which nothing waits for input.
        """
        future = self._waiting.popleft()
        while not future.done() and busy():
            concurrent.futures.wait([future], POLL_SECONDS)
        start, patience = time.perf_counter(), self._warn_after
        while patience and not concurrent.futures.wait([future], start + patience - time.perf_counter()).done:
            self._tell(f"input stalls: no batch came for {patience:g} seconds; still waiting")
            patience *= 2
        taken = future.result()
        if taken is not None:
            self._waiting.append(self._pool.submit(self._fetch))
        return taken, time.perf_counter() - start

    def _fetch(self) -> tuple[Batch, dict[str, Any]] | None:
        batch = next(self._iterator, None)
        if batch is None:
            return None
        # A copy: some iterators give out a state that they go on to change.
        state = copy.deepcopy(self._iterator.get_state())
        return jax.block_until_ready(self._put_batch(batch)), state
