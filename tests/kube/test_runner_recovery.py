"""The pod runner after a crash: open runs are matched with pods, and pods with runs."""

from __future__ import annotations

import asyncio
import logging

import pytest

from datatask.adapters.execute.kube import starts, watch
from datatask.schema.events import MACHINE
from datatask.schema.messages import Adopted, Noticed, Reachable, Started, Unreachable
from tests.kube.api.faults import away
from tests.kube.runner_kit import LOG, SECOND, make_task, opened, running, spec, text
from tests.kube.scripted import scripted
from tests.run_kit import until


async def test_a_later_engine_adopts_what_runs_and_collects_what_ended() -> None:
    """By name and identity; also what was created and never confirmed."""
    async with scripted() as api:
        async with opened(make_task(api)) as (runner, facts):
            names = {run: await running(api, runner, facts, run) for run in (1, 2)}
            runner.start(spec(3))
            names[3] = (await api.pod("j3"))["metadata"]["name"]
            handles = {run: facts.of(run, Started)[0].handle for run in (1, 2)}
            await asyncio.sleep(0.05)
        api.say(names[1], b"done")
        api.end(names[1])
        api.end(names[2], 4)
        api.delete(names[2], 0)  # only the finalizer keeps it
        async with opened(make_task(api)) as (runner, facts):
            await runner.recover([spec(1, handle=handles[1]), spec(2, handle=handles[2]), spec(3)])
            ended = await facts.end_of(1)
            assert (ended.ending.outcome, text(ended)) == ("succeeded", b"done\n")
            assert (await facts.end_of(2)).ending.exit_code == 4
            assert isinstance(facts.of(3)[0], Adopted)
            api.run(names[3])
            await facts.first(3, Started)
            runner.stop(3, "cancelled", SECOND)
            await until(lambda: api.pods[names[3]]["metadata"].get("deletionTimestamp"))
            api.end(names[3], 137)
            assert (await facts.end_of(3)).ending.outcome == "cancelled"


async def test_a_run_whose_pod_is_gone_is_lost_and_one_that_never_began_has_its_name_taken() -> None:
    """A create that was on its way finds the tombstone."""
    async with scripted() as api, opened(make_task(api)) as (runner, facts):
        handle = {"pod": "x", "uid": "uid-9", "namespace": "space"}
        await runner.recover([spec(1, handle=handle), spec(2)])
        gone, never = await facts.end_of(1), await facts.end_of(2)
        assert [ended.ending.outcome for ended in (gone, never)] == ["lost", "lost"]
        assert gone.ending.error is not None
        assert "nobody saw how it ended" in gone.ending.error.message
        assert never.ending.error is not None
        assert "before this run was started" in never.ending.error.message
        assert (gone.ending.detail, never.ending.detail) == (None, {MACHINE: "unstarted"})
        (stone,) = api.pods.values()
        assert stone["spec"]["schedulingGates"]
        assert stone["metadata"]["annotations"]["datatask.io/run"] == f"{LOG}.1.2"
        async with opened(make_task(api)) as (runner, facts):  # and the next engine removes it
            runner.start(spec(3, epoch=2))
            await until(lambda: stone["metadata"]["name"] not in api.pods)


async def test_pods_of_runs_that_are_over_are_removed_when_they_are_over_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Those that run are told and left alone, those of other tasks are not looked at."""
    async with scripted() as api:
        async with opened(make_task(api)) as (runner, facts):
            over, runs = [await running(api, runner, facts, run) for run in (1, 2)]
            api.end(over)
        with caplog.at_level(logging.WARNING):
            async with opened(make_task(api)) as (runner, facts):
                runner.start(spec(9, epoch=2))
                await until(lambda: over not in api.pods)
                assert runs in api.pods
        assert f"pod {runs} runs for {LOG}.1.2, which is no open run; it is left alone" in caplog.text


async def test_a_name_that_cannot_be_taken_is_waited_for_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A create of an engine that died is over by then; what arrives before is adopted."""
    monkeypatch.setattr(starts, "DELAYED_SECONDS", 0.5)
    async with scripted() as api:
        api.limit(pods="0")
        async with opened(make_task(api, logs=False)) as (runner, facts):
            recovering = asyncio.create_task(runner.recover([spec(1)]))
            told = await facts.first(1, Noticed)
            assert "its name cannot be taken" in told.message
            await recovering
            assert (await facts.end_of(1)).ending.outcome == "lost"


async def test_a_run_that_is_stopped_while_it_is_looked_for_ends_as_stopped() -> None:
    """There is no pod."""
    async with scripted() as api, opened(make_task(api, logs=False)) as (runner, facts):
        handle = {"pod": "x", "uid": "uid-9", "namespace": "space"}
        recovering = asyncio.create_task(runner.recover([spec(1, handle=handle)]))
        await asyncio.sleep(0)
        runner.stop(1, "cancelled", SECOND)
        await recovering
        assert (await facts.end_of(1)).ending.outcome == "cancelled"


async def test_a_server_that_is_away_when_the_engine_opens_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Runs are unreachable, not lost."""
    monkeypatch.setattr(watch, "TELL_AFTER_SECONDS", 0.2)
    monkeypatch.setattr(watch, "OPEN_SECONDS", 0.1)
    async with scripted() as api:
        async with opened(make_task(api, logs=False)) as (runner, facts):
            name = await running(api, runner, facts, 1)
        api.faults.append(away("*", "*"))
        async with opened(make_task(api, logs=False)) as (runner, facts):
            recovering = asyncio.create_task(runner.recover([spec(1)]))
            await facts.first(1, Unreachable)
            api.faults.clear()
            await facts.first(1, Reachable)
            await recovering
            await facts.first(1, Adopted)
            api.end(name)
            assert (await facts.end_of(1)).ending.outcome == "succeeded"
