"""The logs of a pod's containers, streamed while they run, by few connections for many pods.

In: pods as they change. Out: `Lines` for each container, complete when the pod is over. A stream takes a connection and a
watch of the kubelet's, so there are at most `STREAMS`; where more containers run than that they take turns, each going on
where it was. Whoever's pod is over goes first. What a container said is complete only when a request made after its end
has been answered to its end: a stream that ends may have been cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import deque
from pathlib import Path

from datatask.adapters.execute.kube.connection import Cluster, RefusedError, path_of
from datatask.adapters.execute.kube.lines import Lines
from datatask.adapters.execute.kube.pods import ContainerStatus, Pod
from datatask.adapters.spools import Spool
from datatask.engine.runtime.services import current

logger = logging.getLogger("datatask.pod_manager")

STREAMS = 48
TURN_SECONDS = 5.0
SILENT_SECONDS = 300.0
PAUSE_SECONDS = 0.5
PAUSE_SECONDS_MAX = 10.0
LATE_SECONDS = 120.0
"""So long after its pod's end a log that cannot be had is tried for."""
GONE_SECONDS = 2.0
"""So long after its pod's end a log is asked for again, in whose place the kubelet has words of its own."""
COPY_BYTES = 1 << 20


class PodLogs:
    """What the containers of one run's pod say."""

    __slots__ = ("_logs", "_whole", "attempts", "missing", "over_since", "pod")

    def __init__(self, logs: Logs) -> None:
        self._logs = logs
        self._whole = asyncio.Event()
        self.pod = Pod()
        self.attempts: dict[str, list[_Attempt]] = {}
        self.over_since: float | None = None
        self.missing = ""

    def see(self, pod: Pod) -> None:
        """The pod has changed: read what has begun."""
        self.pod = pod
        for status in pod.statuses():
            if not _has_begun(status):
                continue
            known, before = self.attempts.setdefault(status.name, []), list[_Attempt]()
            first = known[-1].number + 1 if known else max(0, status.restart_count - 1)
            for number in range(first, status.restart_count + 1):
                if known:
                    before.append(known[-1])
                known.append(_Attempt(self, status.name, number, self._logs.path()))
                self._logs.wants(known[-1])
            for attempt in before:  # each is read once more, as the one before the last
                attempt.complete = False
                self._logs.wants(attempt, first=True)
                if attempt.waiting is not None:  # this stream may be of the attempt after it already
                    attempt.waiting.reschedule(self._logs.loop.time())

    async def read_to_end(self, pod: Pod) -> None:
        """Return when all is here of a pod that is over, or what is missing is known."""
        self.see(pod)
        if self.over_since is None:
            self.over_since = time.monotonic()
            for attempt in self._all():
                if not attempt.complete:
                    self._logs.wants(attempt, first=True)
            self._check()
        await self._whole.wait()

    def _all(self) -> list[_Attempt]:
        return [attempt for known in self.attempts.values() for attempt in known]

    def _check(self) -> None:
        if self.over_since is not None and all(one.complete for one in self._all()):
            self._whole.set()

    def give_up(self) -> None:
        """The pod is gone: what is here is all there is."""
        for attempt in self._all():
            if not attempt.complete and not attempt.close_with_what_is_here() and not self.missing:
                self.missing = f"the pod was removed before the log of {attempt.name} was read to its end"
        self._whole.set()

    def is_over(self, attempt: _Attempt) -> bool:
        """Whether an attempt of a container to run has ended."""
        if self.over_since is not None or attempt.is_superseded():
            return True
        return any(one.name == attempt.name and one.state.running is None for one in self.pod.statuses())

    def last(self) -> list[Lines]:
        """Return the logs of each container's last attempt."""
        return [known[-1].lines for known in self.attempts.values()]

    def earlier(self) -> list[Lines]:
        """Return the logs of attempts that were followed by others."""
        return [attempt.lines for known in self.attempts.values() for attempt in known[:-1]]

    def content(self) -> bytes | Path:
        """Return the logs as one: as it is where there is one, else each under a line with its container's name."""
        order = {one.name: index for index, one in enumerate(self.pod.statuses())}
        attempts = sorted(self._all(), key=lambda one: (order.get(one.name, len(order)), one.number))
        if len(attempts) > 1:
            attempts = [one for one in attempts if one.lines.size]
        if not attempts:
            return b""
        if len(order) <= 1 and len(attempts) == 1 and not attempts[0].number:
            return attempts[0].lines.content()
        whole = Lines(self._logs.path())
        for attempt in attempts:
            lines = attempt.lines
            whole.add(f"==> {attempt.title()} <==\n".encode())
            for offset in range(0, lines.size, COPY_BYTES):
                whole.add(lines.read(offset, COPY_BYTES))
            if lines.size and lines.tail(1) != b"\n":
                whole.add(b"\n")
        whole.finish()
        joined = _Attempt(self, "==>", 0, whole.path)
        joined.lines, joined.complete = whole, True
        self.attempts["==>"] = [joined]
        return whole.content()

    def close(self) -> None:
        """Let go of all that was fetched."""
        for attempt in self._all():
            attempt.closed = True
            attempt.lines.close()


