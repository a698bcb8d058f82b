"""Watches: each change, once, in order, from a version on; bookmarks; 410 where that version is forgotten.

In: a target and the query. Out: a stream of JSON lines. A test can end all watches that are open: cleanly, by a broken
connection, by an ERROR event, or let them be silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

from aiohttp import web

from tests.kube.fake.faults import Cut
from tests.kube.fake.refusals import Refusal, invalid, too_old
from tests.kube.fake.resources import Target, flag
from tests.kube.fake.selectors import Match, selector
from tests.kube.fake.storing import Change, Store, encode

Ending = Literal["clean", "cut", "gone", "silent"]
TIMEOUT_SECONDS = 1800.0
BATCH = 500


class Watch:
    """One open watch."""

    def __init__(
        self, store: Store, target: Target, query: Mapping[str, str], bytes_max: int | None = None
    ) -> None:
        self.store, self.target, self.query = store, target, query
        self.table = store.tables[target.resource.plural]
        self.bytes_max = bytes_max
        self.sent = 0
        self.ending: Ending | None = None
        self.chosen: Match | None = selector(
            target.resource.plural, query.get("labelSelector", ""), query.get("fieldSelector", "")
        )

    def end(self, how: Ending) -> None:
        """End the watch, or silence it."""
        self.ending = how
        self.table.ring()

    async def serve(
        self, request: web.BaseRequest, *, bookmark_seconds: float, lag_max: int | None
    ) -> web.StreamResponse:
        """Tell changes until the time is over."""
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        self._first_lines()  # a refusal has a status of its own
        await response.prepare(request)
        try:
            position = await self._begin(response)
            await self._follow(response, position, bookmark_seconds, lag_max)
        except Refusal as refusal:
            await self._write(response, [_line(b"ERROR", encode(refusal.status()))])
        return response

    def _first_lines(self) -> None:
        if flag(self.query, "sendInitialEvents") and not self.query.get("resourceVersionMatch"):
            why = "Forbidden: resourceVersionMatch is required when sendInitialEvents is set"
            raise invalid("ListOptions", "", [("FieldValueForbidden", why, "sendInitialEvents")])

    async def _begin(self, response: web.StreamResponse) -> int:
        """Send the present where it was asked for; return the position to go on from."""
        asked = int(self.query.get("resourceVersion") or 0)
        initial = flag(self.query, "sendInitialEvents")
        if asked and not initial:
            if asked + 1 < self.store.oldest:
                raise too_old(asked, self.store.oldest)
            return self.table.after(asked)
        position = self.table.end
        version = self.store.version
        objects = self.store.all(self.target.resource.plural, self.target.namespace)
        lines = [_line(b"ADDED", encode(one)) for one in objects if self.chosen is None or self.chosen(one)]
        if initial and flag(self.query, "allowWatchBookmarks"):
            lines.append(self._bookmark(version, {"annotations": {"k8s.io/initial-events-end": "true"}}))
        await self._write(response, lines)
        return position

    async def _follow(
        self, response: web.StreamResponse, position: int, bookmark_seconds: float, lag_max: int | None
    ) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + float(self.query.get("timeoutSeconds") or TIMEOUT_SECONDS)
        bookmarks = flag(self.query, "allowWatchBookmarks")
        bookmark_at = loop.time() + bookmark_seconds
        while True:
            bell = self.table.bell
            if await self._ended():
                return
            if self.ending != "silent":
                if position < self.table.dropped or (lag_max and self.table.end - position > lag_max):
                    return  # too slow: the server ends the stream, and says nothing
                changes = self.table.since(position)[:BATCH]
                position += len(changes)
                await self._write(response, [line for change in changes if (line := self._told(change))])
                if position < self.table.end:
                    continue
                if bookmarks and loop.time() >= bookmark_at:
                    await self._write(response, [self._bookmark(self.store.version, {})])
                    bookmark_at = loop.time() + bookmark_seconds
            wake_at = min(until, bookmark_at) if bookmarks and self.ending != "silent" else until
            if not await _rung(bell, wake_at - loop.time()) and loop.time() >= until:
                return

    async def _ended(self) -> bool:
        match self.ending:
            case "cut":
                raise Cut
            case "gone":
                raise too_old(1, self.store.version)
        return self.ending == "clean"

    def _told(self, change: Change) -> bytes | None:
        """Return a change as this watch sees it; None where it does not."""
        if self.target.namespace and change.object["metadata"].get("namespace") != self.target.namespace:
            return None
        if self.target.name and change.object["metadata"]["name"] != self.target.name:
            return None
        if self.chosen is None:
            return _line(change.kind.encode(), change.body)
        before = change.before is not None and self.chosen(change.before)
        after = not change.gone and self.chosen(change.object)
        if after:
            return _line(b"MODIFIED" if before else b"ADDED", change.body)
        if not before:
            return None
        if change.gone:
            return _line(b"DELETED", change.body)
        assert change.before is not None
        metadata = {**change.before["metadata"], "resourceVersion": str(change.version)}
        return _line(b"DELETED", encode({**change.before, "metadata": metadata}))

    def _bookmark(self, version: int, more: dict[str, Any]) -> bytes:
        told: dict[str, Any] = {
            "kind": self.target.resource.kind,
            "apiVersion": self.target.resource.api_version,
            "metadata": {"resourceVersion": str(version), **more},
        }
        if self.target.resource.plural == "pods":
            told |= {"spec": {"containers": None}, "status": {}}
        return _line(b"BOOKMARK", encode(told))

    async def _write(self, response: web.StreamResponse, lines: list[bytes]) -> None:
        if not lines:
            return
        data = b"".join(lines)
        if self.bytes_max is not None and self.sent + len(data) > self.bytes_max:
            await response.write(data[: self.bytes_max - self.sent])
            await asyncio.sleep(0.01)  # let it leave before the connection breaks
            raise Cut
        self.sent += len(data)
        await response.write(data)


def _line(kind: bytes, body: bytes) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (kind, body)


async def _rung(bell: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await bell.wait()
    except TimeoutError:
        return False
    return True
