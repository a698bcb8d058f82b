"""Recorded watch streams, played through the server: in comes a recording, out go its events to whoever watches.

Kubernetes promises the order of one object's versions only: `shuffled` mixes the pods' lives with each other. Objects are
what was recorded; only versions are the server's own, and names, namespace, labels and the like are a test's to adapt.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from tests.kube.api.deleting import PODS, delete
from tests.kube.api.server import Server
from tests.kube.api.storage import key_of

Object = dict[str, Any]
Event = dict[str, Any]
DELETION = ("deletionTimestamp", "deletionGracePeriodSeconds", "generation")


def lives(events: Sequence[Event]) -> dict[str, list[Event]]:
    """Return each pod's events, in order."""
    found: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        found[event["object"]["metadata"]["name"]].append(event)
    return dict(found)


def shuffled(events: Sequence[Event], chance: random.Random) -> list[Event]:
    """Return the events in another order that Kubernetes allows."""
    left = {name: list(life) for name, life in lives(events).items()}
    mixed = []
    while left:
        name = chance.choice(sorted(left))
        mixed.append(left[name].pop(0))
        if not left[name]:
            del left[name]
    return mixed


class Player:
    """Puts events into a server; `adapt` changes an object before it is stored (None: it is left out)."""

    def __init__(
        self,
        server: Server,
        events: Sequence[Event],
        adapt: Callable[[Object], Object | None] = lambda pod: pod,
    ) -> None:
        self.server = server
        self.events = list(events)
        self.adapt = adapt
        self.played = 0

    def step(self) -> bool:
        """Play the next event; False when there is none."""
        if self.played == len(self.events):
            return False
        event = self.events[self.played]
        self.played += 1
        pod = self.adapt(event["object"])
        if pod is None:
            return True
        storage = self.server.storage
        found = storage.table(PODS).objects.get(key_of(pod))
        if event["type"] == "DELETED":
            if found is not None and not found["metadata"].get("finalizers"):
                storage.remove(PODS, pod)
            elif found is not None:  # it stays until whoever holds it lets go
                delete(storage, PODS, found, {"gracePeriodSeconds": 0})
        elif found is None:
            storage.create(PODS, pod)
        else:
            storage.update(PODS, pod)
        return True

    async def play(self, pause: float = 0.0) -> None:
        """Play all, with a pause after each, so that whoever watches may see it."""
        while self.step():
            await asyncio.sleep(pause)


def onto(server: Server, find: Callable[[str], str | None]) -> Callable[[Object], Object | None]:
    """Return an `adapt` that gives recorded states to pods of the server: `find` tells whose a recorded name is."""

    def adapt(recorded: Object) -> Object | None:
        name = find(recorded["metadata"]["name"])
        pod = next((one for one in server.pods() if one["metadata"]["name"] == name), None)
        if pod is None:
            return None
        marks = {key: recorded["metadata"][key] for key in DELETION if key in recorded["metadata"]}
        node = recorded["spec"].get("nodeName")
        spec = {**pod["spec"], "nodeName": node} if node else pod["spec"]
        return {**pod, "metadata": {**pod["metadata"], **marks}, "spec": spec, "status": recorded["status"]}

    return adapt
