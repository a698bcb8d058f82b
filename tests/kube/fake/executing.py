"""Commands in running containers, over a WebSocket: channels for output, errors and the exit code, as protocol v4 has them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import WSMsgType, web

from tests.kube.fake.refusals import Refusal, bad_request
from tests.kube.fake.storing import encode

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
STDIN, STDOUT, STDERR, ERROR, CLOSE = 0, 1, 2, 3, 255
Starter = Callable[[dict[str, Any], str, list[str]], Awaitable[asyncio.subprocess.Process]]


async def execute(request: web.BaseRequest, pod: dict[str, Any], start: Starter | None) -> web.StreamResponse:
    """Run a command and stream what it says; its exit code comes last."""
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise bad_request("Upgrade request required")
    phase = (pod.get("status") or {}).get("phase")
    if phase in ("Succeeded", "Failed"):
        why = f"cannot exec into a container in a completed pod; current phase is {phase}"
        raise Refusal(500, "InternalError", f"Internal error occurred: {why}")
    container = request.query.get("container") or pod["spec"]["containers"][0]["name"]
    if start is None or phase != "Running":
        raise Refusal(
            500,
            "InternalError",
            f'Internal error occurred: unable to upgrade connection: container not found ("{container}")',
        )
    process = await start(pod, container, request.query.getall("command", []))
    try:
        socket = web.WebSocketResponse(protocols=PROTOCOLS)
        await socket.prepare(request)
        await _converse(socket, process)
        await socket.close()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    return socket


async def _converse(socket: web.WebSocketResponse, process: asyncio.subprocess.Process) -> None:
    listening = asyncio.create_task(_listen(socket, process))
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        await asyncio.gather(
            _tell(socket, STDOUT, process.stdout),
            _tell(socket, STDERR, process.stderr),
        )
        code = await process.wait()
        await socket.send_bytes(bytes([ERROR]) + encode(_result(code if code >= 0 else 128 - code)))
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def _tell(socket: web.WebSocketResponse, channel: int, source: asyncio.StreamReader) -> None:
    while data := await source.read(8192):
        await socket.send_bytes(bytes([channel]) + data)


async def _listen(socket: web.WebSocketResponse, process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    async for message in socket:
        if message.type != WSMsgType.BINARY or not message.data:
            continue
        if message.data[0] == STDIN:
            process.stdin.write(message.data[1:])
        elif message.data[0] == CLOSE and message.data[1:] == bytes([STDIN]):
            process.stdin.close()


def _result(code: int) -> dict[str, Any]:
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }
