"""Recordings played through the API server for tests, to a watch: all that was recorded, in any order that may come."""

from __future__ import annotations

import json
import random

import aiohttp

from tests.kube import recorded
from tests.kube.api import serve
from tests.kube.api.player import Player, lives, shuffled


async def test_a_watch_gets_what_was_recorded() -> None:
    """Every event, in order, object for object; only the versions are the server's."""
    events = recorded.events()
    async with serve() as server, aiohttp.ClientSession() as session:
        server.namespace("rec")
        player = Player(server, events)
        began = server.storage.version
        await player.play()
        url = f"{server.url}/api/v1/namespaces/rec/pods?watch=1&timeoutSeconds=0&resourceVersion={began}"
        async with session.get(url, headers={"Authorization": "Bearer admin"}) as response:
            seen = [json.loads(line) for line in (await response.text()).splitlines()]
    assert len(seen) == len(events) == player.played
    for told in (*seen, *events):
        told["object"]["metadata"].pop("resourceVersion")
    assert seen == events


def test_another_order_keeps_each_life() -> None:
    """Pods' events are mixed, those of one pod are not."""
    events = recorded.events()
    mixed = shuffled(events, random.Random(1))
    assert mixed != events
    assert lives(mixed) == lives(events)
