"""Python's garbage collector while engines are open: it looks less often.

In: engines that open and close. Out: the collector's first threshold, raised with the first of them and put back
with the last. A run in flight has some twenty objects that the collector counts, none of which it will ever free:
with thousands in flight it looked through all of them again and again, which was a fifth of the engine's time.
Who has switched the collector off, or set a higher threshold, keeps that.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

THRESHOLD = 5_000
"""Python 3.13 has 2,000 as its own."""

_lock = threading.Lock()
_open: set[object] = set()
_before = 0


def collect_seldom() -> Callable[[], None]:
    """Raise the threshold until the returned function is called; calling that again is fine."""
    global _before
    engine = object()
    with _lock:
        first, *others = gc.get_threshold()
        if not _open:
            _before = first
            if 0 < first < THRESHOLD:
                gc.set_threshold(THRESHOLD, *others)
        _open.add(engine)

    def put_back() -> None:
        with _lock:
            first, *others = gc.get_threshold()
            if engine in _open:
                _open.remove(engine)
                if not _open and first == THRESHOLD:
                    gc.set_threshold(_before, *others)

    return put_back
