"""The pod runner tells pods that ended by themselves from those that were stopped and ended well, as a real cluster showed them."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from datatask import CallerError, KubeTask, PodManager
from datatask.schema.events import MACHINE
from datatask.schema.messages import Ended, Started
from tests.kube import recorded
from tests.kube.api.faults import Fault, broken
from tests.kube.api.player import Player, onto
from tests.kube.runner_kit import TEMPLATE, make_task, opened, ready, running, spec
from tests.kube.scripted import scripted

PAUSE = 0.02
FULL = "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. "
LOW = "The node was low on resource: memory. "
LIVES = {
    "ended-then-deleted": ("succeeded", 0, None),
    "stopped-deleted": ("lost", 0, None),
    "stopped-eviction": ("lost", 0, "EvictionByEvictionAPI"),
    "stopped-taint": ("lost", 0, "DeletionByTaintManager"),
    "stopped-deadline": ("timed_out", 0, None),
    "stopped-kubelet-evicted-unhandled": ("failed", 137, None),
    "restartrules": ("succeeded", 0, None),
    "restartrules-fail": ("failed", 3, None),
    "restart-deadline": ("timed_out", 1, None),
    "restartrules-restartall": ("succeeded", 0, None),
    "sidecar": ("succeeded", 0, None),
    "sidecar-fail": ("failed", 5, None),
    "sidecar-crashing": ("succeeded", 0, None),
}
"""Outcome, exit code, and what the machine did, by recording."""


async def ended_as(recording: str, *, seen: bool, **more: Any) -> Ended:
    """Let a run's pod live as recorded, under the eyes of one engine, or with its end while there is none; return its end."""
    async with scripted() as api:
        async with opened(make_task(api, logs=False, **more)) as (runner, facts):
            runner.start(spec(1))
            name = (await api.pod("j1"))["metadata"]["name"]
            events = recorded.events(f"{recording}-watch")
            player = Player(api.server, events, onto(api.server, lambda _: name))
            while api.pods[name]["status"]["phase"] != "Running":
                player.step()
                await asyncio.sleep(PAUSE)
            started = await facts.first(1, Started)
            if seen:
                await player.play(PAUSE)
                return await facts.end_of(1)
        await player.play()
        async with opened(make_task(api, logs=False, **more)) as (runner, facts):
            await runner.recover([spec(1, handle=started.handle)])
            return await facts.end_of(1)


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "after a gap"])
@pytest.mark.parametrize("recording", LIVES)
async def test_lives_end_as_they_were_recorded(recording: str, seen: bool) -> None:
    """Also where nothing was seen but what is left of the pod."""
    ended = await ended_as(recording, seen=seen)
    machine = (ended.ending.detail or {}).get(MACHINE)
    assert (ended.ending.outcome, ended.ending.exit_code, machine) == LIVES[recording]


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "after a gap"])
@pytest.mark.parametrize("recording", ["stopped-deleted", "stopped-eviction", "stopped-taint"])
async def test_a_user_may_accept_what_ended_well_within_its_grace(recording: str, seen: bool) -> None:
    """`stopped_pods="accept"`; a time limit stays one."""
    ended = await ended_as(recording, seen=seen, stopped_pods="accept")
    assert (ended.ending.outcome, ended.ending.exit_code) == ("succeeded", 0)


async def test_what_did_not_end_well_is_never_accepted() -> None:
    """Another exit code, and a time limit."""
    async with ready(logs=False, stopped_pods="accept") as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        api.delete(name, 5)
        api.end(name, 143)
        assert (await facts.end_of(1)).ending.outcome == "lost"
    assert (
        await ended_as("stopped-deadline", seen=True, stopped_pods="accept")
    ).ending.outcome == "timed_out"


@pytest.mark.parametrize(
    ("message", "how", "wanted"),
    [
        (FULL, "retry", ("failed", None)),
        (LOW, "retry", ("lost", "Evicted")),
        (FULL, "accept", ("succeeded", None)),
        (LOW, "accept", ("succeeded", None)),
    ],
)
async def test_a_nodes_own_eviction_is_told_by_its_event_alone(
    message: str, how: str, wanted: tuple[str, str | None]
) -> None:
    """TERM is handled, the phase is Succeeded; the event of a pod of the same name before says nothing of this one."""
    async with ready(logs=False, stopped_pods=how) as (api, runner, facts):
        evicted, fine = [await running(api, runner, facts, run) for run in (1, 2)]
        api.tell(evicted, "Evicted", message, kind="Warning")
        for name in (evicted, fine):
            api.end(name)
        first, second = [(await facts.end_of(run)).ending for run in (1, 2)]
    assert (first.outcome, (first.detail or {}).get(MACHINE)) == wanted
    assert (first.exit_code, second.outcome) == (0, "succeeded")


async def test_evictions_of_many_pods_are_looked_at_in_few_requests() -> None:
    """One list under way at a time; and none at all where no pod ends."""
    async with ready(logs=False) as (api, runner, facts):
        names = [await running(api, runner, facts, run) for run in range(1, 41)]
        assert api.counts["list events"] == 0
        for name in names:
            api.end(name)
        for run in range(1, 41):
            assert (await facts.end_of(run)).ending.outcome == "succeeded"
        assert api.counts["list events"] < 20


@pytest.mark.parametrize("fault", [Fault("list", "events", times=None, code=403), broken(9, "list")])
async def test_without_the_right_to_list_events_pods_end_all_the_same(fault: Fault) -> None:
    """Then a node's own eviction is not told from a success."""
    async with ready(logs=False) as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        api.faults.append(dataclasses.replace(fault, resource="events"))
        api.end(name)
        assert (await facts.end_of(1)).ending.outcome == "succeeded"
    assert api.counts["list events"] <= 3


def test_other_policies_are_refused_by_name() -> None:
    with pytest.raises(CallerError, match="stopped_pods is 'maybe'"):
        KubeTask("t", PodManager("app", "space", {}), None, TEMPLATE, None, None, stopped_pods="maybe")  # type: ignore[arg-type]
