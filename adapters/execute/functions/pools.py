"""Executors as places with a number of slots: who is in, who waits, and what to do when one breaks.

In: items to submit, from the runners of all tasks that share the executor. Out: each item's `done(future)` on
the event loop. No more is submitted than there are slots; where their number is not known, one more than ran at once.
A broken executor is made anew by its maker; what was in it is suspect and is let in again alone, so that the one
that breaks it is found. An executor that cannot be made anew is given up: `Item.unusable`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, ClassVar, Protocol

from datatask.adapters.execute.base.pressure import is_momentary
from datatask.adapters.execute.functions.making import (
    MOMENTARY,
    Made,
    belongs_to_us,
    failure_of,
    is_taken_back,
    made_by,
    maker_of,
    shut_down,
    tie,
)
from datatask.engine.runtime.calls import error_info
from datatask.schema.errors import InvalidValueError

logger = logging.getLogger("datatask.task")

SUSPECTS_MAX = 10_000
SHUTDOWN_SECONDS = 5.0


class Item(Protocol):
    """One run on its way through a pool."""

    key: tuple[str, str]
    begun: bool
    place: tuple[int, int]

    def prepare(self) -> None:
        """Get ready; raises what keeps it from being sent."""

    def submit(self, executor: Executor) -> Future[Any]:
        """Submit it; raises what the executor does."""

    def done(self, future: Future[Any]) -> None:
        """Take the result; called on the loop."""

    def failed(self, error: BaseException) -> None:
        """It cannot be sent, or there is no executor."""

    def refused(self, error: BaseException) -> None:
        """The executor does not take it for the moment, and has nothing of it."""

    def unusable(self, why: str) -> None:
        """The executor takes nothing any more, neither this nor another item."""


class Pool:
    """One executor, given as an object or as what makes one; shared by the tasks that name the same."""

    _pools: ClassVar[dict[int, Pool]] = {}

    def __init__(self, source: Made) -> None:
        self.source = source
        self._make = maker_of(source)
        self._executor: Executor | None = source if isinstance(source, Executor) else None
        self._ours = False
        self._tied = False
        self._users = 0
        self._waiting: deque[Item] = deque()
        self._inside: dict[Item, Future[Any]] = {}
        self._suspects: set[tuple[str, str]] = set()
        self._alone = self._closed = False
        self._breaking: set[Item] = set()
        self._dead = ""
        self._most = 0

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
            assert self._make is not None  # an object is never dropped
            self._executor, self._ours = made_by(self._make), True
        if not self._tied:
            self._tied = True
            tie(self._executor)
        return self._executor

    @property
    def threads(self) -> bool:
        """Whether its workers are threads of this process."""
        return isinstance(self.executor, ThreadPoolExecutor)

    @property
    def remakes(self) -> bool:
        """Whether a broken executor can be made anew."""
        return self._make is not None

    @property
    def slots(self) -> int | None:
        """How many items fit at a time; None where the executor does not tell."""
        for name in ("_max_workers", "max_workers"):
            workers = getattr(self.executor, name, None)
            if isinstance(workers, int) and workers > 0:
                return workers
        return None

    def owns(self, pid: int) -> bool:
        """Whether a worker process that does one call at a time is there for this program only."""
        return self._executor is not None and belongs_to_us(pid, self._executor)

    def attach(self) -> None:
        """One more user; the running loop is the pool's from now on."""
        if self._users == 0:
            self._loop = asyncio.get_running_loop()
        self._users += 1

    async def detach(self) -> None:
        """One user less; with the last one an executor that was made here is shut down."""
        self._users -= 1
        if self._users > 0:
            return
        self._waiting.clear()
        self._inside.clear()
        self._suspects.clear()
        self._alone = self._closed = False
        self._dead, self._most = "", 0
        Pool._pools.pop(id(self.source), None)
        if self._ours and self._executor is not None:
            executor, self._executor, self._ours, self._tied = self._executor, None, False, False
            over = shut_down(executor)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), SHUTDOWN_SECONDS)

    # --- items ------------------------------------------------------------------------------------

    def put(self, item: Item) -> None:
        """Let the item in as soon as there is a slot."""
        if self._dead:
            item.unusable(self._dead)
            return
        self._waiting.append(item)
        self._pump()

    def withdraw(self, item: Item) -> bool:
        """Take out an item that has not begun; whether that was so."""
        if item in self._waiting:
            self._waiting.remove(item)
            return True
        if item.begun:
            return False
        future = self._inside.get(item)
        if future is not None and is_taken_back(future, item.key):
            self._leave(item)
            return True
        return False

    def close(self) -> None:
        """Let no item in any more."""
        self._closed = True

    def others(self, item: Item) -> int:
        """Return how many items are inside besides this one."""
        return len(self._inside) - (item in self._inside)

    def begun(self, item: Item, place: tuple[int, int]) -> None:
        """A worker has begun an item: another one may fit. What it did before in this `place`, pid and thread, is over."""
        item.begun, item.place = True, place
        self._most = max(self._most, self._running())
        self._pump()

    def gone(self, pid: int) -> None:
        """A worker process has ended: what the others run is as much as runs at once now."""
        self._most = self._running(without=pid)

    def _running(self, without: int = 0) -> int:
        return len({item.place for item in self._inside if item.begun and item.place[0] != without})

    def give_up(self, item: Item, *, gone: bool = False) -> None:
        """Stop waiting for an item that cannot be stopped: the slot of a thread is replaced until it returns.

        That of a worker process is free again when it is `gone`.
        """
        if item in self._inside and (gone or isinstance(self._executor, ThreadPoolExecutor)):
            del self._inside[item]
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
            if self._alone or (suspect and self._inside) or not self._ready():
                return
            if not self._waiting or self._is_full():
                return
            item = self._waiting.popleft()
            self._alone = suspect
            self._submit(item)

    def _ready(self) -> bool:
        """Whether there is an executor; without one the first that waits hears why."""
        try:
            return self.executor is not None
        except Exception as error:
            item = self._waiting.popleft()
            if is_momentary(error) or isinstance(error, MOMENTARY):
                item.refused(error)
            else:
                item.failed(error)
            self._pump()
            return False

    def _is_full(self) -> bool:
        slots = self.slots
        if slots is None:
            return self._running() + sum(not item.begun for item in self._inside) > self._most
        return len(self._inside) >= slots

    def _submit(self, item: Item, again: bool = True) -> None:
        try:
            item.prepare()
        except Exception as error:
            self._alone = False
            item.failed(error)
            return
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
        elif not isinstance(error, MOMENTARY):
            # It is broken while idle, or shut down: nothing was begun.
            if self._make is not None and again:
                self._drop_executor()
                self._submit(item, again=False)
            else:
                self._give_up_executor(item, error)
            return
        self._alone = False
        item.refused(error)

    def _give_up_executor(self, item: Item, error: Exception) -> None:
        waiting = [item, *self._waiting]
        self._waiting.clear()
        self._alone = False
        made = "a new one takes nothing either" if self.remakes else "it cannot be made anew"
        remedy = "" if self.remakes else "; pass a function that makes the executor instead of the executor"
        info = error_info(error)
        why = " ".join(info.message.partition("\n")[0][:200].split())
        what = f"{type(self._executor).__name__} takes nothing any more ({info.type}: {why}), and {made}"
        self._dead = f"the {what}{remedy}"
        for each in waiting:
            each.unusable(self._dead)

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
        inside = self._inside.get(item) is future
        if inside:
            if isinstance(failure_of(future), BrokenExecutor):
                self._broken(item)
            else:
                self._suspects.discard(item.key)
            self._leave(item)
        if inside or not future.cancelled():
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
        if self._make is None or self._executor is None:
            return  # the next submission tells whether it is of use
        executor, self._executor, self._tied = self._executor, None, False
        if self._ours:
            shut_down(executor)
