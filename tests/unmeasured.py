"""Processes without the measuring of coverage, which takes most of the time of long work.

Measuring also has a lock of its own that an interrupt leaves locked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

_MEASURED = ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")


def plain_environment() -> dict[str, str]:
    """Return this process's environment without what has Python processes measured."""
    return {name: value for name, value in os.environ.items() if name not in _MEASURED}


@contextmanager
def unmeasured(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of fresh processes that nobody measures."""
    kept = {name: os.environ.pop(name) for name in _MEASURED if name in os.environ}
    try:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            yield pool
    finally:
        os.environ.update(kept)
