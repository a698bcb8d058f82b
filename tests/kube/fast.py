"""A server for measuring: pods as bytes made once, one watch, no rules; in a process of its own.

In: creates, a watch, deletes and patches, and two requests of its own: `/bench/run` lets all pods run, `/bench/end` lets
them end, 200 a second, and answers with the time at which each end was told. Out: its URL on standard output.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from aiohttp import web

ENDS_A_SECOND = 200


class Fast:
    """All pods of one application."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.version = 0
        self.lines: list[bytes] = []
        self.more = asyncio.Event()

    def put(self, kind: str, pod: dict[str, Any]) -> None:
        """Store a version and tell it."""
        self.version += 1
        pod["metadata"]["resourceVersion"] = str(self.version)
        self.lines.append(b'{"type":"%s","object":%s}\n' % (kind.encode(), json.dumps(pod).encode()))
        self.more.set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer."""
        name = request.path.rpartition("/")[2]
        match request.method, name:
            case "POST", "pods":
                pod = await request.json()
                name = pod["metadata"]["name"]
                if name in self.pods:
                    return web.json_response({"reason": "AlreadyExists"}, status=409)
                pod["metadata"] |= {"uid": f"uid-{name}", "creationTimestamp": "2026-01-01T00:00:00Z"}
                pod["status"] = {"phase": "Pending"}
                self.pods[name] = pod
                self.put("ADDED", pod)
                return web.json_response(pod, status=201)
            case "POST", "run":
                for pod in list(self.pods.values()):
                    self._state(pod, "Running", {"running": {"startedAt": "2026-01-01T00:00:01Z"}})
                return web.json_response({})
            case "POST", "end":
                return web.json_response(await self._end())
            case "GET", "pods" if "watch" in request.query:
                return await self._watch(request)
            case "GET", "pods":
                items = list(self.pods.values())
                return web.json_response({"metadata": {"resourceVersion": str(self.version)}, "items": items})
            case "GET", _:
                return web.json_response(self.pods[name])
            case "DELETE", _:
                self.pods[name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:03Z"
                self.put("MODIFIED", self.pods[name])
            case "PATCH", _:
                self.put("DELETED", self.pods.pop(name))
        return web.json_response({"kind": "Status"})

    def _state(self, pod: dict[str, Any], phase: str, state: dict[str, Any]) -> None:
        pod["spec"]["nodeName"] = "node1"
        told = {
            "name": "main",
            "image": "busybox",
            "imageID": "sha256:" + "0" * 64,
            "restartCount": 0,
            "state": state,
        }
        pod["status"] = {
            "phase": phase,
            "containerStatuses": [told],
            "hostIP": "127.0.0.1",
            "podIP": "10.0.0.1",
        }
        self.put("MODIFIED", pod)

    async def _end(self) -> dict[str, float]:
        told: dict[str, float] = {}
        over = {
            "exitCode": 0,
            "reason": "Completed",
            "startedAt": "2026-01-01T00:00:01Z",
            "finishedAt": "2026-01-01T00:00:02Z",
        }
        began = time.monotonic()
        for count, pod in enumerate(list(self.pods.values())):
            await asyncio.sleep(max(0.0, began + count / ENDS_A_SECOND - time.monotonic()))
            told[pod["metadata"]["annotations"]["datatask.io/job"]] = time.time()
            self._state(pod, "Succeeded", {"terminated": over})
        return told

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        sent = int(request.query.get("resourceVersion") or 0)
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            if sent == len(self.lines):
                self.more.clear()
                await self.more.wait()
            upto = min(len(self.lines), sent + 100)
            await response.write(b"".join(self.lines[sent:upto]))
            sent = upto


async def main() -> None:
    """Serve until killed."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", Fast().handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server = site._server
    assert server is not None
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)  # type: ignore[attr-defined]
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
