"""Lists and watches: in come a request's parameters, out go pages of one moment, and events from a version on."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

from aiohttp import web

from tests.kube.api.faults import Fault, hang_up
from tests.kube.api.kinds import Kind
from tests.kube.api.requests import Asked
from tests.kube.api.selectors import Test, by_fields, by_labels
from tests.kube.api.statuses import Refusal, cause, gone, invalid, too_large
from tests.kube.api.storage import Storage, encode

Object = dict[str, Any]
INCONSISTENT = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without the "
    "continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing "
    "with the provided token results in an inconsistent list - objects that were created, modified, or deleted between "
    "the time the first chunk was returned and now may show up in the list."
)


class Reader:
    """Answers lists and watches of a storage; `bookmark_seconds` between signs of life."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.bookmark_seconds = 60.0
        self.future_seconds = 3.0
        self.expired_as_status = False
        self.closing = False
        self._ends = 0

    def end_watches(self) -> None:
        """End the watches that are open, cleanly."""
        self._ends += 1
        for table in self.storage.tables.values():
            table.wake()

    async def answer(self, asked: Asked, kind: Kind) -> web.Response:
        """Return one page, of the moment that its first page was of."""
        accept = asked.request.headers.get("Accept", "*/*")
        if not any(word in accept for word in ("*/*", "json", "yaml", "protobuf")):
            offered = "application/json, application/yaml, application/vnd.kubernetes.protobuf, "
            offered += "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"
            raise Refusal(406, f"406: Not Acceptable\n\nAvailable representations: {offered}", details={})
        tests = _tests(asked, kind)
        version, start = await self._moment(asked, kind)
        objects = self.storage.table(kind).at(version, self.storage.version)
        chosen = [
            (where, objects[where])
            for where in sorted(objects)
            if where > start and (not asked.namespace or where[0] == asked.namespace)
        ]
        chosen = [(where, found) for where, found in chosen if all(test(found) for test in tests)]
        limit, told = asked.number("limit"), {"resourceVersion": str(version)}
        if asked.query.get("resourceVersion") == "0":  # from the cache, which has no pages
            limit = None
        if limit and len(chosen) > limit:
            told["continue"] = token_of(version, chosen[limit - 1][0])
            if not tests:
                told["remainingItemCount"] = len(chosen) - limit  # type: ignore[assignment]
            chosen = chosen[:limit]
        if "PartialObjectMetadataList" in accept:
            head: Object = {
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": told,
            }
            part = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
            items = [encode({**part, "metadata": found["metadata"]}) for _, found in chosen]
        else:
            head = {"kind": f"{kind.name}List", "apiVersion": kind.api_version, "metadata": told}
            items = [self.storage.encoded(found) for _, found in chosen]
        body = encode(head)[:-1] + b',"items":[' + b",".join(items) + b"]}"
        return web.Response(body=body, content_type="application/json")

    async def _moment(self, asked: Asked, kind: Kind) -> tuple[int, tuple[str, str]]:
        """Return the version that a list is of, and after which object it begins."""
        if token := asked.query.get("continue"):
            version, start = read_token(token)
            if version < self.storage.table(kind).oldest:
                raise gone(INCONSISTENT, **{"continue": token_of(self.storage.version, start)})
            return version, start
        version = version_of(asked)
        await self.reach(version)
        match = asked.query.get("resourceVersionMatch", "")
        if match == "Exact":
            if version < self.storage.table(kind).oldest:
                raise gone("The resourceVersion for the provided list is too old.")
            return version, ("", "")
        return self.storage.version, ("", "")

    async def reach(self, version: int) -> None:
        """Wait for a version; 504 if it does not come."""
        until = time.monotonic() + self.future_seconds
        while version > self.storage.version:
            if time.monotonic() >= until:
                raise too_large(version, self.storage.version)
            await asyncio.sleep(0.02)

    async def watch(self, asked: Asked, kind: Kind, fault: Fault | None) -> web.StreamResponse:
        """Stream events until the time is over, the client goes, or it has become too slow."""
        tests, table = _tests(asked, kind), self.storage.table(kind)
        since = version_of(asked)
        initial = asked.is_set("sendInitialEvents")
        newer = asked.query.get("resourceVersionMatch") == "NotOlderThan"
        if "sendInitialEvents" in asked.query and not newer:
            rule = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            told = cause("FieldValueForbidden", f"Forbidden: {rule}", "resourceVersionMatch")
            raise invalid("ListOptions", "", [told])
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        try:
            await self.reach(since)
        except Refusal as late:
            if not initial:
                raise
            await response.prepare(asked.request)
            await response.write(encode({"type": "ERROR", "object": late.body()}) + b"\n")
            return response
        if since and since < table.oldest and not initial:
            refusal = gone(f"too old resource version: {since} ({table.oldest})")
            if self.expired_as_status:
                raise refusal
            await response.prepare(asked.request)
            await response.write(encode({"type": "ERROR", "object": refusal.body()}) + b"\n")
            return response
        await response.prepare(asked.request)
        sender = _Sender(response, asked, fault)
        bookmarks = asked.is_set("allowWatchBookmarks")
        if not initial and "sendInitialEvents" in asked.query:
            since = since or self.storage.version  # from now on
        elif initial or not since:
            since = self.storage.version
            for _, found in sorted(table.objects.items(), key=lambda item: item[0]):
                if _visible(found, asked, tests) and not await sender.send(
                    "ADDED", self.storage.encoded(found)
                ):
                    return response
            if (
                initial
                and bookmarks
                and not await sender.send("BOOKMARK", bookmark(kind, since, initial=True))
            ):
                return response
        seconds = asked.number("timeoutSeconds")
        until = time.monotonic() + (seconds if seconds is not None else 3600)
        return await self._follow(asked, kind, sender, (since, until, bookmarks), tests)

    async def _follow(
        self, asked: Asked, kind: Kind, sender: _Sender, how: tuple[int, float, bool], tests: list[Test]
    ) -> web.StreamResponse:
        (since, until, bookmarks), table = how, self.storage.table(kind)
        marked, ends = time.monotonic(), self._ends
        while not self.closing and self._ends == ends:
            if since < table.oldest and table.changes and since < table.changes[0].version - 1:
                return sender.response  # it has become too slow: a clean end, as the server does
            parts = []
            for change in table.changes[table.after(since) :]:
                since = change.version
                now = change.type != "DELETED" and _visible(change.found, asked, tests)
                before = change.before is not None and _visible(change.before, asked, tests)
                if now or before:
                    kind_of = ("MODIFIED" if before else "ADDED") if now else "DELETED"
                    parts.append((kind_of, self.storage.encoded(change.found)))
            if parts and not await sender.send_all(parts):
                return sender.response
            at = time.monotonic()
            if at >= until:
                break
            if bookmarks and at - marked >= self.bookmark_seconds:
                marked = at
                since = max(
                    since, self.storage.version if table.after(since) == len(table.changes) else since
                )
                if not await sender.send("BOOKMARK", bookmark(kind, since)):
                    return sender.response
            if table.after(since) == len(table.changes):
                soon = marked + self.bookmark_seconds - at if bookmarks else until - at
                await table.wait(min(until - at, soon, 1.0))
        return sender.response