class _Attempt:
    """One attempt of a container to run. `reached`: a stream of its log has come to its own end, and none has failed since."""

    __slots__ = (
        "closed",
        "complete",
        "lines",
        "name",
        "number",
        "owner",
        "pause",
        "queued",
        "reached",
        "reading",
        "rest",
        "waiting",
    )

    def __init__(self, owner: PodLogs, name: str, number: int, path: Path) -> None:
        self.owner = owner
        self.name = name
        self.number = number
        self.lines = Lines(path)
        self.complete = self.closed = self.queued = self.reading = self.reached = False
        self.rest = b""
        self.waiting: asyncio.Timeout | None = None
        self.pause = PAUSE_SECONDS

    def is_superseded(self) -> bool:
        """Whether the container has been started again since."""
        return self.number < self.owner.attempts[self.name][-1].number

    def title(self) -> str:
        """Return the container's name, and which attempt it is where there are several."""
        several = len(self.owner.attempts[self.name]) > 1 or self.number
        return f"{self.name}, attempt {self.number + 1}" if several else self.name

    def close_with_what_is_here(self) -> bool:
        """End the log, since no more is to be had; return whether a stream had come to its own end, so that it is whole."""
        rest = self.lines.cut() or self.rest
        self.lines.finish(rest if self.reached else b"")
        self.complete = True
        return self.reached


