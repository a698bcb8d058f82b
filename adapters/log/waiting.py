"""Who waits for durability, and who wants to hear of it: the half of a log that lives on the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

Durable = Callable[[int], None]
Failed = Callable[[BaseException], None]


class Waiters:
    """Futures by position, and subscribers; used on the loop's thread only."""

    def __init__(self) -> None:
        self._futures: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._subscribers: list[tuple[Durable, Failed | None]] = []

    def wait(self, position: int, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Return a future for when `position` is durable; positions only grow from call to call."""
        future = loop.create_future()
        self._futures.append((position, future))
        return future

    def subscribe(self, durable: Durable, failed: Failed | None) -> Callable[[], None]:
        """Add a subscriber; return the function that removes it."""
        entry = (durable, failed)
        self._subscribers.append(entry)

        def unsubscribe() -> None:
            if entry in self._subscribers:
                self._subscribers.remove(entry)

        return unsubscribe

    def durable(self, head: int) -> None:
        """Release everyone who waited for a position up to `head`, then tell the subscribers."""
        futures = self._futures
        while futures and futures[0][0] <= head:
            future = futures.popleft()[1]
            if not future.done():
                future.set_result(None)
        for durable, _ in tuple(self._subscribers):
            durable(head)

    def failed(self, error: BaseException) -> None:
        """Tell everyone that nothing more becomes durable."""
        while self._futures:
            future = self._futures.popleft()[1]
            if not future.done():
                future.set_exception(error)
        for _, failed in tuple(self._subscribers):
            if failed is not None:
                failed(error)
