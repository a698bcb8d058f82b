"""What the engine finds in stores rather than causes: listings at opening, changes afterwards.

In come the stores of mirrored and foreign leaves; out go `listed` and `observed` to the reactor, with as much of
each new value as its repository records. A store that can be watched tells its changes, and is compared with the
state now and then (`comparing`). One that cannot is listed again, at an interval that follows how long its listing
takes. Who has a doubt is answered by a listing that began later. A listing that fails or is cut short tells nothing:
what it would have deleted is not deleted. It is tried again, its reason is recorded (`RepositoryUnreachable`) and told
once. One that is slow or never ends holds up the tasks that read its store, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial

from datatask.engine.core.store_sync import NO_ACTOR
from datatask.engine.ports import Appeared, Change, Comparable, Doubtful, Observable, Store, Vanished
from datatask.engine.runtime.calls import LISTING, error_info
from datatask.engine.runtime.closing import CALL_OFF_SECONDS, call_off, in_own_thread
from datatask.engine.runtime.comparing import Comparer, Look, call_off_listing, identity, is_called_off
from datatask.engine.runtime.loop import Runtime
from datatask.schema.errors import DatataskError, InvalidValueError, TemporaryError
from datatask.schema.messages import Write

logger = logging.getLogger("datatask.repository")

POLL_SECONDS = 1.0
POLL_SHARE = 0.05
LISTINGS_AT_ONCE = 4
AGAIN_SECONDS = 0.05
"""The least rest between two listings of a store that was in doubt again meanwhile; else as long as a listing takes."""
RETRY_SECONDS_MAX = 30.0
PATIENCE_SECONDS = 3.0
"""How long between two tries of a listing before `run` no longer waits for it; and how long one may take before others
go on without it."""
LATE_SECONDS = 10.0
"""A listing that takes longer is reported and recorded; one that is known to be slow, at this multiple of its time."""
LATER = 10
LISTING_SECONDS_MAX = 3600.0
"""A listing that takes longer is cancelled and retried."""
MEMBERS_MAX = 10_000_000
FAIR = 10_000
"""The number of members processed before the loop yields."""
SAID_SECONDS = 60.0
"""The least time between two reports of different troubles of one store."""
WHY_MAX = 1024


class Observer:
    """Keeps the state in agreement with the stores."""

    def __init__(
        self,
        runtime: Runtime,
        stores: Mapping[str, Store],
        repositories: Mapping[str, Observable],
    ) -> None:
        self._runtime = runtime
        self._stores = stores
        self._repositories = repositories
        self._unwatch: dict[str, Callable[[], None]] = {}
        self._relisting: dict[str, Look] = {}
        self._failing: set[str] = set()
        self._known: set[str] = set()
        self._failed: set[str] = set()
        self._said: dict[str, tuple[str, float]] = {}
        self._listings = asyncio.Semaphore(LISTINGS_AT_ONCE)
        self._poller: asyncio.Task[None] | None = None
        self._cost: dict[str, float] = {}
        self._comparer = Comparer(runtime, stores, self._unwatch, settled=self._is_settled, report=self._tell)

    @property
    def busy(self) -> bool:
        """Whether stores have reported changes that are not processed yet, or are being listed; not one that keeps failing."""
        return any(leaf not in self._failing for leaf in self._relisting) or self._is_behind()

    def _is_behind(self) -> bool:
        return any(getattr(self._stores[leaf], "behind", False) for leaf in self._unwatch)

    async def open(self) -> None:
        """Watch the stores that support it, then list all; a task waits for the listings of its stores."""
        self._runtime.look_again = self._look_again
        for leaf in self._stores:
            self._watch(leaf)
        self._runtime.relist = self.relist
        await self.sync(self._stores)
        if not all(map(self._mirrored, self._stores)):
            self._poller = self._runtime.services.keep(
                "the listing of folders and stores", lambda service: self._poll()
            )
        self._comparer.open()

    def _watch(self, leaf: str) -> None:
        if (stop := self._stores[leaf].watch(partial(self._tell, leaf))) is not None:
            self._unwatch[leaf] = stop

    def _mirrored(self, leaf: str) -> bool:
        return self._runtime.state.leaves[leaf].definition.medium == "mirror"

    def _is_settled(self, leaf: str) -> bool:
        """Whether the state agrees with what the store reported: it has been listed, and no doubt or notice is left."""
        known = leaf in self._known and leaf not in self._relisting
        state = self._runtime.state.leaves[leaf]
        return known and not (state.held or state.trouble or getattr(self._stores[leaf], "behind", False))

    async def sync(self, leaves: Mapping[str, Store] | list[str]) -> None:
        """List these stores now; a failing or slow listing continues in the background."""
        for leaf in leaves:
            self.relist(leaf)
        asked = [(look, look.asked) for leaf in leaves if (look := self._relisting.get(leaf)) is not None]
        for look, number in asked:
            await look.until(number)

    def awaited(self) -> list[asyncio.Task[None]]:
        """Return the first listings of stores that are slow: under way, and have not failed."""
        unknown = self._relisting.keys() - self._known - self._failed
        return [task for leaf in unknown if (task := self._relisting[leaf].task) is not None]

    async def known(self) -> None:
        """Return when each store has been listed once or has failed to be."""
        while awaited := self.awaited():
            await asyncio.wait(awaited, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)

    def unwatched(self) -> list[str]:
        """Return the leaves whose changes only a listing shows."""
        return [leaf for leaf in self._stores if not self._is_watched(leaf)]

    def _is_watched(self, leaf: str) -> bool:
        stop = self._unwatch.get(leaf)
        return stop is not None and not getattr(stop, "deaf", False)

    def relist(self, leaf: str) -> Look:
        """Have a store listed, by a listing that begins after this."""
        look = self._relisting.get(leaf)
        if look is None:
            look = self._relisting[leaf] = Look()
            look.task = asyncio.create_task(self._list_until_known(leaf, look))
            look.task.add_done_callback(partial(self._listed, leaf, look))
        look.asked += 1
        return look

    def _listed(self, leaf: str, look: Look, task: asyncio.Task[None]) -> None:
        if self._relisting.get(leaf) is look:
            del self._relisting[leaf]
        self._failing.discard(leaf)
        look.answer(look.asked)
        if not task.cancelled() and task.exception() is not None:
            self._runtime.fail(task.exception() or RuntimeError(leaf))
        else:
            self._runtime.wake()

    async def _list_until_known(self, leaf: str, look: Look) -> None:
        wait = 0.2
        while True:
            error = await self._list_in_turn(leaf, look)
            if error is None:
                look.listed = look.begun
                look.answer(look.begun)
                self._known.add(leaf)
                self._failed.discard(leaf)
                self._failing.discard(leaf)
                if look.begun == look.asked:
                    del self._relisting[leaf]  # who asks from now on is answered by another listing
                    return
                wait = 0.2
                await asyncio.sleep(min(max(AGAIN_SECONDS, self._cost.get(leaf, 0.0)), RETRY_SECONDS_MAX))
                continue
            info = error_info(error)
            self._troubled(
                leaf, str(error) if isinstance(error, DatataskError) else f"{info.type}: {info.message}"
            )
            if wait > PATIENCE_SECONDS:
                self._failing.add(leaf)
            self._failed.add(leaf)
            self._runtime.wake()
            look.failed = True
            look.answer(look.begun)
            await asyncio.sleep(wait)
            look.failed = False
            wait = min(wait * 2, RETRY_SECONDS_MAX)

    async def _list_in_turn(self, leaf: str, look: Look) -> BaseException | None:
        """List a store when there is a place, which one that is slow gives away; return what went wrong."""
        slow = False

        def go_on() -> None:
            nonlocal slow
            slow = True
            self._listings.release()
            look.answer(look.asked)

        late = max(LATE_SECONDS, LATER * self._cost.get(leaf, 0.0))
        await self._listings.acquire()
        loop = asyncio.get_running_loop()
        said = f"it has been listed for more than {late:g} s, and is not through"
        timers = (
            loop.call_later(PATIENCE_SECONDS, go_on),
            loop.call_later(late, self._troubled, leaf, said),
        )
        listing = loop.create_task(self._tried_to_list(leaf, look), name=LISTING + leaf)
        try:
            await asyncio.wait([listing], timeout=LISTING_SECONDS_MAX)
        except asyncio.CancelledError:
            await call_off_listing(listing)
            raise
        finally:
            for timer in timers:
                timer.cancel()
            if not slow:
                self._listings.release()
        if listing.done():
            return listing.result()
        await call_off_listing(listing)
        return TemporaryError(
            f"its listing did not end within {LISTING_SECONDS_MAX:g} s", remedy="it is tried again"
        )

    async def _tried_to_list(self, leaf: str, look: Look) -> BaseException | None:
        try:
            await self._list(leaf, look)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # a listing that calls sys.exit() is a listing that fails
            if is_called_off():
                raise
            return error
        return None

    def _troubled(self, leaf: str, why: str) -> None:
        """Record and report why a store cannot be listed; the same reason once, another one after a while."""
        runtime, clock = self._runtime, asyncio.get_running_loop().time
        why = why[:WHY_MAX]
        said, at = self._said.get(leaf, ("", 0.0))
        if runtime.failure is not None or why == said or (said and clock() - at < SAID_SECONDS):
            return
        self._said[leaf] = why, clock()
        logger.warning("%s cannot be listed: %s; tasks that read it wait, all others continue", leaf, why)
        runtime.reactor.stores.unreachable(leaf, why, runtime.now())
        runtime.pump()
        runtime.wake()

    async def _list(self, leaf: str, look: Look) -> None:
        runtime, store = self._runtime, self._stores[leaf]
        clock = asyncio.get_running_loop().time
        look.begin()
        began, listed_at, start = runtime.state.position, runtime.now(), clock()
        root = await identity(store)
        members: list[Write] = []
        async for member in store.list():
            members.append(Write(repository=leaf, job=member.job, version=member.version))
            if len(members) % FAIR == 0:
                await asyncio.sleep(0)
            if len(members) > MEMBERS_MAX:
                raise InvalidValueError(
                    f"more than {MEMBERS_MAX} members", remedy="split it (members_max is the limit)"
                )
        if is_called_off():  # who hears nothing of it is heard no more either
            raise asyncio.CancelledError
        if await identity(store) != root:
            raise TemporaryError("the root changed during the listing", remedy="it is listed again")
        self._cost[leaf] = clock() - start
        listing = await self._recorded(leaf, await self._finished(leaf, members))
        who = runtime.accepted.get(leaf)
        now, believe = runtime.now(), who is not None
        if runtime.reactor.stores.listed(
            leaf,
            listing,
            listed_at,
            began,
            now,
            root=root,
            reported=look.reported,
            believe=believe,
            who=who or NO_ACTOR,
        ):
            runtime.accepted.pop(leaf, None)
            self._said.pop(leaf, None)
        else:
            self._held(leaf)
        runtime.pump()
        runtime.wake()

    def _held(self, leaf: str) -> None:
        """Report an implausible listing, once."""
        why = self._runtime.state.leaves[leaf].held
        if self._said.get(leaf, ("", 0.0))[0] != why:
            self._said[leaf] = why, asyncio.get_running_loop().time()
            logger.warning("%s is held: %s; if that is true, run with --accept-loss %s", leaf, why, leaf)

    async def _finished(self, leaf: str, members: list[Write]) -> list[Write]:
        """Return the members without new ones that are still being written; these count once complete."""
        store, state = self._stores[leaf], self._runtime.state
        if not isinstance(store, Comparable):
            return members
        fresh = [write.job for write in members if not state.contains(leaf, write.job)]
        if not fresh:
            return members
        written = await in_own_thread(lambda: store.being_written(fresh), f"the new files in {leaf}")
        return [write for write in members if write.job not in written] if written else members

    async def _recorded(self, leaf: str, members: list[Write]) -> list[Write]:
        """Return the members; new ones with as much of their values as the log records."""
        repository = self._repositories[leaf]
        fresh = self._runtime.reactor.stores.news(leaf, members) if repository.record != "version" else []
        if not fresh:
            return members

        def read() -> dict[str, Write]:
            return {write.job: repository.observed(write.job, write.version) for write in fresh}

        mirrored = repository.medium == "mirror"
        found = read() if mirrored else await in_own_thread(read, f"the values in {leaf}")
        return [found.get(write.job, write) for write in members]

    async def _look_again(self, leaf: str, job: str) -> None:
        """Tell what a store holds now; one that cannot say is listed, when it can be."""
        try:
            version = await self._stores[leaf].version(job)
        except Exception as error:
            self._tell(leaf, Doubtful(leaf, f"{type(error).__name__}: {error}"))
            return
        self._tell(leaf, Vanished(leaf, job) if version is None else Appeared(leaf, job, version))

    def _tell(self, leaf: str, change: Change) -> None:
        """Hand a change on; a store that is called back here cannot know what to do should that fail."""
        try:
            self._taken(leaf, change)
        except Exception as error:
            self._runtime.services.broken(f"the notice of a change in {leaf}", error)

    def _taken(self, leaf: str, change: Change) -> None:
        runtime = self._runtime
        if runtime.failure is not None:
            return
        look = self._relisting.get(leaf)
        if not isinstance(change, Doubtful):
            self._comparer.heard(leaf, change.job)
            if runtime.state.leaves[leaf].held or (look is not None and look.lost > look.listed):
                self.relist(leaf)  # it may be another folder's: what is there is believed or not as a whole
                return
            if look is not None:
                look.reported.add(change.job)
        match change:
            case Appeared(job=job, version=version):
                write = self._repositories[leaf].observed(job, version)
                runtime.reactor.stores.observed(leaf, job, write, runtime.now())
            case Vanished(job=job):
                runtime.reactor.stores.observed(leaf, job, None, runtime.now())
            case Doubtful(why=why, lost=lost):
                logger.info("%s is listed again: %s", leaf, why)
                look = self.relist(leaf)
                look.lost = look.asked if lost else look.lost
        runtime.pump()
        runtime.wake()

    async def _poll(self) -> None:
        clock = asyncio.get_running_loop().time
        due: dict[str, float] = {}
        while True:
            polled = [leaf for leaf in self.unwatched() if not self._mirrored(leaf)]
            begun = clock()
            for leaf in polled:
                due.setdefault(leaf, begun + self._interval(leaf))
            cost = sum(self._cost.get(leaf, 0.0) for leaf in polled)
            await asyncio.sleep(max(POLL_SECONDS, cost / POLL_SHARE))
            for leaf in polled:
                if leaf not in self._unwatch:  # its folder may have been made, or the limit raised
                    self._watch(leaf)
            now = clock()
            polled = [leaf for leaf in polled if due[leaf] <= now]
            due.update((leaf, now + self._interval(leaf)) for leaf in polled)
            await self.sync(polled)

    def _interval(self, leaf: str) -> float:
        """Return after how long a store is listed again at the earliest, which a store may say."""
        return float(getattr(self._stores[leaf], "poll_seconds", 0.0))

    async def close(self) -> None:
        """Stop watching, comparing and listing."""
        for stop in self._unwatch.values():
            stop()
        tasks = [look.task for look in self._relisting.values() if look.task is not None]
        tasks += [self._poller] if self._poller else []
        await call_off(*tasks, seconds=2 * CALL_OFF_SECONDS)
        await self._comparer.close()
