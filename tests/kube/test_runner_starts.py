"""The pod runner begins pods: created once, found again, and what becomes of every way to be refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from datatask.adapters.execute.kube.pods import pod_name
from datatask.schema.messages import Ended, Noticed, Started
from tests.kube.api import telling
from tests.kube.api.faults import Fault, away, broken, too_many
from tests.kube.runner_kit import LOG, SECOND, make_task, opened, ready, running, spec, text
from tests.kube.scripted import scripted
from tests.run_kit import until


async def test_a_run_is_a_pod_from_its_start_to_its_removal() -> None:
    """Created with its true ids, started when a container runs, ended with its log, removed when that is recorded."""
    async with ready() as (api, runner, facts):
        runner.start(spec(1, "Cat.1"))
        pod = await api.pod("Cat.1")
        name = pod["metadata"]["name"]
        assert pod["metadata"]["annotations"]["datatask.io/run"] == f"{LOG}.1.1"
        assert pod["spec"]["restartPolicy"] == "Never"
        api.run(name)
        started = await facts.first(1, Started)
        assert (started.handle["pod"], started.where) == (name, "node1")
        api.say(name, b"one\ntwo")
        api.end(name)
        ended = await facts.end_of(1)
        assert (ended.ending.outcome, ended.ending.exit_code, ended.ending.where) == ("succeeded", 0, "node1")
        images = f"busybox:cat.1={telling.image_id('busybox:cat.1')}"
        assert ended.ending.detail == {
            "pod": name,
            "node": "node1",
            "image": "busybox:cat.1",
            "images": images,
        }
        assert text(ended) == b"one\ntwo\n"
        assert name in api.pods
        runner.forget(1)
        await until(lambda: name not in api.pods)
    assert [type(fact) for fact in facts.all] == [Started, Ended]


async def test_starting_twice_is_starting_once() -> None:
    """Whatever is repeated."""
    async with ready(logs=False) as (api, runner, facts):
        runner.start(spec(1))
        runner.start(spec(1))
        name = (await api.pod("j1"))["metadata"]["name"]
        api.run(name)
        api.end(name, 3)
        ended = await facts.end_of(1)
        runner.start(spec(1))
        await asyncio.sleep(0.05)
    assert ended.ending.error is not None
    assert (ended.ending.outcome, ended.ending.error.message) == ("failed", "exit code 3")
    assert api.counts["create pods"] == 1


async def test_an_old_log_that_was_put_back_waits_while_a_later_state_of_it_has_pods(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Told once; its runs go on when that pod is over, and one that is stopped meanwhile ends."""
    async with scripted() as api:
        async with opened(make_task(api)) as (runner, facts):
            later = await running(api, runner, facts, 1, epoch=2)
        async with opened(make_task(api)) as (runner, facts):
            for run in (3, 4):
                runner.start(spec(run))
                noticed = await facts.first(run, Noticed)
                assert (noticed.phase, noticed.reason) == ("pending", "Occupied")
                assert "a later state of this log" in noticed.message
            runner.stop(4, "cancelled", 0)
            assert (await facts.end_of(4)).ending.outcome == "cancelled"
            assert len(api.pods) == 1
            api.end(later)
            await api.pod("j3")
    assert len([record for record in caplog.records if "two engines" in record.message]) == 1


async def test_a_create_that_was_not_answered_is_found() -> None:
    """The connection breaks after the server has done it: the name says that it has."""
    async with ready(logs=False) as (api, runner, facts):
        api.faults.append(Fault("create", cut="after"))
        name = await running(api, runner, facts, 1)
        api.end(name)
        assert (await facts.end_of(1)).ending.outcome == "succeeded"
    assert [change.type for change in api.changes].count("ADDED") == 1


async def test_a_pod_that_is_there_and_gone_when_it_is_looked_at_is_created_again() -> None:
    """409, then 404: somebody has removed what had the name; it is asked again, not at once and for ever."""
    async with ready(logs=False) as (api, runner, facts):
        taken = "object is being deleted: pods already exists"
        api.faults.append(Fault("create", code=409, reason="AlreadyExists", message=taken, times=3))
        began = time.monotonic()
        name = await running(api, runner, facts, 1)
        assert time.monotonic() - began > 0.3
        api.end(name)
        assert (await facts.end_of(1)).ending.outcome == "succeeded"
        assert [type(fact) for fact in facts.of(1)] == [Noticed, Started, Ended]
    assert (api.counts["create pods"], api.counts["get pods"]) == (4, 3)


