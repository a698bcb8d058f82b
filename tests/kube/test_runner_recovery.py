"""The pod runner after a crash: open runs are matched with pods, and pods with runs."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
from aiohttp import web

from datatask.adapters.execute.kube import runs, watch
from datatask.adapters.execute.kube.pods import pod_name
from datatask.schema.messages import Adopted, Noticed, Reachable, Started, Unreachable
from tests.kube.api.faults import Fault, away
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


async def test_a_run_whose_pod_is_gone_is_lost_and_one_that_never_began_is_begun() -> None:
    """The pod's name is fixed: a create of the dead engine that arrives later finds it taken."""
    async with scripted() as api, opened(make_task(api, logs=False)) as (runner, facts):
        handle = {"pod": "x", "uid": "uid-9", "namespace": "space"}
        await runner.recover([spec(1, handle=handle), spec(2)])
        gone = await facts.end_of(1)
        assert gone.ending.outcome == "lost"
        assert gone.ending.error is not None
        assert "nobody saw how it ended" in gone.ending.error.message
        assert gone.ending.detail is None
        pod = await api.pod("j2")
        assert pod["metadata"]["annotations"]["datatask.io/run"] == f"{LOG}.1.2"
        name = pod["metadata"]["name"]
        api.run(name)
        await facts.first(2, Started)
        api.end(name)
        assert (await facts.end_of(2)).ending.outcome == "succeeded"
        runner.forget(2)
        await asyncio.sleep(0.2)
        assert name in api.pods, "its name stays taken for as long as such a create may arrive"
    assert api.counts["create pods"] == 1


async def test_what_an_earlier_version_buried_is_begun() -> None:
    """Its tombstone is removed, and no start is ended by it."""
    async with scripted() as api, opened(make_task(api, logs=False)) as (runner, facts):
        told = {"datatask.io/run": f"{LOG}.1.1", "datatask.io/task": "t", "datatask.io/tombstone": "true"}
        name = pod_name("app", "t", "j1", f"{LOG}.1.1")
        labels = {"datatask.io/app": "app"}
        stone = api.make(name, metadata={"annotations": told, "labels": labels})
        await runner.recover([spec(1)])
        await until(
            lambda: name in api.pods and api.pods[name]["metadata"]["uid"] != stone["metadata"]["uid"]
        )
        api.run(name)
        await facts.first(1, Started)


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


REFUSALS = {
    "quota": "is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2",
    "podsecurity": 'is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false',
    "limitrange": "is forbidden: minimum cpu usage per Container is 200m, but request is 100m",
}


async def test_a_full_quota_loses_no_run_and_takes_no_time() -> None:
    """What fills it is adopted, what was decided and never begun waits for room, and begins when there is some."""
    async with scripted() as api:
        api.limit(pods="2")
        async with opened(make_task(api, logs=False)) as (runner, facts):
            names = [await running(api, runner, facts, run) for run in (1, 2)]
            handles = {run: facts.of(run, Started)[0].handle for run in (1, 2)}
        async with opened(make_task(api, logs=False)) as (runner, facts):
            began = time.monotonic()
            adopted = [spec(run, handle=handle) for run, handle in handles.items()]
            await runner.recover([*adopted, *[spec(run) for run in range(3, 23)]])
            assert time.monotonic() - began < runs.DELAYED_SECONDS / 2
            for run in range(3, 23):
                assert (await facts.first(run, Noticed)).reason == "QuotaExceeded"
            assert sorted(runner.hold_back()) == list(range(3, 23))
            for name in names:
                api.end(name)
            for run in range(1, 23):
                if run > 2:
                    name = (await api.pod(f"j{run}"))["metadata"]["name"]
                    api.run(name)
                    api.end(name)
                assert (await facts.end_of(run)).ending.outcome == "succeeded"
                runner.forget(run)
        assert api.most_at_once() == 2


@pytest.mark.parametrize("words", REFUSALS.values(), ids=REFUSALS)
async def test_a_refusal_is_not_believed_where_the_runs_own_pod_may_be_there(words: str) -> None:
    """Quota, PodSecurity and LimitRange are asked before the name: the first create had arrived, unanswered."""
    async with scripted() as api:
        seen = 0

        async def refused_after(request: web.Request, what: str) -> web.Response | None:
            nonlocal seen
            if what != "create pods":
                return None
            seen += 1
            if seen == 1:
                api.make(**(await request.json()))
                return web.json_response({"kind": "Status", "code": 504, "reason": "Timeout"}, status=504)
            told = {"kind": "Status", "code": 403, "reason": "Forbidden", "message": f"pods {words}"}
            return web.json_response(told, status=403)

        api.rules.append(refused_after)
        api.faults.append(away("watch"))  # else the watch tells of it
        async with opened(make_task(api, logs=False)) as (runner, facts):
            runner.start(spec(1))
            name = (await api.pod("j1"))["metadata"]["name"]
            await until(lambda: runner._runner.by_name[name].uid)
            api.faults.clear()
            api.run(name)
            await facts.first(1, Started)
            api.end(name)
            assert (await facts.end_of(1)).ending.outcome == "succeeded"
    assert api.most_at_once() == 1


@pytest.mark.parametrize("words", list(REFUSALS.values())[1:], ids=list(REFUSALS)[1:])
async def test_a_refusal_at_recovery_is_told_like_any_other(words: str) -> None:
    """The run is given up when the user's time is over, with the server's words, and not before."""
    async with scripted() as api:
        api.faults.append(Fault("create", times=None, code=403, reason="Forbidden", message=f"pods {words}"))
        async with opened(make_task(api, logs=False, start_within=0.5)) as (runner, facts):
            await runner.recover([spec(1)])
            ended = await facts.end_of(1)
            assert (ended.ending.outcome, ended.ending.error is not None) == ("refused", True)
            assert words in str(ended.ending.error)


async def test_a_create_of_the_dead_engine_that_arrives_at_last_is_adopted() -> None:
    """While the next engine waits for room: there is one pod, and the run goes on with it."""
    async with scripted() as api:
        api.limit(pods="0")
        async with opened(make_task(api, logs=False)) as (runner, facts):
            sent: list[dict[str, Any]] = []

            async def noted(request: web.Request, what: str) -> None:
                if what == "create pods":
                    sent.append(await request.json())

            api.rules.append(noted)
            await runner.recover([spec(1)])
            await facts.first(1, Noticed)
            api.make(**sent[0])
            name = (await api.pod("j1"))["metadata"]["name"]
            api.run(name)
            await facts.first(1, Started)
            assert list(runner.hold_back()) == []
            api.end(name)
            assert (await facts.end_of(1)).ending.outcome == "succeeded"
    assert api.most_at_once() == 1


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
