"""The logs of a pod's containers, streamed while they run, by few connections for many pods.

In: pods as they change. Out: `Lines` for each container, complete when the pod is over. A stream takes a connection and a
watch of the kubelet's, so there are at most `STREAMS`; where more containers run than that they take turns, each going on
where it was. Whoever's pod is over goes first. What a container said is complete only when a request made after its end
has been answered to its end: a stream that ends may have been cut.
"""

from __future__ import annotations

import asyncio
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
COPY_BYTES = 1 << 20


class PodLogs:
    """What the containers of one run's pod say."""

    __slots__ = ("_logs", "_whole", "containers", "missing", "over_since", "pod")

    def __init__(self, logs: Logs) -> None:
        self._logs = logs
        self._whole = asyncio.Event()
        self.pod = Pod()
        self.containers: dict[str, _Container] = {}
        self.over_since: float | None = None
        self.missing = ""

    def see(self, pod: Pod) -> None:
        """The pod has changed: read what has begun."""
        self.pod = pod
        for status in pod.statuses():
            if status.name not in self.containers and _has_begun(status):
                mine = self.containers[status.name] = _Container(self, status.name, self._logs.path())
                self._logs.wants(mine)

    async def read_to_end(self, pod: Pod) -> None:
        """Return when all is here of a pod that is over, or what is missing is known."""
        self.see(pod)
        if self.over_since is None:
            self.over_since = time.monotonic()
            for container in self.containers.values():
                if not container.complete:
                    self._logs.wants(container, first=True)
            self._check()
        await self._whole.wait()

    def _check(self) -> None:
        if self.over_since is not None and all(one.complete for one in self.containers.values()):
            self._whole.set()

    def give_up(self) -> None:
        """The pod is gone: what is here is all there is."""
        for container in self.containers.values():
            if not container.complete and not self.missing:
                self.missing = f"the pod was removed before the log of {container.name} was read to its end"
            container.complete = True
            container.lines.cut()
        self._whole.set()

    def container_is_over(self, name: str) -> bool:
        """Whether a container has ended, or its whole pod has."""
        if self.over_since is not None:
            return True
        return any(one.name == name and one.state.terminated is not None for one in self.pod.statuses())

    def names(self) -> list[str]:
        """Return the containers that have a log, in the order of the manifest, init containers first."""
        order = [one.name for one in self.pod.statuses()]
        return sorted(self.containers, key=lambda name: order.index(name) if name in order else len(order))

    def content(self) -> bytes | Path:
        """Return the logs as one: as it is where there is one container, else each under a line with its name."""
        named = [(name, self.containers[name].lines) for name in self.names()]
        named = [(name, lines) for name, lines in named if len(named) == 1 or lines.size]
        if not named:
            return b""
        if len(self.pod.statuses()) <= 1 and len(named) == 1:
            return named[0][1].content()
        whole = Lines(self._logs.path())
        for name, lines in named:
            whole._write([f"==> {name} <==\n".encode()])
            for offset in range(0, lines.size, COPY_BYTES):
                whole._write([lines.read(offset, COPY_BYTES)])
            if lines.size and lines.tail(1) != b"\n":
                whole._write([b"\n"])
        whole.finish()
        self.containers["==>"] = joined = _Container(self, "==>", whole.path)
        joined.lines, joined.complete = whole, True
        return whole.content()

    def close(self) -> None:
        """Let go of all that was fetched."""
        for container in self.containers.values():
            container.closed = True
            container.lines.close()


class _Container:
    __slots__ = ("closed", "complete", "lines", "name", "owner", "pause", "queued", "reading")

    def __init__(self, owner: PodLogs, name: str, path: Path) -> None:
        self.owner = owner
        self.name = name
        self.lines = Lines(path)
        self.complete = False
        self.closed = False
        self.queued = False
        self.reading = False
        self.pause = PAUSE_SECONDS


class Logs:
    """Reads the logs of all pods of a manager, a bounded number at a time."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._first: deque[_Container] = deque()
        self._others: deque[_Container] = deque()
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

    def wants(self, container: _Container, *, first: bool = False) -> None:
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

    def _later(self, container: _Container, seconds: float) -> None:
        over = container.owner.over_since is not None
        if seconds == 0.0:
            self.wants(container, first=over)
            return

        def due() -> None:
            self._timers.discard(timer)
            self.wants(container, first=container.owner.over_since is not None)

        timer = self.loop.call_later(seconds, due)
        self._timers.add(timer)

    async def _turn(self, container: _Container) -> float | None:
        """Read for a while; return after how many seconds it wants to go on."""
        owner, lines = container.owner, container.lines
        last = owner.container_is_over(container.name)
        size = lines.size
        try:
            lines.begin()
            whole = await self._read(container, follow=not last)
            if last and whole:
                lines.finish()
                container.complete = True
                return None
            lines.cut()
            container.pause = PAUSE_SECONDS
            return 0.0 if owner.container_is_over(container.name) or lines.size > size else container.pause
        except RefusedError as error:
            lines.cut()
            if lines.size > size:
                container.pause = PAUSE_SECONDS
            return self._refused(container, error, last)
        except OSError as error:
            lines.cut()
            logger.warning("%s: its log cannot be kept: %s", owner.pod.name, error)
            owner.missing = f"the log cannot be kept: {error}"
            return PAUSE_SECONDS_MAX
        except Exception as error:  # ours: its run must end all the same
            logger.exception("%s: its log cannot be read", owner.pod.name)
            owner.missing = f"the log cannot be read: {type(error).__name__}: {error}"
            container.complete = True
            return None

    async def _read(self, container: _Container, *, follow: bool) -> bool:
        """Read one stream; return whether it came to its own end rather than to that of the turn."""
        owner = container.owner
        query: dict[str, str | int] = {"container": container.name, "timestamps": "true"}
        if follow:
            query["follow"] = "true"
        if since := container.lines.since:
            query["sinceTime"] = since
        path = path_of(self._namespace, owner.pod.name, "log")
        began = time.monotonic()
        async with self._cluster.stream(path, query, silent_seconds=SILENT_SECONDS) as parts:
            iterator = parts.__aiter__()
            while True:
                wait = TURN_SECONDS if follow else None
                try:
                    async with asyncio.timeout(wait):
                        part = await iterator.__anext__()
                except StopAsyncIteration:
                    return True
                except TimeoutError:
                    if self._others or self._first or (follow and owner.over_since is not None):
                        return False
                    continue
                container.lines.feed(part)
                if follow and (self._others or self._first) and time.monotonic() - began > TURN_SECONDS:
                    return False

    def _refused(self, container: _Container, error: RefusedError, last: bool) -> float | None:
        """Try again, unless the pod or the container is not there any more, or it takes too long."""
        owner, refusal = container.owner, error.refusal
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