async def test_a_name_that_is_never_free_is_waited_for_until_the_run_is_stopped() -> None:
    """The server says 409 to every create and 404 to every look: there is no circle, and the stop ends it."""
    async with ready(logs=False) as (api, runner, facts):
        api.faults.append(Fault("create", code=409, reason="AlreadyExists", message="taken", times=None))
        runner.start(spec(1))
        await asyncio.sleep(1.0)
        assert 2 <= api.counts["create pods"] <= 6
        runner.stop(1, "cancelled", SECOND)
        assert (await facts.end_of(1)).ending.outcome == "cancelled"


async def test_a_pod_of_that_name_that_is_not_ours_is_refused_loudly() -> None:
    """By name and remedy."""
    async with ready(logs=False) as (api, runner, facts):
        name = pod_name("app", "t", "j1", f"{LOG}.1.1")
        api.make(name)
        runner.start(spec(1))
        ended = await facts.end_of(1)
    assert ended.ending.outcome == "refused"
    assert ended.ending.error is not None
    assert f"there is a pod {name} already, which is not this run's" in ended.ending.error.message


async def test_a_full_quota_is_tried_by_one_run_and_filled_as_soon_as_there_is_room() -> None:
    """The server's words are told of each run once, and there is no busy loop."""
    words = "is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"
    async with ready(logs=False) as (api, runner, facts):
        api.limit(pods="2")
        for run in range(1, 11):
            runner.start(spec(run))
        await until(lambda: len(api.pods) == 2)
        await until(lambda: len([fact for fact in facts.all if isinstance(fact, Noticed)]) == 8)
        await asyncio.sleep(1.0)
        assert api.counts["create pods"] < 20
        told = [fact for fact in facts.all if isinstance(fact, Noticed)]
        assert {(fact.phase, fact.reason) for fact in told} == {("pending", "QuotaExceeded")}
        for fact in told:  # who waits behind another one is told of its own pod
            own = pod_name("app", "t", f"j{fact.run}", f"{LOG}.1.{fact.run}")
            assert fact.message == f'pods "{own}" {words}'

        def waiting() -> list[str]:
            return [name for name, pod in api.pods.items() if pod["status"]["phase"] == "Pending"]

        for _ in range(10):
            await until(waiting)
            name = waiting()[0]
            api.run(name)
            api.end(name)
            run = int(api.pods[name]["metadata"]["annotations"]["datatask.io/job"][1:])
            assert (await facts.end_of(run)).ending.outcome == "succeeded"
            runner.forget(run)
            await until(lambda name=name: name not in api.pods)
    assert api.most_at_once() == 2
    assert len([fact for fact in facts.all if isinstance(fact, Ended)]) == 10
    assert len([fact for fact in facts.all if isinstance(fact, Noticed)]) <= 12


@pytest.mark.parametrize(
    "fault",
    [
        lambda: broken(2, "create"),
        lambda: too_many(2, 1, "create"),
        lambda: Fault("create", times=2, code=409, message="Operation cannot be fulfilled on resourcequotas"),
    ],
    ids=["500", "429", "409"],
)
async def test_a_server_that_is_busy_is_asked_again_when_it_says(fault: Callable[[], Fault]) -> None:
    """Nothing is lost, and the words are told."""
    async with ready(logs=False) as (api, runner, facts):
        api.faults.append(fault())
        name = await running(api, runner, facts, 1)
        api.end(name)
        await facts.end_of(1)
    assert 3 <= api.counts["create pods"] <= 4
    assert len(facts.of(1, Noticed)) == 1


async def test_what_somebody_must_change_is_tried_for_as_long_as_the_user_allows() -> None:
    """Then it is refused with the server's words."""
    words = "pods is forbidden: maximum memory usage per Container is 64Mi, but limit is 128Mi"
    async with ready(logs=False, start_within=0.5) as (api, runner, facts):
        api.faults.append(Fault("create", times=None, code=403, message=words))
        runner.start(spec(1))
        ended = await facts.end_of(1)
    assert ended.ending.outcome == "refused"
    assert ended.ending.error is not None
    assert words in ended.ending.error.message
    assert facts.of(1, Noticed)[0].reason == "LimitRange"
    assert 2 <= api.counts["create pods"] <= 5


