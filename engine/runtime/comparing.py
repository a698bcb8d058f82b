"""The slow continuous comparison of watched stores with the state, and the listings of a store on request.

In come names and versions of a store's values, a slice at a time; out go differences as observations, and a warning where
the store should have reported them. Changes that a store cannot report (the target of a link) are taken up without
one; files still being written are left for the next pass. It uses a hundredth of one core. A request to list is answered by a
listing that began after it; one that hangs in user code is abandoned.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from pyroaring import BitMap

from datatask.engine.core.cells import get_at
from datatask.engine.core.store_sync import LOSS_LEAST
from datatask.engine.ports import Appeared, Change, Comparable, Doubtful, Found, Store, Vanished
from datatask.engine.runtime.closing import call_off, in_own_thread
from datatask.engine.runtime.loop import Runtime
from datatask.schema.errors import DatataskError
from datatask.schema.messages import Write

logger = logging.getLogger("datatask.repository")

PAUSE_SECONDS = 5.0
"""The rest between two comparisons of everything."""
REST = 99
"""The rest after a slice, as a multiple of the slice's time."""
REST_SECONDS_MAX = 600.0
SLICE = 500
SETTLE_SECONDS = 10.0
"""The longest wait for reported changes to be processed; after it, the next comparison tries again."""
SUSPECTS_MAX = 100_000
FAIR = 100
SAMPLE = 3

Tell = Callable[[str, Change], None]


class Comparer:
    """Compares the `watched` stores, one after another. `settled(leaf)`: all that the store has reported is in the state."""

    def __init__(
        self,
        runtime: Runtime,
        stores: Mapping[str, Store],
        watched: Mapping[str, object],
        *,
        settled: Callable[[str], bool],
        report: Tell,
    ) -> None:
        self._runtime = runtime
        self._stores = stores
        self._watched = watched
        self._settled = settled
        self._report = report
        self._task: asyncio.Task[None] | None = None
        self._reported: set[tuple[str, str]] | None = None

    def open(self) -> None:
        """Start comparing, if any store is watched."""
        if any(isinstance(store, Comparable) for store in self._stores.values()):
            self._task = self._runtime.services.keep(
                "the comparison of watched stores", lambda service: self._go_on(), ends=True
            )

    def heard(self, leaf: str, job: str) -> None:
        """The store reported a job: earlier looks at it are out of date."""
        if self._reported is not None:
            self._reported.add((leaf, job))

    async def close(self) -> None:
        """Stop comparing."""
        if self._task is not None:
            await call_off(self._task)

    async def _go_on(self) -> None:
        while self._runtime.failure is None:
            await asyncio.sleep(PAUSE_SECONDS)
            for leaf in list(self._watched):
                store = self._stores[leaf]
                if isinstance(store, Comparable):
                    try:
                        if await self._is_in_place(leaf, store) and self._settled(leaf):
                            await self._compare(leaf, store)
                    except (OSError, DatataskError) as error:
                        self._report(leaf, Doubtful(leaf, f"it cannot be compared: {error}"))

    async def _is_in_place(self, leaf: str, store: Comparable) -> bool:
        """Whether what is watched is what is there, also while that is not believed; else it is watched from now on."""
        await identity(store)  # a disk that is gone may never answer: what follows does not wait
        renew: Callable[[], bool] = getattr(self._watched.get(leaf), "renew", lambda: True)
        return renew()

    async def _compare(self, leaf: str, store: Comparable) -> None:
        if suspects := await self._suspects(leaf, store):
            try:
                await self._look_closer(leaf, store, suspects)
            finally:
                self._reported = None

    async def _suspects(self, leaf: str, store: Comparable) -> list[str]:
        """Return the jobs in which the store and the state seem to differ."""
        state, reactor = self._runtime.state, self._runtime.reactor
        clock = asyncio.get_running_loop().time
        began = state.position
        unseen = BitMap(state.leaves[leaf].members(state.masks))
        suspects: list[str] = []
        start = clock()
        names = await in_own_thread(store.names, f"the names in {leaf}")
        await _rest(clock() - start)
        for first in range(0, len(names), SLICE):
            start, some = clock(), names[first : first + SLICE]
            found = await in_own_thread(lambda some=some: store.versions(some), f"the files in {leaf}")  # type: ignore[misc]
            writes = [Write(repository=leaf, job=job, version=version) for job, version in found]
            suspects += reactor.stores.unknown(leaf, writes, by_version=store.tells_versions)
            unseen -= BitMap(state.job_index[job] for job, _ in found if job in state.job_index)
            await _rest(clock() - start)
            if len(suspects) > SUSPECTS_MAX:
                break
        else:
            positions = state.leaves[leaf].positions
            suspects += [state.jobs[job] for job in unseen if get_at(positions, job) <= began]
        return suspects[:SUSPECTS_MAX]

    async def _look_closer(self, leaf: str, store: Comparable, suspects: Sequence[str]) -> None:
        """Check each job again, once all changes reported by the store until then are processed."""
        missed: list[str] = []
        for first in range(0, len(suspects), SLICE):
            some = suspects[first : first + SLICE]
            self._reported = set()
            found = await in_own_thread(
                lambda some=some: [store.inspect(job) for job in some],  # type: ignore[misc]
                f"the files in {leaf}",
            )
            if not await self._is_settled(leaf):
                break
            reported, self._reported = self._reported, None  # which is newer than the look
            fresh = [one for one in found if (leaf, one.job) not in reported]
            different = [one for one in fresh if self._differs(leaf, one, store.tells_versions)]
            missed += [one.job for one in different if self._should_be_known(leaf, one)]
            if sum(one.version is None for one in different) > LOSS_LEAST:
                self._report(
                    leaf, Doubtful(leaf, "many members are gone")
                )  # a listing knows what is credible
                break
            await self._take_up(leaf, different)
        if missed:
            self._alarm(leaf, missed)

    def _should_be_known(self, leaf: str, found: Found) -> bool:
        changed = found.version is not None and self._runtime.reactor.stores.is_surely_member(leaf, found.job)
        return found.told and (found.known or not changed)

    async def _is_settled(self, leaf: str) -> bool:
        clock = asyncio.get_running_loop().time
        until = clock() + SETTLE_SECONDS
        while not self._settled(leaf) and clock() < until:
            await asyncio.sleep(0.02)
        return self._settled(leaf) and self._runtime.failure is None

    def _differs(self, leaf: str, found: Found, by_version: bool) -> bool:
        reactor = self._runtime.reactor
        if not found.finished:
            return False
        if found.version is None:
            return reactor.stores.is_surely_member(leaf, found.job)
        write = Write(repository=leaf, job=found.job, version=found.version)
        return bool(reactor.stores.unknown(leaf, [write], by_version=by_version))

    async def _take_up(self, leaf: str, different: Sequence[Found]) -> None:
        for number, (job, version, *_) in enumerate(different, 1):
            self._report(leaf, Vanished(leaf, job) if version is None else Appeared(leaf, job, version))
            if number % FAIR == 0:
                await asyncio.sleep(0)

    def _alarm(self, leaf: str, missed: Sequence[str]) -> None:
        sample = ", ".join(missed[:SAMPLE])
        logger.warning(
            "%s: %d change%s the file system did not report, found by comparing all of it: %s%s; they are recorded now",
            leaf, len(missed), "" if len(missed) == 1 else "s", sample, " …" if len(missed) > SAMPLE else "",
        )  # fmt: skip
        runtime = self._runtime
        runtime.reactor.stores.missed(leaf, missed, runtime.now())
        runtime.pump()
        runtime.wake()


