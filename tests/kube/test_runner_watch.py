"""The pod runner watches: nothing is lost or told twice, whatever becomes of streams, history, server and nodes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from datatask import CallerError
from datatask.adapters.execute.kube import watch
from datatask.schema.messages import Ended, Reachable, Started, Unreachable
from tests.kube.api.faults import Fault, away
from tests.kube.runner_kit import make_task, opened, ready, running, spec
from tests.kube.scripted import scripted
from tests.run_kit import until


async def test_a_watch_that_is_cut_goes_on_where_it_was() -> None:
    """Without another list, and without telling anything twice."""
    async with ready(logs=False) as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        seen: list[str] = []
        told = runner._runner.on_pod

        def noted(pod: Any) -> None:
            seen.append(pod.metadata.resource_version)
            told(pod)

        runner._runner.on_pod = noted
        api.faults.extend(Fault("watch", events=1, torn=True) for _ in range(3))
        api.end_watches()
        await asyncio.sleep(0.1)
        for index in range(5):
            api.change(name, "Running", podIP=str(index))
        api.end(name)
        await facts.end_of(1)
    assert api.counts["list pods"] == 1
    assert len(seen) == len(set(seen)) == 6


async def test_what_was_missed_while_the_history_was_lost_is_found_by_listing() -> None:
    """410: one pod has ended, one has gone, one is new, one is as it was."""
    async with ready(logs=False) as (api, runner, facts):
        names = {run: await running(api, runner, facts, run) for run in (1, 2, 3)}
        api.faults.append(away("watch"))
        api.end_watches()
        await asyncio.sleep(0.1)
        api.end(names[1], 5)
        api.remove(names[2])
        api.forget_history()
        api.faults.clear()
        assert (await facts.end_of(1)).ending.exit_code == 5
        assert (await facts.end_of(2)).ending.outcome == "lost"
        assert facts.of(3, Ended) == []
        assert runner._runner.shared.watch.known.keys() == {names[1], names[3]}
    assert api.counts["list pods"] == 2


async def test_a_pod_that_nobody_has_ever_seen_is_lost_by_the_next_list() -> None:
    """Created, gone, and its events forgotten, before the watch came to it."""
    async with ready(logs=False) as (api, runner, facts):
        api.faults.append(away("watch"))
        api.end_watches()
        await asyncio.sleep(0.1)
        runner.start(spec(1))
        name = (await api.pod("j1"))["metadata"]["name"]
        await until(lambda: runner._runner.by_name[name].uid)
        api.remove(name)
        api.forget_history()
        api.faults.clear()
        ended = await facts.end_of(1)
    assert ended.ending.outcome == "lost"


@pytest.mark.parametrize(
    "line", [b'"Too many requests"\n', b"{nonsense\n", b'{"type":"ERROR","object":{"code":500}}\n']
)
async def test_lines_that_are_no_events_break_nothing(line: bytes) -> None:
    """The stream is begun anew, not at once and for ever."""
    async with scripted() as api:

        async def odd(request: web.Request, what: str) -> web.StreamResponse | None:
            if what != "watch pods" or api.counts["watch pods"] > 3:
                return None
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(line)
            return response

        api.rules.append(odd)
        async with opened(make_task(api, logs=False)) as (runner, facts):
            name = await running(api, runner, facts, 1)
            api.end(name)
            await facts.end_of(1)
    assert api.counts["watch pods"] <= 5


async def test_an_empty_watch_is_not_asked_for_in_a_circle() -> None:
    """The server ends it cleanly, again and again."""
    async with scripted() as api:
        api.rules.append(lambda request, what: web.Response() if what == "watch pods" else None)
        async with opened(make_task(api, logs=False)):
            await asyncio.sleep(1.5)
    assert api.counts["watch pods"] <= 6


async def test_a_watch_that_says_nothing_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No event, no bookmark: another one is begun, where it was."""
    monkeypatch.setattr(watch, "SILENT_SECONDS", 0.3)
    async with scripted() as api:
        api.faults.append(Fault("watch", frozen=True))
        api.server.reader.bookmark_seconds = 0.1
        async with opened(make_task(api, logs=False)) as (runner, facts):
            name = await running(api, runner, facts, 1)
            api.end(name)
            await facts.end_of(1)
            await asyncio.sleep(0.8)
    assert api.counts["watch pods"] == 2
    assert api.counts["list pods"] == 1


async def test_a_server_that_is_away_makes_runs_unreachable_and_ends_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What ended meanwhile is told when it is back."""
    monkeypatch.setattr(watch, "TELL_AFTER_SECONDS", 0.2)
    async with ready(logs=False) as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        api.faults.append(away("*", "*", message="etcd is away"))
        api.end_watches()
        told = await facts.first(1, Unreachable)
        assert "etcd is away" in told.message
        api.end(name)
        api.faults.clear()
        await facts.first(1, Reachable)
        assert (await facts.end_of(1)).ending.outcome == "succeeded"
    assert [type(fact) for fact in facts.all] == [Started, Unreachable, Reachable, Ended]


async def test_a_node_that_is_silent_makes_its_run_unreachable_until_it_answers() -> None:
    """The cluster says so on the pod alone; a probe that fails is no silence."""
    ready_, unready = {"type": "Ready", "status": "True"}, {"type": "Ready", "status": "False"}
    containers = {"type": "ContainersReady", "status": "True"}
    async with ready(logs=False) as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        probed = {**unready, "reason": "ContainersNotReady"}
        api.change(name, conditions=[probed, {**containers, "status": "False"}])
        api.change(name, conditions=[unready, containers])
        told = await facts.first(1, Unreachable)
        assert "node node1 does not answer" in told.message
        api.change(name, conditions=[ready_, containers])
        await facts.first(1, Reachable)
        api.change(name, conditions=[unready, containers])
        await until(lambda: len(facts.of(1, Unreachable)) == 2)
        api.end(name)
        assert (await facts.end_of(1)).ending.outcome == "succeeded"
    assert [type(fact) for fact in facts.all] == [Started, Unreachable, Reachable, Unreachable, Ended]


@pytest.mark.parametrize(
    ("token", "words"), [("nobody", "log in again"), ("limited", "docs/kubernetes.md has the manifest")]
)
async def test_who_is_turned_away_hears_it_when_the_pipeline_opens(token: str, words: str) -> None:
    """With the remedy: whom the server does not know, and who has no rights."""
    async with scripted() as api:
        with pytest.raises(CallerError, match=words):
            async with opened(make_task(api, token=token)):
                pass


async def test_a_quiet_while_asks_for_nothing() -> None:
    """One watch is enough."""
    async with ready(logs=False) as (api, runner, facts):
        for run in range(1, 6):
            await running(api, runner, facts, run)
        await asyncio.sleep(0.1)
        before = api.counts
        await asyncio.sleep(1.0)
        assert api.counts == before
        assert (before["list pods"], before["watch pods"], before["get pods"]) == (1, 1, 0)
