"""What the engine finds in stores rather than causes: listings at opening, changes afterwards.

In come the stores of mirrored and foreign leaves; out go `listed` and `observed` to the reactor, with as much of
each new value as its repository records. A store that can
be watched tells its changes; a quiet one then costs nothing. One that cannot is listed again, at an interval
that follows how long its listing takes. A listing that fails or is cut short tells nothing: what it would
have deleted is not deleted. It is tried again, its reason is recorded (`RepositoryUnreachable`) and told once.
One that is slow or never ends holds up the tasks that read its store, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial

from datatask.engine.calls import LISTING, error_info, leave_behind
from datatask.engine.core.observations import NOBODY
from datatask.engine.ports import Appeared, Change, Doubtful, Store, Vanished, Write
from datatask.engine.repositories import Repository
from datatask.engine.runtime import Runtime
from datatask.engine.threads import in_own_thread
from datatask.schema.errors import CallerError, DatataskError, TemporaryError

logger = logging.getLogger("datatask.observing")

POLL_SECONDS = 1.0
POLL_SHARE = 0.05
LISTINGS_AT_ONCE = 4
RETRY_SECONDS_MAX = 30.0
PATIENCE_SECONDS = 3.0
"""How long between two tries of a listing before `run` no longer waits for it; and how long one may take before others
go on without it."""
LATE_SECONDS = 10.0
"""A listing that takes longer is told and recorded; one that is known to be slow, when it takes so many times longer."""
LATER = 10
LISTING_SECONDS_MAX = 3600.0
"""A listing that takes longer is given up, and tried again."""
MEMBERS_MAX = 10_000_000
FAIR = 10_000
"""So many members are taken before others have a turn."""
SAID_SECONDS = 60.0
"""How long between two different reasons of one store's trouble that are told."""
WHY_MAX = 1024
CLOSE_SECONDS = 5.0
CALL_OFF_SECONDS = 1.0


