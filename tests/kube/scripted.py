"""A test's hand on the API server for tests: what is there, what was asked, what goes wrong, and a cluster that does as it is told.

In: a `Server`. Out: its pods by name and its counts (`Hand`); pods that run, speak and end when a test says so, since nothing
else runs them (`Scripted`). `faults` and `rules` are the server's own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from tests.kube.api import Server, deleting, serve, telling, validation
from tests.kube.api.deleting import PODS
from tests.kube.api.kinds import BY_PATH
from tests.kube.api.storage import Change, now
from tests.kube.api.streams import Log

Object = dict[str, Any]
SPACE = "space"
QUOTAS, EVENTS = BY_PATH["", "v1", "resourcequotas"], BY_PATH["", "v1", "events"]


class Hand:
    """Looks at a server's pods in the namespace `space`, and lays hands on them as others than the engine do."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.storage = server.storage
        self.faults = server.faults
        self.rules = server.rules
        server.namespace(SPACE)

    # --- what is there ----------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where it is."""
        return self.server.url

    @property
    def pods(self) -> dict[str, Object]:
        """The pods that there are, by name."""
        return {pod["metadata"]["name"]: pod for pod in self.server.pods(SPACE)}

    @property
    def changes(self) -> list[Change]:
        """All that has happened to pods."""
        return self.storage.table(PODS).changes

    @property
    def counts(self) -> Counter[str]:
        """How often each `verb resource` was asked."""
        return self.server.counts

    def config(self, token: str = "admin") -> Object:
        """Return a kubeconfig."""
        return self.server.config(token)

    async def pod(self, part: str) -> Object:
        """Wait for a pod whose job or name this is."""
        async with asyncio.timeout(60):
            while True:
                for name, found in self.pods.items():
                    told = found["metadata"].get("annotations") or {}
                    if part in (name, told.get("datatask.io/job")):
                        return found
                await asyncio.sleep(0.005)

    def most_at_once(self) -> int:
        """Return how many pods there have been at most that were not over."""
        live: set[str] = set()
        most = 0
        for change in self.changes:
            over = change.type == "DELETED" or change.found["status"]["phase"] in ("Succeeded", "Failed")
            (live.discard if over else live.add)(change.found["metadata"]["name"])
            most = max(most, len(live))
        return most

    # --- what others do ---------------------------------------------------------------------------

    def make(self, name: str = "", phase: str = "Pending", **pod: Any) -> Object:
        """Let a pod be there, past all rules."""
        metadata = {"namespace": SPACE, **({"name": name} if name else {}), **pod.pop("metadata", {})}
        spec = {"containers": [{"name": "main", "image": "busybox"}], **pod.pop("spec", {})}
        made = {**pod, "metadata": metadata, "spec": spec, "status": {"phase": phase}}
        validation.default_pod(made)
        return self.storage.create(PODS, made)

    def delete(self, name: str, grace: int = 30) -> None:
        """Ask for a pod's deletion."""
        deleting.delete(self.storage, PODS, self.pods[name], {"gracePeriodSeconds": grace})

    def remove(self, name: str) -> None:
        """Let a pod be gone at once, whoever holds it."""
        self.storage.remove(PODS, self.pods[name])

    def limit(self, **hard: str) -> None:
        """Set a quota on the namespace."""
        metadata = {"name": "q", "namespace": SPACE}
        self.storage.create(QUOTAS, {"metadata": metadata, "spec": {"hard": hard}})

    def tell(self, name: str, reason: str, message: str, *, kind: str = "Normal", at: str = "") -> None:
        """Record an event about a pod."""
        event = telling.event(self.pods[name], "node1", reason, message, kind)
        self.storage.create(EVENTS, {**event, "lastTimestamp": at or now()})

    # --- what happens to the server ---------------------------------------------------------------

    def forget_history(self) -> None:
        """Make every version so far too old."""
        self.storage.compact(PODS)

    def end_watches(self) -> None:
        """End the watches that are open, cleanly."""
        self.server.reader.end_watches()


