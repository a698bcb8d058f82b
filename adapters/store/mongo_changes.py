"""The change stream of a collection, followed for as long as an engine is open.

In: a collection. Out: `Appeared` and `Vanished` as others write, and `Doubtful` where some of it may have been missed: the server no longer
has the place where the stream was cut, or the collection was dropped. What was missed is then found by a listing, and its difference is in
the log. The stream begins before the first listing does, and goes on from its last place after a cut. A server without streams is listed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from datatask.adapters.store.mongo_documents import version_of
from datatask.engine.api.repositories import told_invalid
from datatask.engine.ports import Appeared, Change, Doubtful, Vanished
from datatask.schema.values import is_job

logger = logging.getLogger("datatask.repository")

BEGIN_SECONDS = 10.0
"""How long a listing waits for the stream; a stream that begins later has the collection listed again."""
REST_SECONDS = 0.2
REST_SECONDS_MAX = 10.0
WAIT_MS = 1_000
_WITHOUT = frozenset((59, 115, 238, 40324, 40573))
"""Codes of servers that know no change streams: stand-alone ones, and others that only speak MongoDB."""
_LOST = frozenset((9, 136, 222, 237, 260, 280, 286, 10334))
"""Codes for a place that is no longer in the server's log, or cannot be told from there."""
_GONE = frozenset(("drop", "rename", "dropDatabase", "invalidate"))


class Followed(Protocol):
    """The collection."""

    where: str
    repository: str

    async def raw(self) -> Any: ...
    def keep(self, job: str, version: str, document: Any, /) -> None: ...


class Follower:
    """Tells the changes of a collection until it is called; `deaf` where the server tells none."""

    def __init__(self, store: Followed, tell: Callable[[Change], None]) -> None:
        self.deaf = False
        self._store, self._tell = store, tell
        self._place: Any = None
        self._late = False
        self._begun = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._follow(), name=f"changes of {store.where}")

    def __call__(self) -> None:
        """Follow no more."""
        self._task.cancel()

    async def begun(self) -> None:
        """Return when changes are told from now on, or are known not to be; not later than `BEGIN_SECONDS`."""
        try:
            await asyncio.wait_for(self._begun.wait(), BEGIN_SECONDS)
        except TimeoutError:
            self._late = True

    async def _follow(self) -> None:
        rest = REST_SECONDS
        while not self.deaf:
            try:
                await self._followed()
                rest = REST_SECONDS
                continue
            except Exception as error:
                code = getattr(error, "code", None)
                if code in _WITHOUT:
                    self.deaf = True
                    logger.info(
                        "%s tells no changes (MongoDB's code %s): it is listed", self._store.where, code
                    )
                elif code in _LOST and self._place is not None:
                    self._lose("its place in the change stream is lost")
                    continue
                else:
                    logger.debug(
                        "the change stream of %s was cut: %s", self._store.where, type(error).__name__
                    )
            if self.deaf:
                break
            await asyncio.sleep(rest)
            rest = min(2 * rest, REST_SECONDS_MAX)
        self._begun.set()

    def _lose(self, why: str) -> None:
        """Begin anew, and have the collection listed once that has been done."""
        self._place, self._late = None, True
        logger.info("%s: %s", self._store.where, why)

    async def _followed(self) -> None:
        """Follow from the last place until the stream ends."""
        collection = await self._store.raw()
        stream = collection.watch(
            full_document="updateLookup", start_after=self._place, max_await_time_ms=WAIT_MS
        )
        if not asyncio.iscoroutine(stream):  # motor's is opened when it is first asked
            change = await stream.try_next()
        else:
            stream, change = await stream, None
        async with stream:
            self._begun.set()
            if self._late:
                self._late = False
                self._tell(Doubtful(self._store.repository, "changes may have been missed"))
            while stream.alive:
                if change is not None:
                    self._told(change)
                self._place = stream.resume_token
                change = await stream.try_next()
        self._lose("its change stream has ended")

    def _told(self, change: Any) -> None:
        kind, leaf = change["operationType"], self._store.repository
        if kind in _GONE:
            self._tell(Doubtful(leaf, f"the collection tells {kind}", lost=True))
            return
        key = change.get("documentKey")
        job: Any = None if key is None else key["_id"]
        if not is_job(job):
            if job is not None:
                told_invalid(self._store.where, job if isinstance(job, str) else f"{job!r:.160}")
            return
        document = change.get("fullDocument")
        if kind == "delete":
            self._tell(Vanished(leaf, job))
        elif document is not None:  # else it has been deleted since, which is told next
            version = version_of(document.raw)
            self._store.keep(job, version, document)
            self._tell(Appeared(leaf, job, version))
