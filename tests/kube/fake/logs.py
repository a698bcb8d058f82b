"""What containers said: kept line by line with the time of each, read back as the kubelet serves it.

In: bytes as a container writes them. Out: a stream with follow, sinceTime, sinceSeconds, tailLines, timestamps, limitBytes and
previous. As with a real kubelet sinceTime counts whole seconds only, the last line may lack its newline, and a follow ends
without a word when the container ends or the pod goes. Small logs live in memory, large ones in a file that nobody sees.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from tests.kube.fake.refusals import bad_request
from tests.kube.fake.resources import flag

MEMORY_BYTES = 64 << 10
CHUNK_BYTES = 256 << 10
STAMP_BYTES = 31  # 2026-11-23T01:51:14.085767642Z and a space
PULLING = ("ErrImagePull", "ImagePullBackOff")


class ContainerLog:
    """The log of one container, from one start to its end."""

    def __init__(self, resolution_ns: int = 1) -> None:
        self.size = 0
        self.closed = False
        self.resolution_ns = resolution_ns
        self.bell = asyncio.Event()
        self._memory = bytearray()
        self._file: int | None = None
        self._last_ns = 0
        self._begins_line = True
        self._marks: list[tuple[bytes, int]] = []  # (stamp, offset), about one a chunk

    def write(self, data: bytes, at_ns: int | None = None) -> None:
        """Add what the container wrote just now."""
        parts = []
        ns = max(at_ns or time.time_ns(), self._last_ns)
        for line in data.splitlines(keepends=True) if b"\r" not in data else _lines(data):
            if self._begins_line:
                stamp = _stamp(ns - ns % self.resolution_ns)
                if not self._marks or self.size - self._marks[-1][1] > CHUNK_BYTES:
                    self._marks.append((stamp, self.size + sum(map(len, parts))))
                parts.append(stamp)
                ns += 1
            parts.append(line)
            self._begins_line = line.endswith(b"\n")
        self._last_ns = ns
        self._keep(b"".join(parts))
        self._ring()

    def close(self) -> None:
        """Say that nothing comes any more."""
        self.closed = True
        self._ring()

    def drop(self) -> None:
        """Forget everything."""
        self.close()
        self._memory = bytearray()
        self.size = 0
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def read(self, offset: int, size: int = CHUNK_BYTES) -> bytes:
        """Return stored bytes, stamps included."""
        if self._file is not None:
            return os.pread(self._file, size, offset)
        return bytes(self._memory[offset : offset + size])

    def _keep(self, data: bytes) -> None:
        self.size += len(data)
        if self._file is None and self.size <= MEMORY_BYTES:
            self._memory += data
            return
        if self._file is None:
            with tempfile.TemporaryFile() as file:
                self._file = os.dup(file.fileno())
            data, self._memory = bytes(self._memory) + data, bytearray()
        while data:
            data = data[os.write(self._file, data) :]

    def _ring(self) -> None:
        bell, self.bell = self.bell, asyncio.Event()
        bell.set()

    def start_at(self, since: bytes) -> int:
        """Return the offset of the first line of a second or later."""
        offset = 0
        for stamp, place in self._marks:
            if stamp >= since:
                break
            offset = place
        while offset < self.size:
            chunk = self.read(offset)
            for line in _lines(chunk):
                if line[:STAMP_BYTES] >= since or not line.endswith(b"\n"):
                    return offset
                offset += len(line)
        return offset

    def last_bytes(self, size: int) -> bytes:
        """Return the end of the log as the container wrote it."""
        chunk = self.read(max(0, self.size - 2 * size), 2 * size)
        return b"".join(line[STAMP_BYTES:] for line in _lines(chunk)[1 if self.size > 2 * size else 0 :])[
            -size:
        ]

    def tail(self, count: int) -> int:
        """Return the offset of the last lines."""
        end = self.size - (0 if self._begins_line else -1)
        place = self.size
        while place > 0:
            begin = max(0, place - CHUNK_BYTES)
            chunk = self.read(begin, place - begin)
            while (found := chunk.rfind(b"\n", 0, min(len(chunk), end - 1 - begin))) >= 0:
                count, end = count - 1, begin + found + 1
                if count <= 0:
                    return end
            place = begin
        return 0


def _lines(data: bytes) -> list[bytes]:
    """Split at newlines only."""
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _stamp(ns: int) -> bytes:
    seconds, rest = divmod(ns, 10**9)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z ".encode()


class Logs:
    """The logs of all containers."""

    def __init__(self) -> None:
        self.resolution_ns = 1
        self._all: dict[tuple[str, str], list[ContainerLog]] = {}

    def begin(self, uid: str, container: str) -> ContainerLog:
        """Return a new log: of a first start, or of another."""
        log = ContainerLog(self.resolution_ns)
        self._all.setdefault((uid, container), []).append(log)
        return log

    def of(self, uid: str, container: str, *, previous: bool = False) -> ContainerLog | None:
        """Return the log of the present start, or of the one before."""
        starts = self._all.get((uid, container), [])
        place = 2 if previous else 1
        return starts[-place] if len(starts) >= place else None

    def drop(self, pod: dict[str, Any]) -> None:
        """Forget a pod's logs: the pod is gone."""
        uid = pod["metadata"]["uid"]
        for part in ("containers", "initContainers"):
            for container in pod["spec"].get(part) or ():
                for log in self._all.pop((uid, container["name"]), ()):
                    log.drop()

    def close(self) -> None:
        """Forget everything."""
        for logs in self._all.values():
            for log in logs:
                log.drop()
        self._all.clear()


