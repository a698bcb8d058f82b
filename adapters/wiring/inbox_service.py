"""The inbox, served: what other processes ask of this engine, taken from the log's inbox and answered.

In: an inbox, and the function that answers a request. Out: replies. Waiting for the disk happens in threads, so that nothing in the
folder can hold up the loop; a request is in one hand at a time, and one whose answer cannot be written is taken up again: what was
carried out is known by its id. Before the engine closes it answers what still waits, so that engines that live for a moment serve each other's requests.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from datatask.engine.ports import Inbox
from datatask.engine.runtime.closing import in_own_thread
from datatask.engine.runtime.services import Service, Services
from datatask.schema.messages import AnyRequest, LaunchJob, Reply

INBOX_SECONDS = 0.1
WATCH_SECONDS = 1.0
"""So long one thread watches the folder before it gives a sign of life."""
ANSWERS_AT_ONCE = 4
LAST_SECONDS = 2.0

T = TypeVar("T")
Answer = Callable[[AnyRequest], Awaitable[Reply]]


class Serving:
    """One engine's inbox; `open` begins, `close` answers what is left and ends."""

    def __init__(
        self,
        inbox: Inbox,
        answer: Answer,
        services: Services,
        takes: Callable[[AnyRequest], bool] = lambda _: True,
    ) -> None:
        """`takes` says which requests are for this engine; the others stay in the inbox for the next one."""
        self._inbox = inbox
        self._answer = answer
        self._takes = takes
        self._services = services
        self._hands: dict[str, asyncio.Task[None]] = {}
        self._writing = asyncio.Semaphore(ANSWERS_AT_ONCE)
        self._replies = services.service("the answers of the inbox")
        self._ended = threading.Event()
        self._work: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to look."""
        self._work = self._services.keep("the inbox", self._serve)

    @property
    def busy(self) -> bool:
        """Whether a request is being carried out or answered."""
        return bool(self._hands)

    @property
    def ended(self) -> bool:
        """Whether closing has begun."""
        return self._ended.is_set()

    async def close(self, *, well: bool) -> None:
        """End; an engine that is well answers what waits first, but for launches: their runs would end with it."""
        self._ended.set()
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])
        if well:
            with suppress(Exception):  # the callers ask the next engine
                async with asyncio.timeout(LAST_SECONDS):
                    for request in await self._blocking(self._inbox.pending):
                        if not isinstance(request, LaunchJob):
                            self._take(request)
                    while self._hands:
                        await asyncio.wait(list(self._hands.values()))
        for task in list(self._hands.values()):
            task.cancel()

    async def _serve(self, service: Service) -> None:
        while True:
            for request in await self._news():
                self._take(request)
            service.works()
            if not self._inbox.blocking:
                await asyncio.sleep(INBOX_SECONDS)

    async def _news(self) -> list[AnyRequest]:
        if not self._inbox.blocking:
            return [request for request in self._inbox.pending() if self._takes(request)]
        known = frozenset(self._hands)
        return await in_own_thread(lambda: self._watch(known), "the inbox")

    def _watch(self, known: frozenset[str]) -> list[AnyRequest]:
        """Return the requests that are in no hand, as soon as there are any; in a thread."""
        until = time.monotonic() + WATCH_SECONDS
        while True:
            news = [
                request
                for request in self._inbox.pending()
                if request.id not in known and self._takes(request)
            ]
            if news or time.monotonic() > until or self._ended.wait(INBOX_SECONDS):
                return news

    def _take(self, request: AnyRequest) -> None:
        if request.id not in self._hands:
            task = self._hands[request.id] = asyncio.create_task(self._carry_out(request))
            self._services.mind(task, "the answer to a request")
            task.add_done_callback(lambda _: self._hands.pop(request.id))

    async def _carry_out(self, request: AnyRequest) -> None:
        reply = await self._answer(request)
        async with self._writing:
            try:
                await self._blocking(lambda: self._inbox.answer(reply))
            except Exception as error:
                pause = self._replies.failed(error)
                await asyncio.sleep(pause or 0.0)  # then it is found again, and answered by its id
            else:
                self._replies.works()

    async def _blocking(self, work: Callable[[], T]) -> T:
        return await in_own_thread(work, "the inbox") if self._inbox.blocking else work()
