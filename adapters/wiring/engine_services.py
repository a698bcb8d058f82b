"""Services of an open engine: its inbox is answered, and its log is verified in the background.

In: an inbox and the function that answers a request; an engine over a log in a file. Out: replies; how far the log is known to
hold, and at the first divergence an engine that launches nothing more. Disks are waited for in threads. A request whose
answer could not be written is taken up again and known by its id; a closing engine answers what is still there. Verification
runs in a process of its own, begins after `START_SECONDS` of rest or `START_CPU_SECONDS` of work, and is never waited for.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from datatask.adapters.history.verify.background import BUSY_CORES, BUSY_EVENTS_PER_SECOND, Told
from datatask.adapters.log.faults import damaged
from datatask.adapters.log.kept import KeptWriter
from datatask.engine.api.tasks import Task
from datatask.engine.core.state import FOLD_VERSION
from datatask.engine.ports import Inbox
from datatask.engine.runtime.closing import in_own_thread
from datatask.engine.runtime.loop import Runtime
from datatask.engine.runtime.services import Service, Services
from datatask.schema.events import CheckpointWritten
from datatask.schema.messages import AnyRequest, LaunchJob, Reply
from datatask.schema.troubles import Divergence

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

    async def caught_up(self) -> None:
        """Return when the requests that are in the inbox by now are answered, or after `LAST_SECONDS`."""
        with suppress(Exception):  # of the inbox: its service reports that, and of the time
            async with asyncio.timeout(LAST_SECONDS):
                for request in await self._blocking(self._inbox.pending):
                    if self._takes(request):
                        self._take(request)
                while self._hands:
                    await asyncio.wait(list(self._hands.values()))

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


PRINTING_SECONDS = 1.0


class Printing:
    """Keeps what functions of this process have printed so far, while they run."""

    def __init__(self, runtime: Runtime, tasks: Iterable[Task], kept: KeptWriter) -> None:
        self._tasks, self._kept = list(tasks), kept
        self._sizes: dict[tuple[int, str], int] = {}
        self._work = runtime.services.keep("what functions print", self._look)

    async def close(self) -> None:
        """Look no more."""
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)

    async def _look(self, service: Service) -> None:
        while True:
            await asyncio.sleep(PRINTING_SECONDS)
            sizes: dict[tuple[int, str], int] = {}
            for task in self._tasks:
                printing = getattr(task.runner, "printing", None)
                for run, printed in printing() if printing is not None else ():
                    fresh = [one for one in printed if self._sizes.get((run, one.stream)) != one.size]
                    sizes.update(((run, one.stream), one.size) for one in printed)
                    if fresh:
                        self._kept.put(run, fresh)
            self._sizes = sizes


logger = logging.getLogger("datatask.engine")

START_SECONDS = 5.0
START_CPU_SECONDS = 20.0
"""The start takes up to half a second of CPU: a busy engine has worked forty times as long before."""
PAUSE_SECONDS = 61.0
"""After so long it is tried again: it needs a process, and a machine that has none to give stops no engine."""
MODULE = "datatask.adapters.history.verify.background"
_REMEDY = "see `datatask verify`; restore the log from a backup"


class Verification:
    """The process that verifies one engine's log; `position` is how far it has come, 0 before it has begun."""

    def __init__(self, runtime: Runtime, path: Path, *, start_seconds: float | None = None) -> None:
        self.position = 0
        self._runtime = runtime
        self._path = path
        self._start_seconds = START_SECONDS if start_seconds is None else start_seconds
        self._service = runtime.services.service("the verification of the log")
        self._process: asyncio.subprocess.Process | None = None
        self._task = asyncio.create_task(self._work(), name="the verification of the log")

    async def close(self) -> None:
        """End it where it is."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        await self._is_time()
        while self._runtime.failure is None:
            try:
                if await self._verified():
                    return
                error: Exception = RuntimeError("its process ended by itself")
            except Exception as caught:
                error = caught
            if self._runtime.failure is None:
                self._service.failed(error, again_seconds=PAUSE_SECONDS)
                await asyncio.sleep(PAUSE_SECONDS)

    async def _is_time(self) -> None:
        """Wait until the engine rests, or has worked for long."""
        opened, seconds = time.process_time(), self._start_seconds
        before, position = opened, self._runtime.state.position
        while True:
            await asyncio.sleep(seconds)
            used, head = time.process_time(), self._runtime.state.position
            rested = (
                used - before < BUSY_CORES * seconds and head - position < BUSY_EVENTS_PER_SECOND * seconds
            )
            if rested or used - opened >= START_CPU_SECONDS:
                return
            before, position = used, head

    async def _verified(self) -> bool:
        """Start the process and hear it; return whether it found a divergence, with which it ends."""
        pipe = asyncio.subprocess.PIPE
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", MODULE, str(self._path),
            stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            async for line in process.stdout:
                told = msgspec.json.decode(line, type=Told)
                self._service.works()
                if told.divergence is not None:
                    self._diverged(told.divergence)
                    return True
                if told.changed:
                    logger.warning("%s", told.changed)
                    continue
                self.position = max(self.position, told.verified)  # it begins again, after a day
                if told.digest:
                    await self._answer(process, told)
            return False
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _answer(self, process: asyncio.subprocess.Process, told: Told) -> None:
        """Vouch for a state in the log, and tell by which event."""
        runtime, event = self._runtime, 0
        if runtime.failure is None and runtime.damage is None and runtime.log.keeps_checkpoints:
            note = CheckpointWritten(
                at=runtime.now(),
                position=told.verified,
                fold_version=FOLD_VERSION,
                sha256=told.digest,
                verified=True,
            )
            event, _ = await runtime.finished(runtime.reactor.tickets.ask([note]))
        assert process.stdin is not None
        process.stdin.write(b"%d\n" % event)
        await process.stdin.drain()

    def _diverged(self, found: Divergence) -> None:
        self._runtime.damaged(
            damaged(f"it is not what was written: {found}", self._path, found.position, _REMEDY)
        )
