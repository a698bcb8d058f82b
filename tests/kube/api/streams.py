"""Logs and commands: in comes a request for a container, out go its lines as they are written, or a command's output."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

from tests.kube.api.faults import Fault, hang_up
from tests.kube.api.requests import Asked
from tests.kube.api.statuses import Refusal

Object = dict[str, Any]
STDIN, STDOUT, STDERR, ERROR, CLOSE = 0, 1, 2, 3, 255
PART = 1 << 16


class Log:
    """A container's log: lines with their times, in a file; whoever follows is woken."""

    def __init__(self, folder: Path | None = None) -> None:
        handle, path = tempfile.mkstemp(dir=folder, suffix=".log")
        self.path = Path(path)
        self._file = open(handle, "ab", buffering=0)  # noqa: SIM115 - closed in `end`
        self._woken: asyncio.Event = asyncio.Event()
        self._open_line = False
        self._at = 0
        self._second = (0, b"")
        self.is_over = False
        self.gone = ""
        """The kubelet's own words in place of a log that is no longer there."""

    def write(self, data: bytes) -> None:
        """Add output; each line gets the time at which it began, no two the same."""
        parts = []
        for line in data.split(b"\n"):
            parts.append(line if self._open_line else self._stamp() + line)
            self._open_line = True
            parts.append(b"\n")
            self._open_line = False
        parts.pop()
        self._open_line = not data.endswith(b"\n")
        if not self._open_line:
            parts.pop()  # what follows the last newline is no line yet
        self._file.write(b"".join(parts))
        self._wake()

    def _stamp(self) -> bytes:
        self._at = max(self._at + 1, time.time_ns())
        seconds, rest = divmod(self._at, 1_000_000_000)
        if seconds != self._second[0]:
            told = dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = (seconds, told.encode())
        return b"%s.%09dZ " % (self._second[1], rest)

    def end(self) -> None:
        """Say that nothing more will come."""
        if not self.is_over:
            self.is_over = True
            self._file.close()
            self._wake()

    def remove(self) -> None:
        """Remove the file."""
        self.end()
        self.path.unlink(missing_ok=True)

    def tail(self, limit: int) -> bytes:
        """Return the last bytes, without times."""
        data = self.path.read_bytes()[-2 * limit :]
        return b"".join(line.partition(b" ")[2] for line in data.splitlines(keepends=True))[-limit:]

    def _wake(self) -> None:
        woken, self._woken = self._woken, asyncio.Event()
        woken.set()

    async def wait(self) -> None:
        """Wait for more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await self._woken.wait()


def _container(asked: Asked, pod: Object) -> str:
    names = [one["name"] for part in ("initContainers", "containers") for one in pod["spec"].get(part) or ()]
    chosen = asked.query.get("container", "")
    if chosen and chosen not in names:
        raise Refusal(400, f"container {chosen} is not valid for pod {asked.name}")
    if not chosen and len(names) > 1:
        inits = [one["name"] for one in pod["spec"].get("initContainers") or ()]
        told = f"choose one of: [{' '.join(name for name in names if name not in inits)}]"
        if inits:
            told += f" or one of the init containers: [{' '.join(inits)}]"
        raise Refusal(400, f"a container name must be specified for pod {asked.name}, {told}")
    return chosen or names[0]


async def log(
    asked: Asked, pod: Object, node: Any, closing: Callable[[], bool], fault: Fault | None = None
) -> web.StreamResponse:
    """Answer with a container's log, to its end where it shall be followed."""
    name = _container(asked, pod)
    previous = asked.is_set("previous")
    found = node.log(pod, name, previous=previous) if node is not None else None
    if found is None:
        if previous:
            message = f'previous terminated container "{name}" in pod "{asked.name}" not found'
            raise Refusal(400, message)
        status = pod.get("status") or {}
        told = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
        waiting = next((one["state"].get("waiting") for one in told if one["name"] == name), None)
        if not pod["spec"].get("nodeName"):
            raise Refusal(400, f"pod {asked.name} does not have a host assigned")
        why = f'container "{name}" in pod "{asked.name}" is waiting to start: {(waiting or {}).get("reason", "ContainerCreating")}'
        if waiting and waiting.get("reason") in ("ErrImagePull", "ImagePullBackOff"):
            why = f'container "{name}" in pod "{asked.name}" is waiting to start: trying and failing to pull image'
        raise Refusal(400, why)
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(asked.request)
    if found.gone:  # whatever was asked for: no time, no newline, no limit
        await response.write(found.gone.encode())
        return response
    lines, most = _Lines(asked, found), fault.most_bytes if fault else None
    if most is not None:
        lines.left = min(most, most if lines.left is None else lines.left)
    await lines.send(response, closing)
    if lines.left == 0 and most is not None:
        hang_up(asked.request)
    return response


