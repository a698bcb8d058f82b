"""From an HTTP request to an answer: who asks, what for, what goes wrong by a test's wish, and the handler of the verb.

In: requests on a loopback socket. Out: JSON, streams, or refusals; each request is counted under `VERB RESOURCE`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from tests.kube.fake import deleting, executing, listing, logs, writing
from tests.kube.fake.admitting import unknown_fields
from tests.kube.fake.faults import Cut, befall
from tests.kube.fake.identities import User, reviewed
from tests.kube.fake.patches import patched
from tests.kube.fake.refusals import (
    Refusal,
    bad_request,
    method_not_allowed,
    no_such_resource,
    not_acceptable,
)
from tests.kube.fake.resources import Target, flag, target_of
from tests.kube.fake.storing import encode
from tests.kube.fake.watching import Watch

if TYPE_CHECKING:
    from tests.kube.fake.cluster import FakeCluster

VERSION = {
    "major": "1",
    "minor": "36",
    "emulationMajor": "1",
    "emulationMinor": "36",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "35",
    "gitVersion": "v1.36.2",
    "gitCommit": "98b35193b2ac7a23a673325f5e9b830ecd5ba406",
    "gitTreeState": "clean",
    "buildDate": "2026-08-21T00:00:00Z",
    "goVersion": "go1.26.6",
    "compiler": "gc",
    "platform": "linux/amd64",
}
SUBRESOURCES = {"", "status", "log", "exec", "eviction", "finalize"}


class Server:
    """The API server."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.store = cluster.store
        self.counts: Counter[str] = Counter()
        self.watches: set[Watch] = set()
        self.streams: set[web.StreamResponse] = set()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request, however it goes."""
        try:
            return await self._answered(request)
        except Refusal as refusal:
            if refusal.text is not None:
                return web.Response(text=refusal.text, status=refusal.code, headers=refusal.headers)
            return _json(encode(refusal.status()), refusal.code, refusal.headers)
        except Cut:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=499)
        except ConnectionError:
            return web.Response(status=499)  # whoever asked has hung up

    async def _answered(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if path in ("/readyz", "/livez", "/healthz"):
            return web.Response(text="ok", headers={"X-Content-Type-Options": "nosniff"})
        user = self.cluster.identities.of(request.headers.get("Authorization", ""))
        if path == "/version":
            self.counts["get version"] += 1
            await befall(self.cluster.faults.taken("get", "version", ""), "before")
            return _json(encode(VERSION))
        target = target_of(path)
        verb = _verb(request, target)
        self.counts[f"{verb} {target.resource.plural}"] += 1
        faults = self.cluster.faults.taken(verb, target.resource.plural, target.name)
        user.take_turn()
        await befall(faults, "before")
        if target.resource.kind != "SelfSubjectAccessReview":
            self.cluster.identities.check(user, {"log": "get", "exec": "create"}.get(verb, verb), target)
        limits = [fault.stream_bytes for fault in faults if fault.stream_bytes is not None]
        answer = await self._carried_out(request, verb, target, user, min(limits, default=None))
        await befall(faults, "after")
        return answer

    async def _carried_out(
        self, request: web.BaseRequest, verb: str, target: Target, user: User, bytes_max: int | None
    ) -> web.StreamResponse:
        match verb:
            case "watch":
                return await self._watch(request, target, bytes_max)
            case "list":
                accept = request.headers.get("Accept", "")
                if accept and "json" not in accept and "*/*" not in accept:
                    raise not_acceptable()
                wait = self.cluster.future_seconds
                return _json(
                    await listing.listed(self.store, target, request.query, accept, wait_seconds=wait)
                )
            case "log":
                return await self._log(request, target, bytes_max)
            case "exec":
                return await executing.execute(request, writing.found(self.store, target), self.cluster.exec)
            case "get":
                return _json(encode(writing.found(self.store, target)))
            case "create":
                return await self._create(request, target, user)
            case "update" | "patch":
                return await self._change(request, target)
            case "delete":
                given = writing.found(self.store, target)
                options = await _delete_options(request)
                return _json(encode(deleting.delete(self.store, target.resource.plural, given, options)))
            case "deletecollection":
                return await self._delete_all(request, target)
        raise method_not_allowed()

    async def _create(self, request: web.BaseRequest, target: Target, user: User) -> web.StreamResponse:
        given = await _decoded(request)
        if target.resource.kind == "SelfSubjectAccessReview":
            return _json(encode(reviewed(user, given)), 201)
        if target.subresource == "eviction":
            options = (given or {}).get("deleteOptions") or {}
            deleting.evict(self.store, writing.found(self.store, target), options)
            success = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
            return _json(encode(success), 201)
        headers: dict[str, str] = {}
        if validation := request.query.get("fieldValidation"):
            headers = _checked_fields(given, validation)
        given = writing.begun(self.store, target, given)
        if target.resource.plural == "pods":
            settled = self.cluster.is_settled(target.namespace)
            given = self.cluster.admission.admit(given, target.namespace, settled=settled)
            writing.sign(given)
        else:
            given = writing.completed(target, given)
        if request.query.get("dryRun"):
            return _json(encode(given), 201, headers)
        return _json(encode(writing.insert(self.store, target, given)), 201, headers)

    async def _change(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        before = writing.found(self.store, target)
        given = await _decoded(request)
        before = writing.found(self.store, target)  # reading took its time
        if request.method == "PATCH":
            given = patched(before, given, request.content_type)
        dry = bool(request.query.get("dryRun"))
        return _json(encode(writing.update(self.store, target, before, given, dry=dry)))

    async def _delete_all(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        options = await _delete_options(request)
        query = {key: request.query.get(key, "") for key in ("labelSelector", "fieldSelector")}
        body = await listing.listed(self.store, target, query, "", wait_seconds=0)
        for item in msgspec.json.decode(body)["items"]:
            key = item["metadata"].get("namespace", ""), item["metadata"]["name"]
            if given := self.store.get(target.resource.plural, *key):
                deleting.delete(self.store, target.resource.plural, given, options)
        return _json(body)

    async def _watch(
        self, request: web.BaseRequest, target: Target, bytes_max: int | None
    ) -> web.StreamResponse:
        watch = Watch(self.store, target, request.query, bytes_max)
        self.watches.add(watch)
        try:
            return await watch.serve(
                request,
                bookmark_seconds=self.cluster.bookmark_seconds,
                lag_max=self.cluster.watch_lag_max,
            )
        finally:
            self.watches.discard(watch)

    async def _log(
        self, request: web.BaseRequest, target: Target, bytes_max: int | None
    ) -> web.StreamResponse:
        log = logs.log_of(self.cluster.logs, writing.found(self.store, target), request.query)
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        sent = 0
        async for data in logs.read(log, request.query):
            if bytes_max is not None and sent + len(data) >= bytes_max:
                await response.write(data[: bytes_max - sent])
                await asyncio.sleep(0.01)  # let it leave before the connection breaks
                raise Cut
            sent += len(data)
            await response.write(data)
        return response


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=body, status=status, headers={"Content-Type": "application/json", **(headers or {})}
    )


def _verb(request: web.BaseRequest, target: Target) -> str:
    if target.subresource not in SUBRESOURCES:
        raise no_such_resource()
    if target.subresource in ("log", "exec"):
        return target.subresource
    match request.method, bool(target.name):
        case "GET", named:
            if flag(request.query, "watch"):
                return "watch"
            return "get" if named else "list"
        case "POST", named if not named or target.subresource:
            return "create"
        case "DELETE", named:
            return "delete" if named else "deletecollection"
        case (("PUT" | "PATCH"), True):
            return "update" if request.method == "PUT" else "patch"
    raise method_not_allowed()


async def _decoded(request: web.BaseRequest) -> Any:
    body = await request.content.read()
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise bad_request(f"couldn't get version/kind; json parse error: {error}") from None


async def _delete_options(request: web.BaseRequest) -> dict[str, Any]:
    body = await request.content.read()
    options: dict[str, Any] = (msgspec.json.decode(body) or {}) if body else {}
    if grace := request.query.get("gracePeriodSeconds"):
        options["gracePeriodSeconds"] = int(grace)
    if request.query.get("dryRun"):
        options["dryRun"] = ["All"]
    return options


def _checked_fields(given: Any, validation: str) -> dict[str, str]:
    """Refuse unknown fields where they are forbidden; return the header that warns of them."""
    unknown = unknown_fields(given) if isinstance(given, dict) and given.get("kind") == "Pod" else []
    if unknown and validation == "Strict":
        told = ", ".join(f'unknown field "{field}"' for field in unknown)
        raise bad_request(f'Pod in version "v1" cannot be handled as a Pod: strict decoding error: {told}')
    if unknown and validation == "Warn":
        return {"Warning": ", ".join(f'299 - "unknown field \\"{field}\\""' for field in unknown)}
    return {}
