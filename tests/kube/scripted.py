"""An API server that does what a test says: pods change when told, and any request can be refused, cut or left hanging.

In: a test's words. Out: real HTTP on loopback, a kubeconfig for it, and what was asked of it. It keeps versions and history,
so that watches resume and lists are consistent; it has no kubelet and no rules of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import datetime as dt
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

Answer = web.StreamResponse | None
Rule = Callable[[web.Request, str], Awaitable[Answer] | Answer]


def status(code: int, message: str, reason: str = "", **more: Any) -> web.Response:
    """Return a refusal as the server words it."""
    headers = more.pop("headers", None)
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
    return web.json_response({**body, **more}, status=code, headers=headers)


def terminated(code: int = 0, reason: str = "", at: str = "", **more: Any) -> dict[str, Any]:
    """Return the state of a container that is over."""
    ended = at or now()
    reason = reason or ("Completed" if code == 0 else "Error")
    return {
        "terminated": {"exitCode": code, "reason": reason, "startedAt": ended, "finishedAt": ended, **more}
    }


def now() -> str:
    """Return the time as API objects tell it, to the second."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Api:
    """The server's state, and the test's hand on it."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.history: list[tuple[int, str, dict[str, Any]]] = []
        self.oldest = 0
        self.version = 100
        self.logs: dict[tuple[str, str], list[bytes]] = {}
        self.rules: list[Rule] = []
        self.asked: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.bookmarks = False
        self.forbidden: set[str] = set()
        self.url = ""
        self._changed = asyncio.Condition()
        self._uids = itertools.count(1)
        self._ended = False

    # --- the test's hand --------------------------------------------------------------------------

    @property
    def counts(self) -> Counter[str]:
        """How often each kind of request came."""
        return Counter(self.asked)

    def config(self) -> dict[str, Any]:
        """Return a kubeconfig."""
        return {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": "secret"}}],
        }

    async def pod(self, part: str) -> dict[str, Any]:
        """Wait for a pod whose job or name this is."""
        async with asyncio.timeout(10):
            while True:
                for name, found in self.pods.items():
                    told = found["metadata"].get("annotations") or {}
                    if part in (name, told.get("datatask.io/job")):
                        return found
                await asyncio.sleep(0.005)

    async def change(self, name: str, phase: str = "", *states: dict[str, Any], **more: Any) -> None:
        """Change a pod's status."""
        pod = copy.deepcopy(self.pods[name])
        told = pod["status"]
        if phase:
            told["phase"] = phase
        if states:
            specs = pod["spec"]["containers"]
            told_besides = {"imageID": "", "ready": False, "restartCount": 0, "lastState": {}}
            told["containerStatuses"] = [
                {"name": spec["name"], "image": spec.get("image", ""), "state": state, **told_besides}
                for spec, state in zip(specs, states, strict=True)
            ]
        told.update(more)
        await self.put("MODIFIED", pod)

    async def run(self, name: str, node: str = "node1") -> None:
        """Let a pod's containers run."""
        self.pods[name]["spec"]["nodeName"] = node
        count = len(self.pods[name]["spec"]["containers"])
        await self.change(name, "Running", *[{"running": {"startedAt": now()}} for _ in range(count)])

    async def end(self, name: str, code: int = 0, **more: Any) -> None:
        """Let a pod's containers end with this code."""
        count = len(self.pods[name]["spec"]["containers"])
        await self.change(
            name, "Failed" if code else "Succeeded", *[terminated(code, **more) for _ in range(count)]
        )

    async def say(self, name: str, text: bytes, container: str = "main") -> None:
        """Let a container write lines to its log."""
        for line in text.splitlines():
            stamp = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
            self.logs.setdefault((name, container), []).append(stamp.encode() + b" " + line + b"\n")
        async with self._changed:
            self._changed.notify_all()

    async def remove(self, name: str, *, tell: bool = True) -> None:
        """Let a pod be gone at once."""
        pod = self.pods.pop(name)
        if tell:
            await self.put("DELETED", pod)
        else:
            self.version += 1

    async def forget_history(self) -> None:
        """Make every version so far too old."""
        self.version += 1
        self.oldest = self.version
        async with self._changed:
            self._changed.notify_all()

    async def put(self, kind: str, pod: dict[str, Any]) -> None:
        """Store a version and tell the watches."""
        self.version += 1
        pod["metadata"]["resourceVersion"] = str(self.version)
        if kind != "DELETED":
            self.pods[pod["metadata"]["name"]] = pod
        self.history.append((self.version, kind, copy.deepcopy(pod)))
        async with self._changed:
            self._changed.notify_all()

    # --- what is asked ----------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request; whoever has hung up needs no answer."""
        try:
            return await self._handled(request)
        except ConnectionError:
            return web.Response(status=499)

    async def _handled(self, request: web.Request) -> web.StreamResponse:
        """Answer by the first rule that does, else as a server would."""
        parts = request.path.strip("/").split("/")
        name = parts[5] if len(parts) > 5 else ""
        kind = request.method
        if parts[-1] == "log":
            kind = "LOG"
        elif parts[4:5] == ["events"]:
            kind = "EVENTS"
        elif kind == "GET" and not name:
            kind = "WATCH" if request.query.get("watch") == "true" else "LIST"
        self.asked.append(kind)
        for rule in list(self.rules):
            answer = rule(request, kind)
            answer = await answer if asyncio.iscoroutine(answer) else answer
            if answer is not None:
                return answer  # type: ignore[return-value]
        if request.path == "/version":
            return web.json_response({"gitVersion": "v1.36.2"})
        if parts[0] == "apis":
            asked = (await request.json())["spec"]["resourceAttributes"]
            what = f"{asked['verb']} {asked['resource']}"
            return web.json_response({"status": {"allowed": what not in self.forbidden}})
        match kind:
            case "LIST":
                return self._list(request)
            case "WATCH":
                return await self._watch(request)
            case "POST":
                return await self._create(await request.json(), parts[3])
            case "LOG":
                return await self._log(request, name)
            case "EVENTS":
                return web.json_response({"items": self.events})
        if name not in self.pods:
            return status(404, f'pods "{name}" not found', "NotFound")
        if kind == "DELETE":
            options = await request.json() if request.can_read_body else {}
            if grace := request.query.get("gracePeriodSeconds"):
                options["gracePeriodSeconds"] = int(grace)
            return await self._delete(options, name)
        if kind == "PATCH":
            pod = copy.deepcopy(self.pods[name])
            given = (await request.json())["metadata"]
            if given.get("uid", pod["metadata"]["uid"]) != pod["metadata"]["uid"]:
                return status(409, "uid mismatch", "Conflict")
            pod["metadata"]["finalizers"] = given["finalizers"]
            if not given["finalizers"] and pod["metadata"].get("deletionTimestamp"):
                self.pods.pop(name)
                await self.put("DELETED", pod)
            else:
                await self.put("MODIFIED", pod)
            return web.json_response(pod)
        return web.json_response(self.pods[name])

    async def _create(self, pod: dict[str, Any], namespace: str) -> web.Response:
        name = pod["metadata"]["name"]
        if name in self.pods:
            return status(409, f'pods "{name}" already exists', "AlreadyExists")
        pod["metadata"] |= {
            "uid": f"uid-{next(self._uids)}",
            "namespace": namespace,
            "creationTimestamp": now(),
        }
        pod["status"] = {"phase": "Pending"}
        await self.put("ADDED", pod)
        return web.json_response(pod, status=201)

    async def _delete(self, options: dict[str, Any], name: str) -> web.Response:
        pod = copy.deepcopy(self.pods[name])
        uid = (options.get("preconditions") or {}).get("uid")
        if uid and uid != pod["metadata"]["uid"]:
            return status(409, "the UID in the precondition does not match", "Conflict")
        await self.delete(name, options.get("gracePeriodSeconds", 30))
        return web.json_response(pod)

    async def delete(self, name: str, grace: int = 30) -> None:
        """Mark a pod as to be deleted, or let it go where nothing keeps it."""
        pod = copy.deepcopy(self.pods[name])
        at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=grace)
        pod["metadata"] |= {
            "deletionTimestamp": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "deletionGracePeriodSeconds": grace,
        }
        kept = pod["metadata"].get("finalizers")
        on_node = pod["spec"].get("nodeName") and pod["status"]["phase"] in ("Running", "Pending")
        if kept or (on_node and grace):
            await self.put("MODIFIED", pod)
        else:
            self.pods.pop(name)
            await self.put("DELETED", pod)

    def _chosen(self, request: web.Request) -> list[dict[str, Any]]:
        wanted = dict(part.split("=") for part in request.query.get("labelSelector", "").split(",") if part)
        return [
            pod
            for _, pod in sorted(self.pods.items())
            if all((pod["metadata"].get("labels") or {}).get(key) == value for key, value in wanted.items())
        ]

    def _list(self, request: web.Request) -> web.Response:
        chosen = self._chosen(request)
        begin, limit = int(request.query.get("continue") or 0), int(request.query.get("limit") or 10_000)
        more = {"continue": str(begin + limit)} if begin + limit < len(chosen) else {}
        told = {"resourceVersion": str(self.version), **more}
        return web.json_response(
            {"kind": "PodList", "metadata": told, "items": chosen[begin : begin + limit]}
        )

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion") or 0)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)

        async def send(kind: str, told: dict[str, Any]) -> None:
            await response.write(json.dumps({"type": kind, "object": told}).encode() + b"\n")

        if since < self.oldest:
            await send("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})
            return response
        while not self._ended:
            for version, kind, pod in self.history:
                if version > since:
                    await send(kind, pod)
                    since = version
            if since < self.oldest:
                return response
            async with self._changed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await self._changed.wait()
            if self.bookmarks:
                await send("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": str(since)}})
        return response

    async def _log(self, request: web.Request, name: str) -> web.StreamResponse:
        container = request.query.get("container", "main")
        pod = self.pods.get(name)
        if pod is None:
            return status(404, f'pods "{name}" not found', "NotFound")
        states = {one["name"]: one["state"] for one in pod["status"].get("containerStatuses") or ()}
        if container not in states or "waiting" in states[container]:
            return status(400, f'container "{container}" in pod "{name}" is waiting to start', "BadRequest")
        follow = request.query.get("follow") == "true"
        since = request.query.get("sinceTime", "").rstrip("Z")
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        sent = 0
        while not self._ended:
            lines = self.logs.get((name, container), [])
            for line in lines[sent:]:
                if line.decode(errors="replace") >= since:
                    await response.write(line)
            sent = len(lines)
            found = self.pods.get(name)
            told = (found or {"status": {}})["status"].get("containerStatuses") or ()
            over = any(one["name"] == container and "terminated" in one["state"] for one in told)
            if not follow or found is None or over:
                if len(self.logs.get((name, container), [])) == sent:
                    return response
                continue
            async with self._changed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await self._changed.wait()
        return response


@contextlib.asynccontextmanager
async def scripted() -> AsyncIterator[Api]:
    """Serve while the block lasts."""
    api = Api()
    app = web.Application(client_max_size=1 << 24)
    app.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.05)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server = site._server
    assert server is not None
    api.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
    try:
        yield api
    finally:
        api._ended = True
        async with api._changed:
            api._changed.notify_all()
        await runner.cleanup()
