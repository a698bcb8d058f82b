"""Work that may never come back, in a thread of its own.

In comes a blocking function, out goes what it returns. Unlike the loop's own pool such threads are no scarce places
that one folder on a dead network could take from all others, and nobody waits for them when the program ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_own_thread(work: Callable[[], T], name: str) -> T:
    """Return what `work()` returns, or raise what it raises; whoever is cancelled leaves it behind."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failed = None, None
        try:
            result = work()
        except BaseException as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop has ended without us
            loop.call_soon_threadsafe(tell, result, failed)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await future
