"""Recorded watch streams, told again by the fake server: to whoever lists and watches, over HTTP.

In: events as they were recorded. Out: the same objects under versions of this server, in the recorded order, or in any other
that Kubernetes allows: order is promised for each object, not between objects. `onto` lets recorded lives happen to pods that
somebody created here: those keep their name, identity, labels, annotations and finalizers.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.kube.fake.cluster import FakeCluster
from tests.kube.fake.storing import Object

RECORDINGS = Path(__file__).parents[1] / "recordings"
KEPT = (
    "name",
    "namespace",
    "uid",
    "labels",
    "annotations",
    "finalizers",
    "creationTimestamp",
    "managedFields",
)


class Event(NamedTuple):
    """What was told of an object."""

    kind: str
    object: Object


def recorded(name: str = "watch-whole-life-of-pods") -> list[Event]:
    """Return the events of a recording, bookmarks left out."""
    told = json.loads((RECORDINGS / f"{name}.json").read_text())["response"]["events"]
    return [Event(one["type"], one["object"]) for one in told if one["type"] not in ("BOOKMARK", "ERROR")]


def interleaved(events: list[Event], chance: random.Random) -> list[Event]:
    """Return the events in another order: that of each object stays."""
    lives: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        lives[event.object["metadata"]["uid"]].append(event)
    turns = [uid for uid, life in lives.items() for _ in life]
    chance.shuffle(turns)
    queues = {uid: iter(life) for uid, life in lives.items()}
    return [next(queues[uid]) for uid in turns]


class Player:
    """Plays events into a cluster that has no kubelet."""

    def __init__(
        self, cluster: FakeCluster, events: list[Event], *, onto: Mapping[str, str] | None = None
    ) -> None:
        self.cluster, self.events, self.onto = cluster, events, dict(onto or {})
        self.played = 0
        for event in events:
            namespace = event.object["metadata"]["namespace"]
            if cluster.store.get("namespaces", "", namespace) is None:
                cluster.add_namespace(namespace)

    def step(self) -> bool:
        """Play the next event; tell whether there was one."""
        if self.played == len(self.events):
            return False
        event = self.events[self.played]
        self.played += 1
        store = self.cluster.store
        given = self._taken_over(event.object)
        metadata = given["metadata"]
        exists = store.get("pods", metadata["namespace"], metadata["name"])
        if event.kind != "DELETED":
            if exists is not None or event.kind == "ADDED" or not self.onto:
                store.put("pods", given)
        elif exists is not None:
            if metadata.get("finalizers"):
                store.put("pods", given)  # whoever holds it lets it go
            else:
                store.remove("pods", given)
        return True

    async def play(self, *, pause_seconds: float = 0.0) -> None:
        """Play all that is left."""
        while self.step():
            await asyncio.sleep(pause_seconds)

    def _taken_over(self, given: Object) -> Object:
        """Return the object as it looks when it happens to a pod of this cluster."""
        name = self.onto.get(given["metadata"]["name"])
        mine = next((one for key, one in self.cluster.pods().items() if key == name), None) if name else None
        if mine is None:
            return given
        metadata: dict[str, Any] = {**given["metadata"]}
        for key in KEPT:
            metadata.pop(key, None)
            if key in mine["metadata"]:
                metadata[key] = mine["metadata"][key]
        return {**given, "metadata": metadata}