class Observer:
    """Keeps the log's view of stores true."""

    def __init__(
        self,
        runtime: Runtime,
        stores: Mapping[str, Store],
        repositories: Mapping[str, Repository],
    ) -> None:
        self._runtime = runtime
        self._stores = stores
        self._repositories = repositories
        self._unwatch: list[Callable[[], None]] = []
        self._watched: set[str] = set()
        self._relisting: dict[str, asyncio.Task[None]] = {}
        self._tried: dict[str, asyncio.Event] = {}
        self._failing: set[str] = set()
        self._known: set[str] = set()
        self._failed: set[str] = set()
        self._said: dict[str, tuple[str, float]] = {}
        self._listings = asyncio.Semaphore(LISTINGS_AT_ONCE)
        self._poller: asyncio.Task[None] | None = None
        self._cost: dict[str, float] = {}

    @property
    def busy(self) -> bool:
        """Whether a listing is under way that may still tell something; not one that keeps failing."""
        return any(leaf not in self._failing for leaf in self._relisting)

    async def open(self) -> None:
        """Watch what can be watched, then list everything; tasks that read a store wait for its listing."""
        self._runtime.look_again = self._look_again
        for leaf, store in self._stores.items():
            stop = store.watch(partial(self._tell, leaf))
            if stop is not None:
                self._unwatch.append(stop)
                self._watched.add(leaf)
        self._runtime.relist = self.relist
        await self.sync(self._stores)
        polled = [leaf for leaf in self._stores if leaf not in self._watched and not self._mirrored(leaf)]
        if polled:
            self._poller = asyncio.create_task(self._poll(polled))

    def _mirrored(self, leaf: str) -> bool:
        return self._runtime.state.leaves[leaf].definition.medium == "mirror"

    async def sync(self, leaves: Mapping[str, Store] | list[str]) -> None:
        """List these stores now; one that fails or is slow is not waited for, and goes on in the background."""
        for leaf in leaves:
            self.relist(leaf)
        for leaf in leaves:
            if leaf in self._relisting:
                await self._tried[leaf].wait()

    def awaited(self) -> list[asyncio.Task[None]]:
        """Return the first listings of stores that are slow: under way, and have not failed."""
        unknown = self._relisting.keys() - self._known - self._failed
        return [self._relisting[leaf] for leaf in unknown]

    async def known(self) -> None:
        """Return when each store has been listed once or has failed to be."""
        while awaited := self.awaited():
            await asyncio.wait(awaited, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)

    def unwatched(self) -> list[str]:
        """Return the leaves whose changes are only seen by listing."""
        return [leaf for leaf in self._stores if leaf not in self._watched]

    def relist(self, leaf: str) -> None:
        """Begin to list a store, unless that is under way."""
        if leaf not in self._relisting:
            self._tried[leaf] = asyncio.Event()
            task = asyncio.create_task(self._list_until_known(leaf))
            self._relisting[leaf] = task
            task.add_done_callback(lambda done: self._listed(leaf, done))

    def _listed(self, leaf: str, task: asyncio.Task[None]) -> None:
        self._relisting.pop(leaf, None)
        self._failing.discard(leaf)
        self._tried[leaf].set()
        if not task.cancelled() and task.exception() is not None:
            self._runtime.fail(task.exception() or RuntimeError(leaf))
        else:
            self._runtime.wake()

    async def _list_until_known(self, leaf: str) -> None:
        wait = 0.2
        while True:
            error = await self._list_in_turn(leaf)
            if error is None:
                self._known.add(leaf)
                self._failed.discard(leaf)
                return
            info = error_info(error)
            self._troubled(
                leaf, str(error) if isinstance(error, DatataskError) else f"{info.type}: {info.message}"
            )
            if wait > PATIENCE_SECONDS:
                self._failing.add(leaf)
            self._failed.add(leaf)
            self._tried[leaf].set()
            self._runtime.wake()
            await asyncio.sleep(wait)
            wait = min(wait * 2, RETRY_SECONDS_MAX)

    async def _list_in_turn(self, leaf: str) -> BaseException | None:
        """List a store when there is a place, which one that is slow gives away; return what went wrong."""
        slow = False

        def go_on() -> None:
            nonlocal slow
            slow = True
            self._listings.release()
            self._tried[leaf].set()

        late = max(LATE_SECONDS, LATER * self._cost.get(leaf, 0.0))
        await self._listings.acquire()
        loop = asyncio.get_running_loop()
        said = f"it has been listed for more than {late:g} s, and is not through"
        timers = (
            loop.call_later(PATIENCE_SECONDS, go_on),
            loop.call_later(late, self._troubled, leaf, said),
        )
        listing = loop.create_task(self._tried_to_list(leaf), name=LISTING + leaf)
        try:
            await asyncio.wait([listing], timeout=LISTING_SECONDS_MAX)
        except asyncio.CancelledError:
            await _call_off(listing)
            raise
        finally:
            for timer in timers:
                timer.cancel()
            if not slow:
                self._listings.release()
        if listing.done():
            return listing.result()
        await _call_off(listing)
        return TemporaryError(
            f"its listing did not end within {LISTING_SECONDS_MAX:g} s", remedy="it is tried again"
        )

    async def _tried_to_list(self, leaf: str) -> BaseException | None:
        try:
            await self._list(leaf)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # a listing that calls sys.exit() is a listing that fails
            if _is_called_off():
                raise
            return error
        return None

    def _troubled(self, leaf: str, why: str) -> None:
        """Record and tell why a store's contents cannot be had; the same reason once, another after a while."""
        runtime, clock = self._runtime, asyncio.get_running_loop().time
        why = why[:WHY_MAX]
        said, at = self._said.get(leaf, ("", 0.0))
        if runtime.failure is not None or why == said or (said and clock() - at < SAID_SECONDS):
            return
        self._said[leaf] = why, clock()
        logger.warning("%s cannot be listed: %s; tasks that read it wait, all else goes on", leaf, why)
        runtime.reactor.unreachable(leaf, why, runtime.now())
        runtime.pump()
        runtime.wake()

    async def _list(self, leaf: str) -> None:
        runtime, store = self._runtime, self._stores[leaf]
        clock = asyncio.get_running_loop().time
        began, listed_at, start = runtime.state.position, runtime.now(), clock()
        identity = await _identity(store)
        members: list[Write] = []
        async for member in store.list():
            members.append(Write(repository=leaf, job=member.job, version=member.version))
            if len(members) % FAIR == 0:
                await asyncio.sleep(0)
            if len(members) > MEMBERS_MAX:
                raise CallerError(
                    f"more than {MEMBERS_MAX} members", remedy="split it (members_max is the limit)"
                )
        if _is_called_off():  # who hears nothing of it is heard no more either
            raise asyncio.CancelledError
        if await _identity(store) != identity:
            raise TemporaryError("the root changed during the listing", remedy="it is listed again")
        self._cost[leaf] = clock() - start
        listing = await self._recorded(leaf, members)
        who = runtime.accepted.get(leaf)
        now, believe = runtime.now(), who is not None
        if runtime.reactor.listed(
            leaf, listing, listed_at, began, now, root=identity, believe=believe, who=who or NOBODY
        ):
            runtime.accepted.pop(leaf, None)
            self._said.pop(leaf, None)
        else:
            self._held(leaf)
        runtime.pump()
        runtime.wake()

    def _held(self, leaf: str) -> None:
        """Tell that a listing is not believed; once, also where it is looked at every second."""
        why = self._runtime.state.leaves[leaf].held
        if self._said.get(leaf, ("", 0.0))[0] != why:
            self._said[leaf] = why, asyncio.get_running_loop().time()
            logger.warning("%s is held: %s; if that is true, run with --accept-loss %s", leaf, why, leaf)

    async def _recorded(self, leaf: str, members: list[Write]) -> list[Write]:
        """Return the members, those that are news with as much of their values as the log records."""
        repository = self._repositories[leaf]
        fresh = self._runtime.reactor.news(leaf, members) if repository.record != "version" else []
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
        runtime = self._runtime
        if runtime.failure is not None:
            return
        match change:
            case Appeared(job=job, version=version):
                write = self._repositories[leaf].observed(job, version)
                runtime.reactor.observed(leaf, job, write, runtime.now())
            case Vanished(job=job):
                runtime.reactor.observed(leaf, job, None, runtime.now())
            case Doubtful(why=why):
                logger.info("%s is listed again: %s", leaf, why)
                self.relist(leaf)
        runtime.pump()
        runtime.wake()

    async def _poll(self, leaves: list[str]) -> None:
        while True:
            cost = sum(self._cost.get(leaf, 0.0) for leaf in leaves)
            await asyncio.sleep(max(POLL_SECONDS, cost / POLL_SHARE))
            await self.sync(leaves)

    async def close(self) -> None:
        """Stop watching and listing."""
        for stop in self._unwatch:
            stop()
        tasks = [*self._relisting.values(), *([self._poller] if self._poller else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)


async def _call_off(listing: asyncio.Task[BaseException | None]) -> None:
    """Cancel a listing; one that goes on all the same is left behind."""
    listing.cancel()
    await asyncio.wait([listing], timeout=CALL_OFF_SECONDS)
    if not listing.done():
        logger.warning("%s does not let itself be called off; it is left behind", listing.get_name())
        leave_behind(listing)


def _is_called_off() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _identity(store: Store) -> str:
    """Ask where a store's root is; a disk that is gone may never answer."""
    if getattr(store, "blocking", False):
        return await in_own_thread(store.identity, f"the root of {store!r:.80}")
    return store.identity()
