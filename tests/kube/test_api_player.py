"""Recordings played through the API server for tests: to a watch, and to the runner of pods, in any order that may come."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import aiohttp
import pytest

from datatask.adapters.execute.kube import names
from tests.kube.api import Fault, Server, serve
from tests.kube.api.deleting import PODS
from tests.kube.api.player import Player, lives, onto, recorded, shuffled
from tests.kube.test_recordings import ENDS, RUNS, ends_of
from tests.kube.test_runner_scripted import Facts, make_task, opened, spec

RECORDING = Path(__file__).parent / "recordings" / "watch-whole-life-of-pods.json"


async def test_a_watch_gets_what_was_recorded() -> None:
    """Every event, in order, object for object; only the versions are the server's."""
    events = recorded(RECORDING)
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
    events = recorded(RECORDING)
    mixed = shuffled(events, random.Random(1))
    assert mixed != events
    assert lives(mixed) == lives(events)


async def played(chance: random.Random, *, mixed: bool, cuts: int = 0) -> Facts:
    """Let the runner start a pod for each recorded one, and give them the recorded lives."""
    events = recorded(RECORDING)
    async with serve() as server:
        server.namespace("space")
        async with opened(make_task(server, logs=False)) as (runner, facts):  # type: ignore[arg-type]
            for job, run in RUNS.items():
                runner.start(spec(run, job))
            async with asyncio.timeout(10):
                while len(server.pods("space")) < len(RUNS):
                    await asyncio.sleep(0.005)
            whose = {
                pod["metadata"]["annotations"][f"{names.DOMAIN}/job"]: pod["metadata"]["name"]
                for pod in server.pods("space")
            }
            player = Player(server, shuffled(events, chance) if mixed else events, onto(server, whose.get))
            await _play(server, player, chance, cuts)
            for run in RUNS.values():
                await facts.end(run)
                runner.forget(run)
            async with asyncio.timeout(10):
                while server.pods("space"):
                    await asyncio.sleep(0.005)
            return facts


async def _play(server: Server, player: Player, chance: random.Random, cuts: int) -> None:
    """Play all; at some places the watch is cut: cleanly, within an event, or by a history that is forgotten."""
    places = set(chance.sample(range(len(player.events)), cuts))
    while player.step():
        if player.played in places:
            how = chance.choice(("clean", "torn", "forgotten"))
            if how == "forgotten":
                server.storage.compact(PODS)
            else:
                server.faults.append(Fault("watch", events=chance.randint(0, 3), torn=how == "torn"))
            if chance.random() < 0.5:
                server.faults.append(Fault("list", code=500, message="etcdserver: leader changed"))
        await asyncio.sleep(0)


async def test_runs_end_as_recorded() -> None:
    """Each once; nothing is left."""
    assert ends_of(await played(random.Random(0), mixed=False)) == ENDS


@pytest.mark.parametrize("seed", range(4))
async def test_runs_end_as_recorded_in_any_order_and_with_cuts(seed: int) -> None:
    """Pods are held by a finalizer, so that no end is missed."""
    chance = random.Random(seed)
    assert ends_of(await played(chance, mixed=True, cuts=4)) == ENDS
