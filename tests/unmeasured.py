"""Long work in processes of its own, without the measuring of coverage, which would take most of the time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

_MEASURED = ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")


@contextmanager
def unmeasured(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of fresh processes that nobody measures."""
    kept = {name: os.environ.pop(name) for name in _MEASURED if name in os.environ}
    try:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            yield pool
    finally:
        os.environ.update(kept)