class _Lines:
    """Sends a log's lines, as a request wants them."""

    def __init__(self, asked: Asked, log: Log) -> None:
        self.log = log
        self.timestamps = asked.is_set("timestamps")
        self.follow = asked.is_set("follow")
        self.tail = asked.number("tailLines")
        self.left = asked.number("limitBytes")
        self.since = _to_the_second(asked.query.get("sinceTime", ""))
        if (seconds := asked.number("sinceSeconds")) is not None:
            then = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=seconds)
            self.since = then.strftime("%Y-%m-%dT%H:%M:%SZ")
        self._begun = False
        self._skips = False

    async def send(self, response: web.StreamResponse, closing: Callable[[], bool]) -> None:
        """Send what there is, and what comes."""
        with self.log.path.open("rb") as file:
            if self.tail is not None:
                lines = deque(file, maxlen=self.tail) if self.tail else []
                file.seek(0, 2)
                await self._write(response, lines)
            while not closing():
                over = self.log.is_over
                lines = file.readlines(PART)
                if lines:
                    if not await self._write(response, lines):
                        return
                elif over or not self.follow:
                    return
                else:
                    await self.log.wait()

    async def _write(self, response: web.StreamResponse, lines: Any) -> bool:
        data = b"".join(self._shown(line) for line in lines)
        if self.left is not None:
            data = data[: self.left]
            self.left -= len(data)
        if data:
            await response.write(data)
        return self.left is None or self.left > 0

    def _shown(self, line: bytes) -> bytes:
        """Return a line, or the rest of one, as it shall be sent."""
        if not self._begun:
            stamp, _, text = line.partition(b" ")
            self._skips = bool(self.since) and stamp.decode()[:-1].split(".") < self.since[:-1].split(".")
            shown = line if self.timestamps else text
        else:
            shown = line
        self._begun = not line.endswith(b"\n")
        return b"" if self._skips else shown


async def execute(asked: Asked, pod: Object, node: Any) -> web.StreamResponse:
    """Run a command where a container is, over a WebSocket of channels."""
    if asked.request.headers.get("Upgrade", "").lower() != "websocket":
        raise Refusal(400, "Upgrade request required")
    phase = (pod.get("status") or {}).get("phase")
    if phase in ("Succeeded", "Failed"):
        message = f"cannot exec into a container in a completed pod; current phase is {phase}"
        raise Refusal(500, message)
    if node is None or not pod["spec"].get("nodeName"):
        raise Refusal(400, f"pod {asked.name} does not have a host assigned")
    container = asked.query.get("container") or pod["spec"]["containers"][0]["name"]
    socket = web.WebSocketResponse(protocols=("v5.channel.k8s.io", "v4.channel.k8s.io"))
    await socket.prepare(asked.request)
    process = await node.execute(pod, container, asked.request.query.getall("command", []))

    async def pump(channel: int, stream: asyncio.StreamReader | None) -> None:
        while stream is not None and (data := await stream.read(PART)):
            await socket.send_bytes(bytes((channel,)) + data)

    reading = asyncio.create_task(_input(socket, process))
    try:
        await asyncio.gather(pump(STDOUT, process.stdout), pump(STDERR, process.stderr))
        code = await process.wait()
        await socket.send_bytes(bytes((ERROR,)) + json.dumps(outcome(code)).encode())
        await socket.close()
    finally:
        reading.cancel()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await asyncio.gather(reading, return_exceptions=True)
    return socket


async def _input(socket: web.WebSocketResponse, process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    while (message := await socket.receive()).type in (WSMsgType.BINARY, WSMsgType.TEXT):
        data = message.data if isinstance(message.data, bytes) else message.data.encode()
        if data[:1] == bytes((STDIN,)) and len(data) > 1:
            process.stdin.write(data[1:])
        elif data[:2] == bytes((CLOSE, STDIN)):
            process.stdin.close()


def outcome(code: int) -> Object:
    """Return the Status of a command's end."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    code = code if code > 0 else 128 - code
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: error executing command, exit code {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def _to_the_second(time: str) -> str:
    """Return a time as a kubelet takes it: what is finer than a second is left out."""
    return f"{time[:19]}Z" if time else ""