class Scripted(Hand):
    """A hand on a server whose pods do as the test says; it is their node, and keeps their logs."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._logs: dict[tuple[str, str], list[Log]] = {}
        server.node = self
        self.storage.table(PODS).listeners.append(self._see)

    def change(self, name: str, phase: str = "", *states: Object, node: str = "", **more: Any) -> None:
        """Change a pod's status: its phase, its containers' states, its node, anything else."""
        pod = self.pods[name]
        status, spec = {**pod["status"], **more}, pod["spec"]
        if phase:
            status["phase"] = phase
        if states:
            pairs = list(zip(spec["containers"], states, strict=True))
            before = {one["name"]: one for one in status.get("containerStatuses") or ()}
            status["containerStatuses"] = [
                telling.container(
                    one,
                    state,
                    before.get(one["name"], {}).get("restartCount", 0),
                    before.get(one["name"], {}).get("lastState"),
                )
                for one, state in pairs
            ]
            for one, state in pairs:
                if "terminated" in state:
                    self.kept(pod, one["name"]).end()
        if node:
            spec = {**spec, "nodeName": node}
        self.storage.update(PODS, {**pod, "spec": spec, "status": status})

    def run(self, name: str, node: str = "node1") -> None:
        """Let a pod's containers run."""
        count = len(self.pods[name]["spec"]["containers"])
        self.change(name, "Running", *[{"running": {"startedAt": now()}}] * count, node=node)

    def end(self, name: str, code: int = 0, **more: Any) -> None:
        """Let a pod's containers end with this code; one that shall be deleted is given free then."""
        count = len(self.pods[name]["spec"]["containers"])
        self.change(name, "Failed" if code else "Succeeded", *[terminated(code, **more)] * count)
        if self.pods[name]["metadata"].get("deletionTimestamp"):
            self.delete(name, 0)

    def say(self, name: str, text: bytes, container: str = "main") -> None:
        """Let a container write lines to its log."""
        self.kept(self.pods[name], container).write(text + b"\n")

    def kept(self, pod: Object, container: str) -> Log:
        """Return a container's log, whether or not it may be read yet."""
        return self._attempts(pod, container)[-1]

    def _attempts(self, pod: Object, container: str) -> list[Log]:
        where = pod["metadata"]["uid"], container
        if where not in self._logs:
            self._logs[where] = [Log()]
        return self._logs[where]

    def restart(self, name: str, code: int, *, seen: bool = True) -> None:
        """Let the first container end with this code and run again: its end is told before (`seen`), or only with the new start."""
        pod = self.pods[name]
        container = pod["spec"]["containers"][0]
        before = (pod["status"].get("containerStatuses") or [{"restartCount": 0}])[0]
        ended = terminated(code)
        self.kept(pod, container["name"]).end()
        if seen:
            told = telling.container(container, ended, before["restartCount"])
            self.change(name, "Running", containerStatuses=[told])
        self._attempts(pod, container["name"]).append(Log())
        running = {"running": {"startedAt": now()}}
        told = telling.container(container, running, before["restartCount"] + 1, ended)
        self.change(name, "Running", containerStatuses=[told])

    def lose_log(self, name: str, words: str = "", container: str = "main") -> None:
        """Let a container's log be gone, as after the deletion of a running pod: the kubelet has words in its place."""
        log = self.kept(self.pods[name], container)
        log.end()
        log.gone = words or telling.log_is_gone()

    # --- what the server asks of a node -----------------------------------------------------------

    def log(self, pod: Object, container: str, *, previous: bool) -> Log | None:
        """Return the log of a container that runs or ran."""
        told = pod["status"].get("containerStatuses") or ()
        begun = any(one["name"] == container and "waiting" not in one["state"] for one in told)
        if not begun and not any(one["name"] == container and one["restartCount"] for one in told):
            return None
        attempts = self._attempts(pod, container)
        if previous and len(attempts) > 1 and attempts[-1].is_over:  # only while the last attempt runs
            gone = Log()
            gone.gone = telling.log_is_gone()
            self._logs.setdefault((pod["metadata"]["uid"], ""), []).append(gone)
            return gone
        return attempts[-2 if previous else -1] if len(attempts) > previous else None

    async def execute(self, pod: Object, container: str, command: list[str]) -> asyncio.subprocess.Process:
        """There is nothing to run commands in."""
        raise NotImplementedError

    def _see(self, change: Change) -> None:
        if change.type == "DELETED":  # who follows its log has seen all
            for (uid, _), logs in self._logs.items():
                if uid == change.found["metadata"]["uid"]:
                    for log in logs:
                        log.end()

    def close(self) -> None:
        """Remove the logs' files."""
        for logs in self._logs.values():
            for log in logs:
                log.remove()


def terminated(code: int = 0, reason: str = "", at: str = "", **more: Any) -> Object:
    """Return the state of a container that is over, since `at` where it matters."""
    told = telling.terminated(code, reason, began=at, **more)["terminated"]
    return {"terminated": {**told, "finishedAt": at or told["finishedAt"]}}


@contextlib.asynccontextmanager
async def scripted() -> AsyncIterator[Scripted]:
    """Serve while the block lasts."""
    async with serve() as server:
        api = Scripted(server)
        try:
            yield api
        finally:
            api.close()