def log_of(logs: Logs, pod: dict[str, Any], query: Mapping[str, str]) -> ContainerLog | None:
    """Return the log that a request asks for; None where a pod has no node yet; a refusal where it cannot be read."""
    name, spec, status = pod["metadata"]["name"], pod["spec"], pod.get("status") or {}
    every = [*(spec.get("initContainers") or ()), *spec["containers"]]
    container = query.get("container") or (every[0]["name"] if len(every) == 1 else "")
    names = [one["name"] for one in every]
    if not container:
        raise bad_request(
            f"a container name must be specified for pod {name}, choose one of: [{' '.join(names)}]"
        )
    if container not in names:
        raise bad_request(f"container {container} is not valid for pod {name}")
    if not spec.get("nodeName"):
        return None
    previous = flag(query, "previous")
    log = logs.of(pod["metadata"]["uid"], container, previous=previous)
    if previous and log is None:
        raise bad_request(f'previous terminated container "{container}" in pod "{name}" not found')
    told = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    state: dict[str, Any] = next((one["state"] for one in told if one["name"] == container), {})
    waiting = (state.get("waiting") or {}).get("reason") or ("" if log or state else "ContainerCreating")
    if waiting and not previous and (log is None or waiting != "CrashLoopBackOff"):
        why = "trying and failing to pull image" if waiting in PULLING else waiting
        raise bad_request(f'container "{container}" in pod "{name}" is waiting to start: {why}')
    return log


async def read(log: ContainerLog | None, query: Mapping[str, str]) -> AsyncIterator[bytes]:
    """Give a log's bytes as the query wants them."""
    if log is None:
        return
    left = int(query.get("limitBytes") or 1 << 62)
    offset = _start(log, query)
    stamped, follow = flag(query, "timestamps"), flag(query, "follow")
    rest = b""
    while True:
        bell = log.bell
        chunk = log.read(offset)
        offset += len(chunk)
        if not stamped:
            whole, cut, part = (rest + chunk).rpartition(b"\n")
            over = log.closed and not chunk
            rest = b"" if over else part
            chunk = b"".join(line[STAMP_BYTES:] for line in _lines(whole + cut + (part if over else b"")))
        if chunk:
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                return
        elif offset >= log.size and not rest:
            if log.closed or not follow:
                return
            await bell.wait()
        elif offset >= log.size and not log.closed:
            if not follow:
                yield rest[STAMP_BYTES:][:left]
                return
            await bell.wait()


def _start(log: ContainerLog, query: Mapping[str, str]) -> int:
    offset = 0
    if since := query.get("sinceTime"):
        moment = dt.datetime.fromisoformat(since).astimezone(dt.UTC)
        offset = log.start_at(moment.strftime("%Y-%m-%dT%H:%M:%S").encode())
    elif seconds := query.get("sinceSeconds"):
        offset = log.start_at(_stamp(time.time_ns() - int(seconds) * 10**9))
    if (count := query.get("tailLines")) is not None:
        offset = max(offset, log.tail(int(count)) if int(count) else log.size)
    return offset