class Logs:
    """Reads the logs of all pods of a manager, a bounded number at a time."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._first: deque[_Attempt] = deque()
        self._others: deque[_Attempt] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._spool = Spool()
        self._numbers = itertools.count()
        self._timers: set[asyncio.TimerHandle] = set()
        self.loop = asyncio.get_running_loop()
        self._services = current()

    def path(self) -> Path:
        """Return a place for a log."""
        return self._spool.path(str(next(self._numbers)))

    async def close(self) -> None:
        """End; logs that nobody took are removed."""
        for timer in self._timers:
            timer.cancel()
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._spool.close()

    # --- turns ------------------------------------------------------------------------------------

    def wants(self, container: _Attempt, *, first: bool = False) -> None:
        """Give a container a turn; with `first` before those whose pods go on."""
        if container.reading or container.complete or container.closed:
            return
        if not container.queued or first:
            container.queued = True
            (self._first if first else self._others).append(container)
        if len(self._workers) < STREAMS:
            worker = self._services.keep("the reading of pods' logs", lambda _: self._work(), ends=True)
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        while self._first or self._others:
            container = (self._first or self._others).popleft()
            if container.reading or container.complete or container.closed:
                continue
            container.queued, container.reading = False, True
            try:
                again = await self._turn(container)
            finally:
                container.reading = False
            if container.complete:
                container.owner._check()
            elif not container.closed and again is not None:
                self._later(container, again)

    def _later(self, container: _Attempt, seconds: float) -> None:
        over = container.owner.over_since is not None
        if seconds == 0.0:
            self.wants(container, first=over)
            return

        def due() -> None:
            self._timers.discard(timer)
            self.wants(container, first=container.owner.over_since is not None)

        timer = self.loop.call_later(seconds, due)
        self._timers.add(timer)

    async def _turn(self, container: _Attempt) -> float | None:
        """Read for a while; return after how many seconds it wants to go on."""
        owner = container.owner
        try:
            if container.is_superseded():
                await self._read_previous(container)
                return None
            return await self._read_on(container)
        except OSError as error:
            container.lines.cut()
            logger.warning("%s: its log cannot be kept: %s", owner.pod.name, error)
            owner.missing = f"the log cannot be kept: {error}"
            return PAUSE_SECONDS_MAX
        except Exception as error:  # ours: its run must end all the same
            logger.exception("%s: its log cannot be read", owner.pod.name)
            owner.missing = f"the log cannot be read: {type(error).__name__}: {error}"
            container.complete = True
            return None

    async def _read_on(self, container: _Attempt) -> float | None:
        owner, lines = container.owner, container.lines
        last = owner.is_over(container)
        size = lines.size
        try:
            lines.begin()
            whole = await self._read(container, follow=not last)
            if container.closed:
                return None
            if lines.words:
                lines.cut()
                return self._gone(container, last)
            if last and whole and not container.is_superseded():
                lines.finish()
                container.complete = True
                return None
            container.rest, container.reached = lines.cut(), whole
            container.pause = PAUSE_SECONDS
            return 0.0 if owner.is_over(container) or lines.size > size else container.pause
        except RefusedError as error:
            lines.cut()
            if lines.size > size:
                container.pause = PAUSE_SECONDS
            return self._refused(container, error, last)

    async def _read_previous(self, container: _Attempt) -> None:
        """Read an attempt that was followed by another one, from its beginning; what is not to be had any more is left out."""
        owner = container.owner
        known = owner.attempts[container.name]
        kept, container.lines = container.lines, Lines(self.path())
        whole = False
        if container.number == known[-1].number - 1:
            with contextlib.suppress(RefusedError):
                container.lines.begin()
                whole = await self._read(container, follow=False, previous=True)
        if whole and not container.lines.words and container.number == known[-1].number - 1:
            container.lines.finish()
            kept.close()
        else:
            container.lines.cut()
            container.lines.close()
            container.lines = kept
            container.close_with_what_is_here()
        container.complete = True

    def _gone(self, container: _Attempt, last: bool) -> float | None:
        """The kubelet has words in place of the log: it is gone, and what is here is whole where it had been read to its end."""
        owner = container.owner
        since = None if owner.over_since is None else time.monotonic() - owner.over_since
        if container.reached and last:
            container.close_with_what_is_here()
            return None
        if since is not None and since > GONE_SECONDS:
            words = container.lines.words.decode(errors="replace").strip()
            owner.missing = f"the log of {container.name} is not complete: {words}"
            container.close_with_what_is_here()
            return None
        container.pause = min(container.pause * 2, PAUSE_SECONDS_MAX if since is None else GONE_SECONDS / 2)
        return container.pause

    async def _read(self, container: _Attempt, *, follow: bool, previous: bool = False) -> bool:
        """Read one stream; return whether it came to its own end rather than to that of the turn."""
        owner = container.owner
        query: dict[str, str | int] = {"container": container.name, "timestamps": "true"}
        if previous:
            query["previous"] = "true"
        if follow:
            query["follow"] = "true"
        if since := container.lines.since:
            query["sinceTime"] = since
        path = path_of(self._namespace, owner.pod.name, "log")
        began = time.monotonic()
        async with self._cluster.stream(path, query, silent_seconds=SILENT_SECONDS) as parts:
            iterator = parts.__aiter__()
            while not container.is_superseded() or previous:
                wait = TURN_SECONDS if follow else None
                try:
                    async with asyncio.timeout(wait) as container.waiting:
                        part = await iterator.__anext__()
                except StopAsyncIteration:
                    return True
                except TimeoutError:
                    if self._others or self._first or (follow and owner.over_since is not None):
                        return False
                    continue
                finally:
                    container.waiting = None
                container.lines.feed(part)
                if follow and (self._others or self._first) and time.monotonic() - began > TURN_SECONDS:
                    return False
            return False

    def _refused(self, container: _Attempt, error: RefusedError, last: bool) -> float | None:
        """Try again, unless the pod or the container is not there any more, or it takes too long."""
        owner, refusal = container.owner, error.refusal
        container.reached = False
        late = owner.over_since is not None and time.monotonic() - owner.over_since > LATE_SECONDS
        nothing = refusal.code == 400 and last  # it never ran: nothing to tell
        if refusal.code == 404 or nothing or late:
            if not nothing:
                owner.missing = f"the log of {container.name} is not complete: {refusal.words}"
            container.complete = True
            return None
        container.pause = min(container.pause * 2, PAUSE_SECONDS_MAX)
        return refusal.after_seconds or container.pause


def _has_begun(status: ContainerStatus) -> bool:
    return status.state.running is not None or status.state.terminated is not None or status.restart_count > 0