class _Sender:
    """Writes events, as far as a fault lets it."""

    def __init__(self, response: web.StreamResponse, asked: Asked, fault: Fault | None) -> None:
        self.response = response
        self.asked = asked
        self.fault = fault
        self.left = None if fault is None else fault.events

    async def send(self, kind: str, data: bytes) -> bool:
        """Send one event; False where the stream ends here."""
        return await self.send_all([(kind, data)])

    async def send_all(self, events: list[tuple[str, bytes]]) -> bool:
        """Send events in one write."""
        if self.fault is not None and self.fault.frozen:
            return True
        cut = self.left is not None and len(events) > self.left
        if self.left is not None:
            whole, rest = events[: self.left], events[self.left :]
            self.left -= len(whole)
        else:
            whole, rest = events, []
        lines = b"".join(b'{"type":"%s","object":%s}\n' % (kind.encode(), data) for kind, data in whole)
        if cut and self.fault is not None and self.fault.torn:
            kind, data = rest[0]
            lines += (b'{"type":"%s","object":%s}\n' % (kind.encode(), data))[:200]
        if lines:
            await self.response.write(lines)
        if cut and self.fault is not None and self.fault.torn:
            await asyncio.sleep(0)
            hang_up(self.asked.request)
        return not cut


def _tests(asked: Asked, kind: Kind) -> list[Test]:
    found = (
        by_labels(asked.query.get("labelSelector", "")),
        by_fields(asked.query.get("fieldSelector", ""), kind),
    )
    return [test for test in found if test is not None]


def _visible(found: Object, asked: Asked, tests: list[Test]) -> bool:
    if asked.namespace and found["metadata"].get("namespace") != asked.namespace:
        return False
    if asked.name and found["metadata"]["name"] != asked.name:
        return False
    return all(test(found) for test in tests)


def version_of(asked: Asked) -> int:
    """Return the version that a request names, 0 for none."""
    text = asked.query.get("resourceVersion") or "0"
    if not text.isdigit():
        raise Refusal(400, f'Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax')
    return int(text)


def token_of(version: int, after: tuple[str, str]) -> str:
    """Return a continue token."""
    said = json.dumps({"v": "meta.k8s.io/v1", "rv": version, "start": "/".join(after) + "\0"})
    return base64.urlsafe_b64encode(said.encode()).decode().rstrip("=")


def read_token(token: str) -> tuple[int, tuple[str, str]]:
    """Return a token's version and the object before the page; 400 for what is none."""
    try:
        said = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        namespace, _, name = said["start"].rstrip("\0").partition("/")
        return int(said["rv"]), (namespace, name)
    except (ValueError, KeyError, TypeError):
        why = "invalid character 'Ï' looking for beginning of value"
        raise Refusal(400, f"invalid continue token: continue key is not valid: {why}") from None


def bookmark(kind: Kind, version: int, *, initial: bool = False) -> bytes:
    """Return the object of a bookmark."""
    metadata: Object = {"resourceVersion": str(version)}
    if initial:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    spec: Object = {"spec": {"containers": None}, "status": {}} if kind.plural == "pods" else {}
    return encode({"kind": kind.name, "apiVersion": kind.api_version, "metadata": metadata, **spec})
