"""What all tasks of a manager share: the cluster, the watch, the logs, and how much is asked of the server at a time.

In: pods to create, to delete, to let go of. Out: requests, no more than the server can take: so many in flight, and none
while it has asked us to wait. A pod that is no longer needed is deleted and loses its finalizer in the background; what
does not get done before we end is done by the next engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from typing import Any

from datatask.adapters.execute.base.pressure import Pressure
from datatask.adapters.execute.kube import pods
from datatask.adapters.execute.kube.causes import Causes
from datatask.adapters.execute.kube.connection import MERGE_PATCH, Cluster, Refusal, RefusedError, path_of
from datatask.adapters.execute.kube.evictions import Evictions
from datatask.adapters.execute.kube.logs import Logs
from datatask.adapters.execute.kube.manifests import Manifest
from datatask.adapters.execute.kube.pods import Metadata, Pod, decode_pod
from datatask.adapters.execute.kube.watch import Watch
from datatask.engine.runtime.services import current

logger = logging.getLogger("datatask.pod_manager")

IN_FLIGHT = 16
CLEANERS = 8
UNWANTED_MAX = 10_000
CLEAN_SECONDS = 5.0
BACKOFF = (0.5, 30.0)
OTHERS_SECONDS = 2.0


class Shared:
    """One application in one namespace of one cluster, while at least one task uses it."""

    def __init__(self, cluster: Cluster, namespace: str, app: str) -> None:
        self.cluster, self.namespace, self.app = cluster, namespace, app
        self.finalizer = True
        self._users = 0
        self._attaching: asyncio.Lock | None = None
        self._unwanted: OrderedDict[str, None] = OrderedDict()
        self._dirty: deque[tuple[Pod, int]] = deque()
        self._cleaners: set[asyncio.Task[None]] = set()
        self._timers: list[asyncio.TimerHandle] = []
        self._failures = 0
        self._closed_until = 0.0
        self._others_at = 0.0
        self._others = ""
        self.others_are_later = False
        self.runs: set[str] = set()
        self.pressures: set[Pressure] = set()

    @property
    def where(self) -> str:
        """The namespace, as runs tell where they are."""
        return self.namespace

    async def attach(self) -> None:
        """One more task; the first one connects, and hears whether we are turned away."""
        self._attaching = self._attaching or asyncio.Lock()
        async with self._attaching:
            if self._users == 0:
                await self.cluster.attach()
                self.watch = Watch(self.cluster, self.namespace, self.app)
                self.watch.stray = self._strays
                self.logs = Logs(self.cluster, self.namespace)
                self.causes = Causes(self.cluster, self.namespace)
                self.evictions = Evictions(self.cluster, self.namespace)
                self.prepare()
                try:
                    await self.watch.open()
                except BaseException:
                    await self._close()
                    raise
            self._users += 1

    def prepare(self) -> None:
        """Get ready to ask, on the running loop."""
        self._most = float(IN_FLIGHT)
        self._in_flight = 0
        self._services = current()
        self._turns: deque[asyncio.Future[None]] = deque()

    async def detach(self) -> None:
        """One task less; the last one lets go of everything, after some time for cleaning up."""
        self._users -= 1
        if self._users == 0:
            if self._cleaners:
                await asyncio.wait(self._cleaners, timeout=CLEAN_SECONDS)
            await self._close()

    async def _close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for cleaner in self._cleaners:
            cleaner.cancel()
        await asyncio.gather(*self._cleaners, return_exceptions=True)
        self._dirty.clear()
        self.runs.clear()
        await self.watch.close()
        await self.causes.close()
        await self.evictions.close()
        await self.logs.close()
        await self.cluster.detach()
        self._attaching = None

    # --- asking -----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Lend one of the places in flight, when the server has not asked us to wait."""
        while self._in_flight >= int(self._most):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._turns.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._next()  # it may have been this one's turn
                raise
        self._in_flight += 1
        try:
            while (wait := self._closed_until - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            yield
        finally:
            self._in_flight -= 1
            self._next()

    def _next(self) -> None:
        """Let those who wait have what is free."""
        free = int(self._most) - self._in_flight
        while free > 0 and self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1

    async def create(self, manifest: Manifest) -> Pod:
        """Create a pod; `RefusedError` when the server did not, or did not say."""
        async with self.slot():
            return await self._asked("POST", path_of(self.namespace), manifest)

    async def get(self, name: str) -> Pod | None:
        """Return a pod as it is now, or None where there is none."""
        try:
            async with self.slot():
                return await self._asked("GET", path_of(self.namespace, name))
        except RefusedError as error:
            if error.refusal.code == 404:
                return None
            raise

    async def delete(self, name: str, uid: str, grace_seconds: int) -> None:
        """Ask for the deletion of a pod; one that is not there, or is another one, is fine."""
        body: dict[str, Any] = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "gracePeriodSeconds": grace_seconds,
        }
        if uid:
            body["preconditions"] = {"uid": uid}
        await self._change("DELETE", name, body)

    async def release(self, pod: Pod) -> None:
        """Take our finalizer from a pod: from then on it may go."""
        kept = [one for one in pod.metadata.finalizers or () if one != pods.FINALIZER]
        metadata: dict[str, Any] = {"finalizers": kept or None}
        if pod.uid:
            metadata["uid"] = pod.uid
        await self._change("PATCH", pod.name, {"metadata": metadata}, content_type=MERGE_PATCH)

    async def _change(self, method: str, name: str, body: Any, **more: Any) -> None:
        try:
            async with self.slot():
                await self._asked(method, path_of(self.namespace, name), body, decoded=False, **more)
        except RefusedError as error:
            if error.refusal.code not in (404, 409):
                raise

    async def _asked(
        self, method: str, path: str, body: Any = None, *, decoded: bool = True, **more: Any
    ) -> Pod:
        try:
            answer = await self.cluster.ask(method, path, body=body, **more)
        except RefusedError as error:
            if error.refusal.again == "busy" and error.refusal.code != 409:
                self._wait(error.refusal)
            raise
        self._failures = 0
        self._most = min(IN_FLIGHT, self._most + 1 / self._most)
        return decode_pod(answer) if decoded else Pod()

    def _wait(self, refusal: Refusal) -> None:
        """Ask nothing for a while, as long as the server says, else longer each time."""
        now = time.monotonic()
        if now < self._closed_until:
            if refusal.after_seconds is not None:
                self._closed_until = max(self._closed_until, now + refusal.after_seconds)
            return  # one of several that were in flight
        self._failures += now >= self._closed_until
        self._most = max(1.0, self._most / 2)  # fewer at a time, until it keeps up again
        delay = min(BACKOFF[0] * 2 ** min(self._failures - 1, 10), BACKOFF[1]) * random.uniform(0.75, 1.25)
        self._closed_until = max(self._closed_until, now + (refusal.after_seconds or delay))

    def freed(self) -> None:
        """A pod of ours is over or gone: a quota may have room."""
        for pressure in self.pressures:
            pressure.freed()

    # --- cleaning up ------------------------------------------------------------------------------

    def discard(self, pod: Pod) -> None:
        """Delete a pod that is over, in the background, and let go of it."""
        self._dirty.append((pod, 0))
        if len(self._cleaners) < CLEANERS:
            cleaner = self._services.keep("the removal of pods", lambda _: self._clean(), ends=True)
            self._cleaners.add(cleaner)
            cleaner.add_done_callback(self._cleaners.discard)

    def discard_later(self, pod: Pod, seconds: float) -> None:
        """Delete a pod when so many seconds are over; the next engine does it where we end before."""
        self._timers.append(asyncio.get_running_loop().call_later(seconds, self.discard, pod))

    def discard_name(self, name: str) -> None:
        """Delete a pod that may or may not be there, or come yet: whoever asked for it wants it no more."""
        self._unwanted[name] = None
        while len(self._unwanted) > UNWANTED_MAX:
            self._unwanted.popitem(last=False)
        kept = [pods.FINALIZER] if self.finalizer else None
        self.discard(Pod(metadata=Metadata(name=name, namespace=self.namespace, finalizers=kept)))

    def _strays(self, pod: Pod) -> None:
        """A pod that nobody owns: one that came late is deleted."""
        if pod.name in self._unwanted and pod.metadata.deletion_timestamp is None:
            self.discard(pod)

    async def _clean(self) -> None:
        while self._dirty:
            pod, tried = self._dirty.popleft()
            try:
                await self.remove(pod)
            except RefusedError as error:
                if error.refusal.again in ("limited", "never"):
                    logger.warning("pod %s is not removed: %s", pod.name, error.refusal.words)
                    continue
                self._dirty.append((pod, tried + 1))
                await asyncio.sleep(min(BACKOFF[0] * 2 ** min(tried, 10), BACKOFF[1]))

    async def remove(self, pod: Pod) -> None:
        """Delete a pod that is over, and take our finalizer from it."""
        if pod.metadata.deletion_timestamp is None:
            await self.delete(pod.name, pod.uid, 0)
        if pods.FINALIZER in (pod.metadata.finalizers or ()):
            await self.release(pod)

    # --- others -----------------------------------------------------------------------------------

    def other_owner(self, identity: str, url: str) -> str:
        """Return who else runs pods of this application here, in words, or the empty string.

        Another log's pods that are not over say that its engine is, or will be, here; so do runs of a later engine of
        this log that we know nothing of, or of a copy of it.
        """
        now = time.monotonic()
        if now - self._others_at < OTHERS_SECONDS:
            return self._others
        self._others_at, self._others, self.others_are_later = now, "", False
        log, epoch, _ = _parts(identity)
        for pod in self.watch.known.values():
            found = pods.identity_of(pod)
            if pod.is_over or pod.metadata.deletion_timestamp or not found or found in self.runs:
                continue
            theirs, later, _ = _parts(found)
            home = pod.annotation(pods.HOME)
            if theirs != log:
                self._others = f"the log {home or theirs}"
            elif later > epoch:
                self.others_are_later = True
                self._others = f"a later state of this log ({home or theirs})"
            elif home and url and home != url and os.path.exists(home.removeprefix("sqlite:///")):
                self._others = f"the log {home}, of which this is a copy or the other way round,"
            if self._others:
                self._others += (
                    f" has pods in {self.namespace} under the app {self.app!r}, such as {pod.name}"
                )
                break
        return self._others


def _parts(identity: str) -> tuple[str, int, int]:
    log, _, rest = identity.partition(".")
    epoch, _, run = rest.partition(".")
    return log, int(epoch) if epoch.isdigit() else 0, int(run) if run.isdigit() else 0
