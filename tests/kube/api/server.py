"""The server: in comes HTTP, out go answers as a v1.36 API server gives them; state and a test's hand on it are `Server`'s.

A request passes the test's rules, and then in the server's order: who asks (401), is there room (429), the test's faults,
may he (403), then what is asked. Everything lives in one event loop; `serve` starts it on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, cast

from aiohttp import web

from tests.kube.api import deleting, streams
from tests.kube.api.admission import Admission
from tests.kube.api.eviction import evict
from tests.kube.api.faults import Fault, hang_up
from tests.kube.api.kinds import BY_PATH, VERSION, Kind, discovery
from tests.kube.api.lists import Reader
from tests.kube.api.requests import Asked, User, understand
from tests.kube.api.selectors import by_fields, by_labels
from tests.kube.api.statuses import Refusal, method_not_allowed, no_right, no_such_resource
from tests.kube.api.storage import Storage, encode
from tests.kube.api.writing import Writer

Object = dict[str, Any]
Rule = Callable[[web.Request, str], Any]
THROTTLED = "Too many requests, please try again later.\n"


class Node(Protocol):
    """What the server asks a kubelet."""

    def log(self, pod: Object, container: str, *, previous: bool) -> streams.Log | None:
        """Return a container's log, if there is one."""

    async def execute(self, pod: Object, container: str, command: list[str]) -> asyncio.subprocess.Process:
        """Start a command where a container is."""


