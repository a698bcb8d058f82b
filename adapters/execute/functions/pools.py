"""Executors as places with a number of slots: who is in, who waits, and what to do when one breaks.

In: items to submit, from the runners of all tasks that share the executor. Out: each item's `done(future)` on
the event loop. No more is submitted than there are slots, so what is submitted runs. A broken executor is made
anew; what was in it is suspect and is let in again alone, so that the one that breaks it is found.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, ClassVar, Protocol

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.base.pressure import is_momentary
from datatask.adapters.execute.functions import workers
from datatask.schema.errors import InvalidValueError, NotPossibleError

logger = logging.getLogger("datatask.executors")

SUSPECTS_MAX = 10_000
Made = Executor | Callable[[], Executor]


class Item(Protocol):
    """One run on its way through a pool."""

    key: tuple[str, str]

    def submit(self, executor: Executor) -> Future[Any]:
        """Submit it."""

    def done(self, future: Future[Any]) -> None:
        """Take the result; called on the loop."""

    def failed(self, error: BaseException) -> None:
        """It could not be submitted."""


class Pool:
    """One executor, given as an object or as what makes one; shared by the tasks that name the same."""

    _pools: ClassVar[dict[int, Pool]] = {}

    def __init__(self, source: Made) -> None:
        self.source = source
        self._make = _maker(source)
        self._executor: Executor | None = source if isinstance(source, Executor) else None
        self._ours = False
        self._tied = False
        self._users = 0
        self._waiting: deque[Item] = deque()
        self._inside: dict[Item, Future[Any]] = {}
        self._suspects: set[tuple[str, str]] = set()
        self._alone = self._closed = False
        self._breaking: set[Item] = set()

    @classmethod
    def of(cls, source: Made) -> Pool:
        """Return the pool of this executor or maker."""
        if not isinstance(source, Executor) and not callable(source):
            raise InvalidValueError(
                f"{source!r:.80} is no executor",
                remedy="pass a concurrent.futures.Executor or what makes one",
            )
        pool = cls._pools.get(id(source))
        if pool is None:
            pool = cls._pools[id(source)] = cls(source)
        return pool

    # --- the executor -----------------------------------------------------------------------------

    @property
    def executor(self) -> Executor:
        """The executor, made on first use."""
        if self._executor is None:
            if self._make is None:
                raise NotPossibleError(
                    f"the {type(self.source).__name__} is broken and cannot be made again",
                    remedy="pass a function that makes the executor instead of the executor",
                )
            self._executor = self._make()
            self._ours = True
            if not isinstance(self._executor, Executor):
                raise InvalidValueError(f"the executor's maker returned a {type(self._executor).__name__}")
        if not self._tied:
            self._tied = True
            _tie(self._executor)
        return self._executor

    @property
    def threads(self) -> bool:
        """Whether its workers are threads of this process."""
        return isinstance(self.executor, ThreadPoolExecutor)

    @property
    def slots(self) -> int | None:
        """How many items fit at a time; None where the executor does not tell."""
        workers = getattr(self.executor, "_max_workers", None)
        return workers if isinstance(workers, int) and workers > 0 else None

    def attach(self) -> None:
        """One more user; the running loop is the pool's from now on."""
        if self._users == 0:
            self._loop = asyncio.get_running_loop()
        self._users += 1

    def detach(self) -> None:
        """One user less; with the last one an executor that was made here is shut down."""
        self._users -= 1
        if self._users > 0:
            return
        self._waiting.clear()
        self._inside.clear()
        self._suspects.clear()
        self._alone = self._closed = False
        if self._ours and self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor, self._ours, self._tied = None, False, False
        Pool._pools.pop(id(self.source), None)

    # --- items ------------------------------------------------------------------------------------

    def put(self, item: Item) -> None:
        """Let the item in as soon as there is a slot."""
        self._waiting.append(item)
        self._pump()

    def withdraw(self, item: Item) -> bool:
        """Take out an item that has not begun; whether that was so."""
        if item in self._waiting:
            self._waiting.remove(item)
            return True
        future = self._inside.get(item)
        if future is not None and _is_taken_back(future, item):
            self._leave(item)
            return True
        return False

    def hold(self, item: Item) -> bool:
        """Let no item in any more, and take out an item that has not begun; whether that was so."""
        self._closed = True
        return self.withdraw(item)  # what runs cannot be cancelled

    def others(self, item: Item) -> int:
        """Return how many items are inside besides this one."""
        return len(self._inside) - (item in self._inside)

    def give_up(self, item: Item) -> None:
        """Stop waiting for an item whose thread cannot be stopped: its slot is replaced until it returns."""
        if self._inside.pop(item, None) is not None:
            self._change_slots(1)
            self._alone = False
            self._pump()

    def returned(self) -> None:
        """An item that was given up has returned after all."""
        self._change_slots(-1)

    def will_break(self) -> None:
        """A worker is being killed: what is inside will be lost through no fault of its own."""
        self._breaking = set(self._inside)

    def _change_slots(self, by: int) -> None:
        executor = self._executor
        if isinstance(executor, ThreadPoolExecutor):
            executor._max_workers += by  # it starts a thread for a submission while it has fewer than these

    def _pump(self) -> None:
        while self._waiting and not self._closed:
            suspect = self._waiting[0].key in self._suspects
            if self._alone or (suspect and self._inside):
                return
            try:
                slots = self.slots
            except Exception as error:
                self._waiting.popleft().failed(error)
                continue
            if slots is not None and len(self._inside) >= slots:
                return
            item = self._waiting.popleft()
            self._alone = suspect
            self._submit(item)

    def _submit(self, item: Item, again: bool = True) -> None:
        try:
            future = item.submit(self.executor)
        except Exception as error:
            self._not_taken(item, error, again)
            return
        self._inside[item] = future
        future.add_done_callback(lambda future: self._later(item, future))

    def _not_taken(self, item: Item, error: Exception, again: bool) -> None:
        if is_momentary(error):
            self._take_back()
        elif isinstance(error, BrokenExecutor | RuntimeError):
            # It is broken while idle, or shut down: nothing was begun.
            self._drop_executor()
            if again and self._make is not None:
                self._submit(item, again=False)
                return
        self._alone = False
        item.failed(error)

    def _take_back(self) -> None:
        """The machine has no room for a process or a thread of the executor's, which keeps what it was given then."""
        executor = self._executor
        if not isinstance(executor, ProcessPoolExecutor):
            return
        given = [work.future for work in executor._pending_work_items.values()]
        for future in set(given) - set(self._inside.values()):
            future.cancel()
        if not self._inside and self._make is not None:  # what it has begun to be is of no use
            for process in list((executor._processes or {}).values()):
                process.kill()
            self._drop_executor()

    def _later(self, item: Item, future: Future[Any]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._over, item, future)
        except RuntimeError:
            return  # the loop is closed: the engine is gone, the next one accounts for the run

    def _over(self, item: Item, future: Future[Any]) -> None:
        if item in self._inside and not future.cancelled():
            if isinstance(future.exception(), BrokenExecutor):
                self._broken(item)
            else:
                self._suspects.discard(item.key)
        self._leave(item)
        if not future.cancelled():
            item.done(future)
        self._pump()

    def _leave(self, item: Item) -> None:
        self._breaking.discard(item)
        if self._inside.pop(item, None) is not None and self._alone and not self._inside:
            self._alone = False

    def _broken(self, item: Item) -> None:
        innocent = item in self._breaking
        if not innocent and len(self._suspects) < SUSPECTS_MAX:
            self._suspects.add(item.key)
        if getattr(self._executor, "_broken", True):
            self._drop_executor()

    def _drop_executor(self) -> None:
        executor, self._executor, self._tied = self._executor, None, False
        if executor is not None and self._ours:
            executor.shutdown(wait=False)


