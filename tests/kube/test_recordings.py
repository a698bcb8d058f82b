"""What a real cluster said, told to the runner again: in its order, and in every order that Kubernetes allows.

Order is promised for each pod, not between pods. Streams are cut anywhere, versions are forgotten, lists come in between;
the ends are the same, one for each run.
"""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from datatask.adapters.execute.kube import names
from datatask.adapters.execute.kube.names import pod_name
from datatask.engine.ports import Ended, Started
from tests.kube.scripted import scripted
from tests.kube.test_runner_scripted import LOG, Facts, make_task, opened, spec

RECORDING = Path(__file__).parent / "recordings" / "watch-whole-life-of-pods.json"
ENDS = {
    "a": ("succeeded", 0),
    "gen-4dfrk": ("lost", 137),
    "p1": ("succeeded", 0),
    "p2": ("succeeded", 0),
    "p3": ("succeeded", 0),
    "exit3": ("failed", 3),
    "badcommand": ("refused", 128),
    "imagepull": ("lost", None),
    "deadline": ("timed_out", 137),
    "oomkilled": ("failed", 137),
    "configerror": ("lost", None),
    "unschedulable": ("lost", None),
    "del": ("lost", 137),
}
RUNS = {job: number for number, job in enumerate(ENDS, 1)}
NEVER_RAN = {"badcommand", "imagepull", "configerror", "unschedulable"}


class Replay:
    """A cluster that says what was recorded, of pods that are ours."""

    def __init__(self, chance: random.Random, *, shuffled: bool, cuts: int) -> None:
        events = json.loads(RECORDING.read_text())["response"]["events"]
        events = [event for event in events if event["type"] != "BOOKMARK"]
        if shuffled:
            events = _interleaved(events, chance)
        self.events: list[tuple[str, dict[str, Any]]] = []
        for version, event in enumerate(events, 1000):
            pod = copy.deepcopy(event["object"])
            job = pod["metadata"]["name"]
            identity = f"{LOG}.1.{RUNS[job]}"
            pod["metadata"] |= {
                "name": pod_name("app", "t", job, identity),
                "annotations": names.told("app", "t", job, identity),
                "resourceVersion": str(version),
            }
            self.events.append((event["type"], pod))
        self.cuts = sorted(chance.sample(range(len(events)), cuts))
        self.chance = chance
        self.sent = 0
        self.begin = asyncio.Event()
        self.posted: set[str] = set()

    async def answer(self, request: web.Request, kind: str) -> web.StreamResponse | None:
        """Answer all that the runner asks."""
        if kind == "POST":
            manifest = await request.json()
            self.posted.add(manifest["metadata"]["name"])
            uid = next(
                pod["metadata"]["uid"]
                for _, pod in self.events
                if pod["metadata"]["name"] == manifest["metadata"]["name"]
            )
            manifest["metadata"] |= {"uid": uid}
            if len(self.posted) == len(RUNS):
                self.begin.set()
            return web.json_response(manifest, status=201)
        if kind == "LIST":
            there: dict[str, Any] = {}
            for _, pod in self.events:  # who was created is there
                if pod["metadata"]["name"] in self.posted:
                    there.setdefault(pod["metadata"]["name"], pod)
            for what, pod in self.events[: self.sent]:
                there[pod["metadata"]["name"]] = None if what == "DELETED" else pod
            items = [pod for pod in there.values() if pod is not None]
            version = str(999 + self.sent)
            return web.json_response({"metadata": {"resourceVersion": version}, "items": items})
        if kind == "WATCH":
            return await self._watch(request)
        return web.json_response({})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await self.begin.wait()
        at = int(request.query["resourceVersion"]) - 999
        while at < len(self.events):
            if self.cuts and at == self.cuts[0]:
                self.cuts.pop(0)
                return await self._cut(request, response, at)
            what, pod = self.events[at]
            await response.write(json.dumps({"type": what, "object": pod}).encode() + b"\n")
            at += 1
            self.sent = max(self.sent, at)
            if self.chance.random() < 0.2:
                await asyncio.sleep(0)
        await asyncio.sleep(5)
        return response

    async def _cut(self, request: web.Request, response: web.StreamResponse, at: int) -> web.StreamResponse:
        """End a stream: cleanly, in the middle of a line, or with a version that is too old while more has happened."""
        how = self.chance.choice(("clean", "torn", "expired"))
        if how == "torn":
            await response.write(
                json.dumps({"type": "MODIFIED", "object": self.events[at][1]}).encode()[:500]
            )
            assert request.transport is not None
            request.transport.close()
        elif how == "expired":
            error = {"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old"}}
            await response.write(json.dumps(error).encode() + b"\n")
            missed = self.chance.randint(0, 3)
            self.sent = min(len(self.events), max(self.sent, at + missed))
            self.cuts = [cut for cut in self.cuts if cut >= self.sent]
        return response


def _interleaved(events: list[Any], chance: random.Random) -> list[Any]:
    lives: dict[str, list[Any]] = defaultdict(list)
    for event in events:
        lives[event["object"]["metadata"]["name"]].append(event)
    mixed = []
    while lives:
        name = chance.choice(sorted(lives))
        mixed.append(lives[name].pop(0))
        if not lives[name]:
            del lives[name]
    return mixed


async def replayed(replay: Replay) -> Facts:
    """Run all, and return the facts."""
    async with scripted() as api:
        api.rules.append(replay.answer)
        async with opened(make_task(api, logs=False)) as (runner, facts):
            for job, run in RUNS.items():
                runner.start(spec(run, job))
            for run in RUNS.values():
                await facts.end(run)
            return facts


def ends_of(facts: Facts) -> dict[str, tuple[str, int | None]]:
    """Return how each job ended; it must have ended once."""
    ends = {}
    for job, run in RUNS.items():
        (ended,) = facts.of(run, Ended)
        ends[job] = (ended.ending.outcome, ended.ending.exit_code)
        assert len(facts.of(run, Started)) <= 1
    return ends


async def test_as_it_was_recorded() -> None:
    """Every end, and a start for each that ran."""
    facts = await replayed(Replay(random.Random(0), shuffled=False, cuts=0))
    assert ends_of(facts) == ENDS
    assert {job for job, run in RUNS.items() if not facts.of(run, Started)} == NEVER_RAN
    node = facts.of(RUNS["p1"], Started)[0].where
    assert node == "127.0.0.1"


@pytest.mark.parametrize("seed", range(8))
async def test_in_any_order_between_pods(seed: int) -> None:
    """The same ends."""
    assert ends_of(await replayed(Replay(random.Random(seed), shuffled=True, cuts=0))) == ENDS


@pytest.mark.parametrize("seed", range(6))
async def test_in_any_order_with_cuts_anywhere(seed: int) -> None:
    """What a list shows for the first time when it is over is judged as if it had been seen; who is never seen is lost."""
    ends = ends_of(await replayed(Replay(random.Random(100 + seed), shuffled=True, cuts=6)))
    assert {job: end for job, end in ends.items() if end[0] != "lost"}.items() <= ENDS.items()
    lost = {job for job, end in ends.items() if end[0] == "lost"}
    assert {job for job, end in ENDS.items() if end[0] == "lost"} <= lost