async def test_what_can_never_be_is_refused_at_once() -> None:
    """By task, job and the server's words."""
    async with ready(logs=False) as (api, runner, facts):
        api.faults.append(Fault("create", times=None, code=422, message='Pod "x" is invalid: spec'))
        runner.start(spec(1))
        ended = await facts.end_of(1)
    assert ended.ending.error is not None
    assert (ended.ending.outcome, api.counts["create pods"]) == ("refused", 1)
    assert ended.ending.error.message.startswith(
        't[j1]: the cluster refuses the pod: Pod "x" is invalid: spec'
    )


async def test_a_run_can_be_stopped_while_the_server_refuses_it() -> None:
    """Whether or not it is known that there is no pod."""
    async with ready(logs=False) as (api, runner, facts):
        api.faults.append(away("create"))
        runner.start(spec(1))
        await facts.first(1, Noticed)
        runner.stop(1, "cancelled", SECOND)
        assert (await facts.end_of(1)).ending.outcome == "cancelled"


async def test_another_log_with_pods_here_is_named() -> None:
    """Two engines would not know of each other's pods."""
    async with ready(logs=False) as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        async with opened(make_task(api, logs=False)) as (second, told):
            second.start(spec(1, log="f" * 32, epoch=1))
            ended = await told.end_of(1)
        assert ended.ending.outcome == "refused"
        assert ended.ending.error is not None
        assert f"has pods in space under the app 'app', such as {name}" in ended.ending.error.message


async def test_a_server_with_little_room_is_asked_by_fewer_at_a_time() -> None:
    """It takes two at once: what it turns away is asked again, not by all at once for ever."""
    async with ready(logs=False) as (api, runner, _facts):
        under_way = 0

        def leave() -> None:
            nonlocal under_way
            under_way -= 1

        async def narrow(request: web.Request, what: str) -> web.Response | None:
            nonlocal under_way
            if what != "create pods":
                return None
            if under_way >= 2:
                return web.Response(status=429, text="Too many requests", headers={"Retry-After": "0.1"})
            under_way += 1
            asyncio.get_running_loop().call_later(0.01, leave)
            return None

        api.rules.append(narrow)
        for run in range(1, 61):
            runner.start(spec(run))
        await until(lambda: len(api.pods) == 60, 20)
        assert api.counts["create pods"] < 60 * 2.5
        for run in range(1, 61):  # what waits can be called off, and the rest goes on
            runner.stop(run, "cancelled", SECOND)
        await until(lambda: api.counts["delete pods"] >= 60, 20)


async def test_a_stop_while_a_create_is_on_its_way_deletes_what_it_made() -> None:
    """The answer is waited for."""
    async with ready(logs=False) as (api, runner, facts):

        async def slow(request: web.Request, what: str) -> None:
            if what == "create pods":
                runner.stop(1, "cancelled", SECOND)
                await asyncio.sleep(0.1)

        api.rules.append(slow)
        runner.start(spec(1))
        await until(lambda: any(pod["metadata"].get("deletionTimestamp") for pod in api.pods.values()))
        assert (await facts.end_of(1)).ending.outcome == "cancelled"
        runner.forget(1)
        await until(lambda: not api.pods)


async def test_a_create_that_was_given_up_and_arrives_late_is_deleted() -> None:
    """Nobody owns such a pod any more."""
    async with ready(logs=False) as (api, runner, facts):
        given: list[Any] = []

        async def lose(request: web.Request, what: str) -> web.Response | None:
            if what != "create pods":
                return None
            given.append(await request.json())
            return web.json_response({"kind": "Status", "code": 504, "reason": "Timeout"}, status=504)

        api.rules.append(lose)
        runner.start(spec(1))
        await facts.first(1, Noticed)
        runner.stop(1, "cancelled", SECOND)
        assert (await facts.end_of(1)).ending.outcome == "cancelled"
        runner.forget(1)
        await asyncio.sleep(0.1)
        api.make(**given[0])
        await until(lambda: not api.pods)