def _is_taken_back(future: Future[Any], item: Item) -> bool:
    """Cancel what has not begun; an executor of others may have no way to."""
    try:
        return not future.running() and future.cancel()
    except Exception as error:
        logger.warning(
            "%s[%s] cannot be taken back from its executor: %s", *item.key, str(error) or type(error).__name__
        )
        return False


def _tie(executor: Executor) -> None:
    """Let worker processes end with this one, those that were never given anything too."""
    start = proctable.start_time(os.getpid())
    if isinstance(executor, ProcessPoolExecutor) and start is not None:
        own = getattr(executor, "_initializer", None), getattr(executor, "_initargs", ())
        if own[0] is not workers.stay_with:
            executor._initializer = workers.stay_with
            executor._initargs = (os.getpid(), start, *own)


def _maker(source: Made) -> Callable[[], Executor] | None:
    """Return what makes an executor like this one, or None when only its owner could."""
    if not isinstance(source, Executor):
        return source
    if type(source) is not ProcessPoolExecutor:
        return None
    names = ("max_workers", "mp_context", "initializer", "initargs", "max_tasks_per_child")
    settings: dict[str, Any] = {name: getattr(source, f"_{name}", None) for name in names}
    settings = {name: value for name, value in settings.items() if value is not None}
    return lambda: ProcessPoolExecutor(**settings)
