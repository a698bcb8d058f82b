"""All pods of an application in a namespace, as they are: one list, then one watch, for all tasks together.

In: lines of a watch. Out: each change of each pod once, in order, to whoever owns that pod. A watch that ends is
continued from the last version seen, which loses nothing and repeats nothing. When the server has forgotten that version
(410), or nobody knows any more, everything is listed anew and compared: what is not in the list is gone, what is other
is told, what is the same is not. No watch is believed to be alive for long without a word: bookmarks come each minute.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec

from datatask.adapters.execute.kube import pods
from datatask.adapters.execute.kube.connection import Cluster, Refusal, RefusedError, path_of
from datatask.adapters.execute.kube.pods import Pod, decode_event, decode_list, decode_pod, decode_status
from datatask.engine.runtime.services import current
from datatask.schema.errors import CallerError

logger = logging.getLogger("datatask.pod_manager")

PAGE = 500
WATCH_SECONDS = (240, 480)
"""Watches are ended by the server after a while drawn from these, so that not all end at once."""
SILENT_SECONDS = 90.0
TELL_AFTER_SECONDS = 3.0
OPEN_SECONDS = 5.0
BACKOFF = (0.1, 10.0)
LINE_BYTES_MAX = 32 * 1024 * 1024


class Owner(Protocol):
    """Who is told of a pod; all is called on the loop."""

    def on_pod(self, pod: Pod) -> None:
        """The pod is there, or has changed."""

    def on_gone(self, name: str, last: Pod | None) -> None:
        """The pod's object is no longer there; `last` is what was seen of it last, if it was seen."""

    def on_silence(self, message: str) -> None:
        """The API server cannot be reached."""

    def on_contact(self) -> None:
        """It can be reached again."""


class Expired(Exception):
    """The version is too old: list anew."""


class Broken(Exception):
    """The stream said what it cannot say; go on from the last version."""


