"""Executors as objects of others: made, checked, tied to this process, shut down, and what their futures tell.

In: an executor or what makes one. Out: the same things of each, whatever its library leaves out, raises, or takes its
time for. `pools` decides when.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.functions import workers
from datatask.schema.errors import InvalidValueError, TemporaryError

logger = logging.getLogger("datatask.task")

MOMENTARY = (OSError, TemporaryError)
"""What an executor, or its maker, raises while what it talks to is away."""
DEDICATED = ("parsl",)
"""Packages whose workers serve the program that made the executor, one call at a time, and are no children of it."""

Made = Executor | Callable[[], Executor]


def made_by(maker: Callable[[], Executor]) -> Executor:
    """Return a new executor; `InvalidValueError` where the maker returns something else."""
    made = maker()
    if not isinstance(made, Executor):
        kind = type(made)
        raise InvalidValueError(
            f"the executor's maker returned a {kind.__module__}.{kind.__name__}, which is no executor",
            remedy="have it return a concurrent.futures.Executor",
        )
    return made


def belongs_to_us(pid: int, executor: Executor) -> bool:
    """Whether a worker process of this executor that does one call at a time is there for this program only."""
    if type(executor).__module__.partition(".")[0] in DEDICATED:
        return True
    while pid > 1:
        if pid == os.getpid():
            return True
        fields = proctable.stat_fields(pid)
        pid = int(fields[1]) if fields else 0
    return False


def failure_of(future: Future[Any]) -> BaseException | None:
    """Return what an executor's call failed by, also where the executor has cancelled it."""
    try:
        return future.exception()
    except BaseException as error:
        return error


def is_taken_back(future: Future[Any], what: tuple[str, str]) -> bool:
    """Cancel what has not begun; an executor of others may have no way to."""
    try:
        return not future.running() and bool(future.cancel())
    except Exception as error:
        logger.debug(
            "%s[%s] cannot be taken back from its executor: %s", *what, str(error) or type(error).__name__
        )
        return False


def shut_down(executor: Executor) -> asyncio.Event:
    """Begin to shut an executor down; return what is set when it is over, which may take long where it is of others."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    if isinstance(executor, ProcessPoolExecutor | ThreadPoolExecutor):
        executor.shutdown(wait=False, cancel_futures=True)
        over.set()
        return over

    def work() -> None:
        try:
            waits = "wait" in inspect.signature(executor.shutdown).parameters
            executor.shutdown(**({"wait": False} if waits else {}))
        except Exception as error:
            logger.warning("the %s does not shut down: %s", type(executor).__name__, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(over.set)

    threading.Thread(target=work, name="datatask-executor-shutdown", daemon=True).start()
    return over


def tie(executor: Executor) -> None:
    """Let worker processes end with this one, those that were never given anything too."""
    start = proctable.start_time(os.getpid())
    if isinstance(executor, ProcessPoolExecutor) and start is not None:
        own = getattr(executor, "_initializer", None), getattr(executor, "_initargs", ())
        if own[0] is not workers.stay_with:
            executor._initializer = workers.stay_with
            executor._initargs = (os.getpid(), start, *own)


def maker_of(source: Made) -> Callable[[], Executor] | None:
    """Return what makes an executor like this one, or None when only its owner could."""
    if not isinstance(source, Executor):
        return source
    if type(source) is not ProcessPoolExecutor:
        return None
    names = ("max_workers", "mp_context", "initializer", "initargs", "max_tasks_per_child")
    settings: dict[str, Any] = {name: getattr(source, f"_{name}", None) for name in names}
    settings = {name: value for name, value in settings.items() if value is not None}
    return lambda: ProcessPoolExecutor(**settings)
