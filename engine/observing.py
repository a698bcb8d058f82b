"""What the engine finds in stores rather than causes: listings at opening, changes afterwards.

In come the stores of mirrored and foreign leaves; out go `listed` and `observed` to the reactor, with as much of
each new value as its repository records. A store that can
be watched tells its changes; a quiet one then costs nothing. One that cannot is listed again, at an interval
that follows how long its listing takes. A listing that fails or is cut short tells nothing: what it would
have deleted is not deleted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial

from datatask.engine.core.observations import NOBODY
from datatask.engine.ports import Appeared, Change, Doubtful, Store, Vanished, Write
from datatask.engine.repositories import Repository
from datatask.engine.runtime import Runtime
from datatask.schema.errors import DatataskError

logger = logging.getLogger("datatask.observing")

POLL_SECONDS = 1.0
POLL_SHARE = 0.05
LISTINGS_AT_ONCE = 4
RETRY_SECONDS_MAX = 30.0
PATIENCE_SECONDS = 3.0
"""How long between two tries of a listing before `run` no longer waits for it."""


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
        """List these stores now; one that fails is not waited for, and tried again in the background."""
        for leaf in leaves:
            self.relist(leaf)
        for leaf in leaves:
            if leaf in self._relisting:
                await self._tried[leaf].wait()

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
            try:
                async with self._listings:
                    await self._list(leaf)
                return
            except DatataskError as error:
                logger.warning("%s cannot be listed: %s", leaf, error)
            except Exception as error:
                logger.warning("%s cannot be listed: %s: %s", leaf, type(error).__name__, error)
            if wait > PATIENCE_SECONDS:
                self._failing.add(leaf)
            self._tried[leaf].set()
            self._runtime.wake()
            await asyncio.sleep(wait)
            wait = min(wait * 2, RETRY_SECONDS_MAX)

    async def _list(self, leaf: str) -> None:
        runtime, store = self._runtime, self._stores[leaf]
        clock = asyncio.get_running_loop().time
        began, listed_at, start = runtime.state.position, runtime.now(), clock()
        identity = store.identity()
        members = [
            Write(repository=leaf, job=member.job, version=member.version) async for member in store.list()
        ]
        if store.identity() != identity:
            logger.warning("%s changed its root while it was listed; listing it again", leaf)
            raise DatataskError("the root changed during the listing", where=leaf)
        self._cost[leaf] = clock() - start
        listing = await self._recorded(leaf, members)
        who = runtime.accepted.get(leaf)
        now, believe = runtime.now(), who is not None
        if runtime.reactor.listed(
            leaf, listing, listed_at, began, now, root=identity, believe=believe, who=who or NOBODY
        ):
            runtime.accepted.pop(leaf, None)
        else:
            logger.warning(
                "%s is held: %s; if that is true, run with --accept-loss %s",
                leaf,
                runtime.state.leaves[leaf].held,
                leaf,
            )
        runtime.pump()
        runtime.wake()

    async def _recorded(self, leaf: str, members: list[Write]) -> list[Write]:
        """Return the members, those that are news with as much of their values as the log records."""
        repository = self._repositories[leaf]
        fresh = self._runtime.reactor.news(leaf, members) if repository.record != "version" else []
        if not fresh:
            return members

        def read() -> dict[str, Write]:
            return {write.job: repository.observed(write.job, write.version) for write in fresh}

        found = read() if repository.medium == "mirror" else await asyncio.to_thread(read)
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
        await asyncio.gather(*tasks, return_exceptions=True)
