"""Things made in threads ahead of who takes them."""

import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


class Ahead(Generic[Item, Made]):
    """A context manager that takes items, one thread at a time, and makes something of each, several at once.

    depth: how many are waiting or being made. What `make` raises is raised by `take`.
    """

    def __init__(self, items: Iterator[Item], make: Callable[[Item], Made], num_threads: int, depth: int) -> None:
        self._items, self._make, self._turn = items, make, threading.Lock()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="ahead")
        self._waiting: list[Future[list[Made]]] = [self._pool.submit(self._next) for _ in range(depth)]

    def __enter__(self) -> "Ahead[Item, Made]":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    @property
    def ended(self) -> bool:
        """Whether everything has been taken."""
        return not self._waiting

    def take(self, seconds: float) -> list[Made]:
        """One that is ready, in whatever order; none where that takes longer, or at the end."""
        done, _ = concurrent.futures.wait(self._waiting, seconds, concurrent.futures.FIRST_COMPLETED)
        ready = next((future for future in self._waiting if future in done), None)
        if ready is None:
            return []
        self._waiting.remove(ready)
        if made := ready.result():
            self._waiting.append(self._pool.submit(self._next))
        return made

    def _next(self) -> list[Made]:
        with self._turn:
            items = list(islice(self._items, 1))
        return [self._make(item) for item in items]