class Server:
    """One cluster. `faults` and `rules` are the test's lists; `asked` tells every request's verb and resource, in order.

    A rule is given a request and what it asks (`create pods`, `get /version`); what it returns, or its coroutine, is the
    answer, unless that is None.
    """

    def __init__(self) -> None:
        self.storage = Storage()
        self.admission = Admission(self.storage)
        self.reader = Reader(self.storage)
        self.writer = Writer(self.storage, self.admission)
        self.users = {
            "admin": User("admin"),
            "limited": User("limited", set()),
            "throttled": User("throttled", None, 1),
        }
        self.faults: list[Fault] = []
        self.rules: list[Rule] = []
        self.asked: list[str] = []
        self.node: Node | None = None
        self.url = ""
        for name in ("default", "kube-system"):
            self.storage.create(BY_PATH["", "v1", "namespaces"], deleting.namespace_of(name))

    # --- a test's hand --------------------------------------------------------------------------

    @property
    def counts(self) -> Counter[str]:
        """How often each `verb resource` was asked."""
        return Counter(self.asked)

    def config(self, token: str = "admin") -> Object:
        """Return a kubeconfig, with a context for each user."""
        names = [token, *(name for name in self.users if name != token)]
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": token,
            "contexts": [{"name": name, "context": {"cluster": "fake", "user": name}} for name in names],
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": name, "user": {"token": name}} for name in names],
        }

    def pods(self, namespace: str = "") -> list[Object]:
        """Return the pods that there are."""
        table = self.storage.table(deleting.PODS)
        return [pod for where, pod in sorted(table.objects.items()) if not namespace or where[0] == namespace]

    def namespace(self, name: str) -> None:
        """Make a namespace."""
        self.storage.create(BY_PATH["", "v1", "namespaces"], deleting.namespace_of(name))

    # --- what is asked --------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request; whoever has hung up needs no answer."""
        try:
            return await self._passed(request)
        except Refusal as refusal:
            body = json.dumps(refusal.body())
            headers = {"Cache-Control": "no-cache, private", **refusal.headers}
            return web.Response(
                text=body, status=refusal.code, headers=headers, content_type="application/json"
            )
        except ConnectionError:
            return web.Response(status=499)

    async def _passed(self, request: web.Request) -> web.StreamResponse:
        if request.path in ("/readyz", "/livez", "/healthz"):
            return web.Response(text="ok")
        path = request.path.rstrip("/")
        asked, nothing = None, None
        try:
            asked = understand(request)
        except Refusal as refusal:
            nothing = refusal
        what = f"{asked.verb} {asked.resource}" if asked else f"{request.method.lower()} {path}"
        self.asked.append(what)
        for rule in list(self.rules):
            answer = rule(request, what)
            answer = await answer if inspect.isawaitable(answer) else answer
            if answer is not None:
                return cast("web.StreamResponse", answer)
        said = request.headers.get("Authorization", "")
        user = self.users.get(said.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, "Unauthorized")
        if path == "/version":
            return web.json_response(VERSION)
        if request.method == "GET" and (told := discovery(path)) is not None:
            return web.json_response(told)
        if asked is None:
            raise nothing or no_such_resource()
        if user.at_once is not None and user.busy >= user.at_once:
            return web.Response(text=THROTTLED, status=429, headers={"Retry-After": "1"})
        user.busy += 1
        try:
            if user.at_once is not None:
                await asyncio.sleep(0.02)
            return await self._faulty(asked, user)
        finally:
            user.busy -= 1

    async def _faulty(self, asked: Asked, user: User) -> web.StreamResponse:
        fault = next((one for one in self.faults if one.fits(asked)), None)
        if fault is not None:
            answer = await fault.answer()
            if answer is not None:
                return answer
            if fault.cut == "before":
                hang_up(asked.request)
                return web.Response(status=499)
        response = await self._answer(asked, user, fault)
        if fault is not None and fault.cut == "after":
            hang_up(asked.request)
        return response

    async def _answer(self, asked: Asked, user: User, fault: Fault | None) -> web.StreamResponse:
        if asked.kind is None:
            return await self._review(asked, user)
        kind = asked.kind
        if not user.may(asked.verb, asked.resource):
            verb_of = "create" if asked.verb == "create" else asked.verb
            raise no_right(
                user.name, verb_of, asked.resource, kind.group, asked.namespace or None, asked.name
            )
        if asked.part == "resize" and asked.verb == "patch" and kind == deleting.PODS:
            return self._object(self.writer.patch(asked, kind, await asked.request.read()))
        if asked.part not in ("", "status"):
            return await self._part(asked, kind, fault)
        match asked.verb:
            case "watch":
                return await self.reader.watch(asked, kind, fault)
            case "list":
                return await self.reader.answer(asked, kind)
            case "get":
                return self._object(self._shown(kind, self.storage.get(kind, asked.namespace, asked.name)))
            case "create":
                made, unknown = self.writer.create(asked, kind, await asked.request.read())
                return self._object(made, 201, unknown)
            case "update":
                return self._object(self.writer.replace(asked, kind, await asked.request.read()))
            case "patch":
                return self._object(self.writer.patch(asked, kind, await asked.request.read()))
        options = await _options(asked)
        if asked.verb == "deletecollection":
            return self._delete_all(asked, kind, options)
        found = self.storage.get(kind, asked.namespace, asked.name)
        if asked.is_dry:
            return self._object(found)
        found = deleting.delete(self.storage, kind, found, options)
        deleting.empty(self.storage, asked.namespace)
        small = kind not in (deleting.PODS, deleting.NAMESPACES)
        return self._object(deleting.done_status(found, kind) if small else found)

    def _object(self, found: Object, code: int = 200, unknown: list[str] | None = None) -> web.Response:
        response = web.Response(
            body=self.storage.encoded(found), status=code, content_type="application/json"
        )
        for text in unknown or ():
            response.headers.add("Warning", '299 - "{}"'.format(text.replace('"', '\\"')))
        return response

    def _shown(self, kind: Kind, found: Object) -> Object:
        return self.admission.quota_status(found) if kind.plural == "resourcequotas" else found

    def _delete_all(self, asked: Asked, kind: Kind, options: Object) -> web.Response:
        tests = (
            by_labels(asked.query.get("labelSelector", "")),
            by_fields(asked.query.get("fieldSelector", ""), kind),
        )
        gone = [
            found
            for where, found in sorted(self.storage.table(kind).objects.items())
            if where[0] == asked.namespace and all(test is None or test(found) for test in tests)
        ]
        gone = [deleting.delete(self.storage, kind, found, options) for found in gone]
        head = {"kind": f"{kind.name}List", "apiVersion": kind.api_version}
        told = {**head, "metadata": {"resourceVersion": str(self.storage.version)}, "items": gone}
        return web.Response(body=encode(told), content_type="application/json")

    async def _part(self, asked: Asked, kind: Kind, fault: Fault | None) -> web.StreamResponse:
        """Answer for logs, commands and evictions of pods."""
        if kind != deleting.PODS:
            raise no_such_resource()
        if asked.part == "eviction" and asked.verb == "create":
            options = (await asked.request.json()).get("deleteOptions") or {}
            return web.json_response(evict(self.storage, asked.namespace, asked.name, options), status=201)
        if asked.part not in ("log", "exec"):
            raise no_such_resource()
        if asked.request.method not in ("GET", "POST"):
            raise method_not_allowed()
        pod = self.storage.get(kind, asked.namespace, asked.name)
        if asked.part == "log":
            return await streams.log(asked, pod, self.node, lambda: self.reader.closing, fault)
        return await streams.execute(asked, pod, self.node)

    async def _review(self, asked: Asked, user: User) -> web.Response:
        """Tell whether a user has a right."""
        if asked.verb != "create":
            raise method_not_allowed()
        body = await asked.request.json()
        wanted = (body.get("spec") or {}).get("resourceAttributes") or {}
        part = wanted.get("subresource")
        resource = f"{wanted.get('resource')}/{part}" if part else str(wanted.get("resource"))
        told = {**body, "status": {"allowed": user.may(str(wanted.get("verb")), resource)}}
        return web.json_response(told, status=201)


async def _options(asked: Asked) -> Object:
    """Return how something shall be deleted, by body or parameters."""
    data = await asked.request.read()
    options: Object = json.loads(data) if data.strip() else {}
    if (grace := asked.number("gracePeriodSeconds")) is not None:
        options["gracePeriodSeconds"] = grace
    return options


@contextlib.asynccontextmanager
async def serve(port: int = 0, server: Server | None = None) -> AsyncIterator[Server]:
    """Serve on loopback while the block lasts."""
    server = server or Server()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.5, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    sockets = site._server.sockets  # type: ignore[union-attr]
    server.url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        server.reader.closing = True
        for table in server.storage.tables.values():
            table.wake()
        await runner.cleanup()