class Watch:
    """The pods of one application in one namespace."""

    def __init__(self, cluster: Cluster, namespace: str, app: str) -> None:
        self.cluster, self.namespace, self.app = cluster, namespace, app
        self.known: dict[str, Pod] = {}
        self.listed = asyncio.Event()
        self.lists = 0
        self.message = ""
        self.silent_seconds = SILENT_SECONDS
        self.stray: Callable[[Pod], None] | None = None
        self._version = ""
        self._owners: dict[str, tuple[Owner, int]] = {}
        self._audience: list[Owner] = []
        self._work: asyncio.Task[None] | None = None
        self._silent = False
        self._opening = False
        self._last_contact = time.monotonic()

    # --- who is told ------------------------------------------------------------------------------

    async def open(self) -> None:
        """Begin; the first list is awaited only so far as to hear that we are turned away."""
        loop = asyncio.get_running_loop()
        self._services = current()
        self._service = self._services.service(f"the watch on {self._label}")
        self._opening = True
        self._work = loop.create_task(self._run())
        first = loop.create_task(self.listed.wait())
        await asyncio.wait({self._work, first}, timeout=OPEN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        self._opening = False
        first.cancel()
        if self._work.done():
            await self._work
        self._services.mind(self._work, self._service.name)

    async def close(self) -> None:
        """End."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
            self._work = None

    def join(self, owner: Owner) -> None:
        """Tell this owner of silence and contact."""
        self._audience.append(owner)

    def leave(self, owner: Owner) -> None:
        """Tell it nothing any more."""
        if owner in self._audience:
            self._audience.remove(owner)

    def own(self, name: str, owner: Owner) -> None:
        """Tell this owner of the pod with this name."""
        self._owners[name] = owner, -1

    def disown(self, name: str) -> None:
        """Tell nobody any more."""
        self._owners.pop(name, None)

    def expect(self, name: str) -> None:
        """The server has confirmed that the pod is there: a list that begins from now on and lacks it says that it is gone."""
        if name in self._owners and name not in self.known:
            self._owners[name] = self._owners[name][0], self.lists

    # --- the loop ---------------------------------------------------------------------------------

    async def _run(self) -> None:
        delay = BACKOFF[0]
        while True:
            began, version = time.monotonic(), self._version
            after: float | None = None
            try:
                if not self._version:
                    await self._list()
                await self._follow()
            except Expired:
                self._version = ""
            except Broken as error:
                logger.info("%s: the watch broke (%s), it is continued", self._label, error)
            except RefusedError as error:
                refusal = error.refusal
                self._refused(refusal)
                after = refusal.after_seconds
            except CallerError:
                raise
            except Exception as error:  # ours: nobody would be told of any pod any more if this ended here
                after = self._service.failed(error)
                self._version = ""
            if self._version != version or time.monotonic() - began > BACKOFF[1]:
                delay = BACKOFF[0]  # it brought something, or lasted
            else:
                delay = min(delay * 2, BACKOFF[1])
            if after is not None or delay > BACKOFF[0]:
                await asyncio.sleep(max(after or 0.0, delay * random.uniform(0.75, 1.25)))

    @property
    def _label(self) -> str:
        return f"{self.cluster.host} {self.namespace}/{self.app}"

    def _refused(self, refusal: Refusal) -> None:
        """Go on all the same, but for the first list: who is turned away then has to know at once."""
        if self._opening and refusal.again in ("limited", "never"):
            raise _turned_away(refusal, self)
        if refusal.code == 410:
            self._version = ""
            return
        self.message = f"{self.cluster.host}: {refusal.words}"
        since = time.monotonic() - self._last_contact
        quiet = (
            refusal.code == 0
            and refusal.words.startswith("no answer within")
            and since < self.silent_seconds * 2
        )
        if not self._silent and not quiet and since > TELL_AFTER_SECONDS:
            self._silent = True
            logger.warning("%s does not answer as it should: %s", self._label, refusal.words)
            for owner in list(self._audience):
                owner.on_silence(self.message)

    def _contact(self) -> None:
        self._last_contact = time.monotonic()
        self._service.works()
        if self._silent:
            self._silent = False
            self.message = ""
            logger.warning("%s answers again", self._label)
            for owner in list(self._audience):
                owner.on_contact()

    @property
    def is_silent(self) -> bool:
        """Whether the server has not let itself be watched for a while."""
        return self._silent

    # --- listing ----------------------------------------------------------------------------------

    async def _list(self) -> None:
        """List everything in pages, one consistent picture, and make what is known equal to it."""
        begun = self.lists
        self.lists += 1
        seen: dict[str, Pod] = {}
        token, version = "", ""
        while True:
            query: dict[str, str | int] = {"labelSelector": pods.selector(self.app), "limit": PAGE}
            if token:
                query["continue"] = token
            page = decode_list(await self.cluster.ask("GET", path_of(self.namespace), query))
            self._contact()
            seen.update((pod.name, pod) for pod in page.items)
            version, token = page.metadata.resource_version, page.metadata.continue_
            if not token:
                break
        for pod in seen.values():
            self._apply(pod)
        for name in [name for name in self.known if name not in seen]:
            self._vanish(name)
        for name, (owner, expected) in list(self._owners.items()):
            if 0 <= expected <= begun and name not in seen:
                self._owners[name] = owner, -1
                owner.on_gone(name, None)
        self._version = version
        self.listed.set()

    # --- following --------------------------------------------------------------------------------

    async def _follow(self) -> None:
        query: dict[str, str | int] = {
            "labelSelector": pods.selector(self.app),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": random.randint(*WATCH_SECONDS),
        }
        async with self.cluster.stream(
            path_of(self.namespace), query, silent_seconds=self.silent_seconds
        ) as parts:
            self._contact()
            async for line in lines(parts):
                self._take(line)

    def _take(self, line: bytes) -> None:
        """Apply one line of the watch."""
        try:
            event = decode_event(line)
            if event.type == "ERROR":
                status = decode_status(event.object)
                if status.code == 410 or status.reason in ("Expired", "Gone"):
                    raise Expired
                raise Broken(status.message or f"code {status.code}")
            pod = decode_pod(event.object)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise Broken(f"a line that is no event: {line[:80]!r}") from error
        self._last_contact = time.monotonic()
        if event.type == "DELETED":
            known = self.known.get(pod.name)
            if known is None or known.uid == pod.uid:
                self.known[pod.name] = pod
                self._vanish(pod.name)
        elif event.type in ("ADDED", "MODIFIED"):
            self._apply(pod)
        self._version = pod.metadata.resource_version or self._version

    def _apply(self, pod: Pod) -> None:
        """Take a pod's version, unless it or a later one is known."""
        known = self.known.get(pod.name)
        if known is not None and known.uid == pod.uid:
            if not _newer(pod.metadata.resource_version, known.metadata.resource_version):
                return
        elif known is not None:
            self._vanish(pod.name)
        self.known[pod.name] = pod
        found = self._owners.get(pod.name)
        if found is not None:
            found[0].on_pod(pod)
        elif self.stray is not None:
            self.stray(pod)

    def _vanish(self, name: str) -> None:
        last = self.known.pop(name, None)
        found = self._owners.get(name)
        if found is not None:
            self._owners[name] = found[0], -1
            found[0].on_gone(name, last)


def _newer(version: str, known: str) -> bool:
    if version.isdigit() and known.isdigit():
        return int(version) > int(known)
    return version != known


def _turned_away(refusal: Refusal, watch: Watch) -> CallerError:
    remedies = {
        401: "log in again: the credentials of the configuration are not accepted",
        403: f"let this user create, get, list, watch, patch and delete pods in {watch.namespace}: docs/kubernetes.md has the manifest",
    }
    return CallerError(
        refusal.words,
        where=f"{watch.cluster.host}, namespace {watch.namespace}",
        remedy=remedies.get(refusal.code, "see `datatask doctor`"),
    )


async def lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the whole lines of a stream; what comes after the last newline is not one."""
    rest = b""
    async for part in parts:
        rest += part
        if b"\n" in part:
            *whole, rest = rest.split(b"\n")
            for line in whole:
                if line:
                    yield line
        elif len(rest) > LINE_BYTES_MAX:
            raise Broken(f"a line of more than {LINE_BYTES_MAX} bytes")
