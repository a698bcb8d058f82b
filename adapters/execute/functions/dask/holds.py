"""What keeps runs at a Dask scheduler, and how it is let go of: holds on their keys, and locks that say that they have begun.

In: runs that are handed over, found, or over for good. Out: messages to the scheduler. A hold is the wish for a key of a client that is
never connected, one for each log; a lock has the run's key as its name. Decision 0026 says why. The locks of runs that never began
go later than the others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

from datatask.adapters.execute.functions.dask.runs import DaskRun

UNLOCKS_MAX = 1000
HOLDER = "published-datatask-"
ENDED_SECONDS = 5.0
"""So long the lock of an ended run outlives its hold: where its worker died, Dask may have begun it again elsewhere, and
the question for its lock is on its way."""
BARRED_SECONDS = 30.0
"""What was kept from being begun stays barred so long: a worker may have it in hand, a message may be on its way."""


class Holds:
    """The holds and locks of one connection's runs; `gone` are those to let go of."""

    def __init__(self) -> None:
        self.gone: list[DaskRun] = []
        self._unlocks, self._locks = _by_value(_unlocks), _by_value(_locks)

    def hold(self, client: Any, runs: Iterable[DaskRun]) -> None:
        """Hold these runs' keys, in the message that this client is about to send."""
        for holder, keys in _by_holder(runs).items():
            client._send_to_scheduler({"op": "client-desires-keys", "keys": keys, "client": holder})

    async def locked(self, client: Any) -> set[str]:
        """Return which keys have a lock; none where the scheduler loads no functions."""
        try:
            return set(await client.run_on_scheduler(self._locks))
        except OSError:
            raise
        except Exception:
            return set()

    async def let_go(self, client: Any) -> None:
        """Give up the holds, then the locks: a run that is still held may be begun again by Dask."""
        runs, self.gone = self.gone, []
        for holder, keys in _by_holder(run for run in runs if run.scheduler).items():
            for op, given in (("client-desires-keys", []), ("client-releases-keys", keys)):
                client._send_to_scheduler({"op": op, "keys": given, "client": holder})
        for barred in (False, True):
            keys = [run.key for run in runs if run.claimed and run.barred is barred]
            await self._unlock(client, keys, BARRED_SECONDS if barred else ENDED_SECONDS)

    async def _unlock(self, client: Any, keys: list[str], seconds: float) -> None:
        """Give up locks after so many seconds; by a function at the scheduler, in one call for many."""
        try:
            for at in range(0, len(keys), UNLOCKS_MAX):
                part = keys[at : at + UNLOCKS_MAX]
                await client.run_on_scheduler(self._unlocks, part, seconds, HOLDER)
        except Exception:  # it loads no functions: what is barred stays so
            if seconds == BARRED_SECONDS:
                return
            await asyncio.sleep(seconds)
            for key in keys:
                with contextlib.suppress(KeyError):
                    await client.scheduler.multi_lock_release(id=key)


def _by_holder(runs: Iterable[DaskRun]) -> dict[str, list[str]]:
    holders: dict[str, list[str]] = {}
    for run in runs:
        holders.setdefault(HOLDER + run.spec.identity.partition(".")[0], []).append(run.key)
    return holders


def _unlocks(keys: list[str], seconds: float, holder: str, dask_scheduler: Any) -> None:
    """Release locks, at the scheduler, whose own function takes one at a time; holds too, which may have come late."""

    def release() -> None:
        locks = dask_scheduler.extensions["multi_locks"]
        for key in keys:
            name = holder + key.rsplit("-", 1)[1].split(".")[0]
            if key in dask_scheduler.tasks and name in dask_scheduler.clients:
                dask_scheduler.client_releases_keys([key], name)
            if key in locks.requests:
                locks.release(id=key)
                locks.locks.pop(key, None)

    if seconds:
        dask_scheduler.loop.call_later(seconds, release)
    else:
        release()


def _locks(dask_scheduler: Any) -> list[str]:
    return list(dask_scheduler.extensions["multi_locks"].requests)


def _by_value(function: Callable[..., Any]) -> FunctionType:
    """Return the function as one of no module, which is pickled by value: a scheduler need not have this package."""
    assert isinstance(function, FunctionType)
    alone = FunctionType(function.__code__, {"__builtins__": __builtins__}, function.__name__)
    alone.__module__ = "__main__"
    return alone