async def identity(store: Store) -> str:
    """Locate a store's root; a missing disk may never answer."""
    if getattr(store, "blocking", False):
        return await in_own_thread(store.identity, f"the root of {store!r:.80}")
    return store.identity()


async def _rest(seconds: float) -> None:
    await asyncio.sleep(min(REST * seconds, REST_SECONDS_MAX))


class Look:
    """The listing of one store: the number of requests, and the number of answered requests."""

    def __init__(self) -> None:
        self.asked = 0
        self.begun = 0
        self.answered = 0
        self.listed = 0
        self.lost = 0
        self.failed = False
        self.reported: set[str] = set()
        self.task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def begin(self) -> None:
        """Begin a listing: it answers the requests so far; later reports are newer than it."""
        self.begun = self.asked
        self.reported = set()

    def answer(self, number: int) -> None:
        """Mark this number of requests as answered: listed, failed, or left to the background."""
        self.answered = max(self.answered, number)
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, number: int) -> None:
        """Wait until this number of requests is answered; return at once while a retry is pending."""
        while self.answered < number and not self.failed:
            await self._changed.wait()


async def call_off_listing(listing: asyncio.Task[BaseException | None]) -> None:
    """Cancel a listing; abandon one that ignores the cancellation."""
    if not await call_off(listing):
        logger.warning("%s does not let itself be called off; it is left behind", listing.get_name())


def is_called_off() -> bool:
    """Whether the present task is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
