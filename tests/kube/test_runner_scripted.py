"""The pod runner against a server that does as it is told: starts, ends, stops, logs, and every way to be refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from datatask import (
    CallerError,
    InProcessBlobRepository,
    InProcessMetadataRepository,
    KubeFunctionTask,
    KubeTask,
    PodManager,
)
from datatask.adapters.execute.kube import logs, starting, waiting, watching
from datatask.adapters.execute.kube.names import pod_name
from datatask.engine.ports import (
    Adopted,
    Ended,
    Fact,
    Noticed,
    Reachable,
    RunSpec,
    Started,
    Unreachable,
    Write,
)
from tests.kube.scripted import Api, scripted, status, terminated

SECOND = 1_000_000_000
LOG = "0123456789abcdef0123456789abcdef"
TEMPLATE = """
kind: Pod
spec:
  containers:
    - name: main
      image: "busybox:{{ job | lower }}"
      resources: {requests: {cpu: 100m, memory: 64Mi}}
"""


class Facts:
    """A sink that remembers, and can be waited on."""

    def __init__(self) -> None:
        self.all: list[Fact] = []
        self._more = asyncio.Event()

    def __call__(self, fact: Fact) -> None:
        self.all.append(fact)
        self._more.set()

    async def first(self, run: int, kind: type[Any]) -> Any:
        """Wait for a fact of this kind."""
        async with asyncio.timeout(20):
            while not (found := self.of(run, kind)):
                self._more.clear()
                await self._more.wait()
        return found[0]

    def of(self, run: int, kind: type[Any] = object) -> list[Any]:
        """Return the run's facts of a kind so far."""
        return [fact for fact in self.all if fact.run == run and isinstance(fact, kind)]

    async def end(self, run: int) -> Ended:
        """Wait for the end."""
        ended: Ended = await self.first(run, Ended)
        return ended


def spec(run: int, job: str = "", *, epoch: int = 1, log: str = LOG, **more: Any) -> RunSpec:
    """Return a run of task t."""
    return RunSpec(run, f"{log}.{epoch}.{run}", "t", job or f"j{run}", 1, 1, {}, **more)


def make_task(
    api: Api, template: str = TEMPLATE, *, logs: bool = True, app: str = "app", **more: Any
) -> KubeTask:
    """Return a task on the server."""
    repository = InProcessBlobRepository()
    repository._id = "logs"
    manager = PodManager(app, "space", api.config(), finalizer=more.pop("finalizer", True))
    task = KubeTask("t", manager, None, template, repository if logs else None, None, **more)
    task.link("inp", InProcessMetadataRepository(), is_input=True)
    return task


@contextlib.asynccontextmanager
async def opened(task: KubeTask) -> AsyncIterator[tuple[Any, Facts]]:
    """Open a task's runner over remembered facts."""
    facts = Facts()
    await task.runner.open(facts)
    try:
        yield task.runner, facts
    finally:
        await task.runner.close()


@contextlib.asynccontextmanager
async def ready(template: str = TEMPLATE, **more: Any) -> AsyncIterator[tuple[Api, Any, Facts]]:
    """Serve, and open a task's runner there."""
    async with scripted() as api, opened(make_task(api, template, **more)) as (runner, facts):
        yield api, runner, facts


def text(ended: Ended) -> bytes | None:
    """Return the logs that a run brought."""
    for write in ended.writes:
        if write.repository == "logs":
            return write.data if write.source is None else write.source.read_bytes()
    return None


async def running(api: Api, runner: Any, facts: Facts, run: int, **more: Any) -> str:
    """Start a run and let its pod run; return the pod's name."""
    runner.start(spec(run, **more))
    name: str = (await api.pod(f"j{run}"))["metadata"]["name"]
    await api.run(name)
    await facts.first(run, Started)
    return name


async def until(condition: Any, seconds: float = 10) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_run_is_a_pod_from_its_start_to_its_removal() -> None:
    """Created with its true ids, started when a container runs, ended with its log, removed when that is recorded."""
    async with ready() as (api, runner, facts):
        runner.start(spec(1, "Cat.1"))
        pod = await api.pod("Cat.1")
        name = pod["metadata"]["name"]
        assert pod["metadata"]["annotations"]["datatask.io/run"] == f"{LOG}.1.1"
        assert pod["spec"]["restartPolicy"] == "Never"
        await api.run(name)
        started = await facts.first(1, Started)
        assert (started.handle["pod"], started.where) == (name, "node1")
        await api.say(name, b"one\ntwo")
        await api.end(name)
        ended = await facts.end(1)
        assert (ended.ending.outcome, ended.ending.exit_code, ended.ending.where) == ("succeeded", 0, "node1")
        assert ended.ending.detail == {"pod": name, "node": "node1", "image": "busybox:cat.1"}
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
        await api.run(name)
        await api.end(name, 3)
        ended = await facts.end(1)
        runner.start(spec(1))
        await asyncio.sleep(0.05)
    assert ended.ending.error is not None
    assert (ended.ending.outcome, ended.ending.error.message) == ("failed", "exit code 3")
    assert api.counts["POST"] == 1


async def test_a_create_that_was_not_answered_is_found() -> None:
    """The connection breaks after the server has done it: the name says that it has."""
    async with ready(logs=False) as (api, runner, facts):

        async def swallow(request: web.Request, kind: str) -> web.Response | None:
            if kind == "POST" and not api.pods:
                await api._create(await request.json(), "space")
                assert request.transport is not None
                request.transport.close()
            return None

        api.rules.append(swallow)
        name = await running(api, runner, facts, 1)
        await api.end(name)
        assert (await facts.end(1)).ending.outcome == "succeeded"
    assert len(api.history) >= 1
    assert sum(kind == "ADDED" for _, kind, _ in api.history) == 1


async def test_a_pod_of_that_name_that_is_not_ours_is_refused_loudly() -> None:
    """By name and remedy."""
    async with ready(logs=False) as (api, runner, facts):
        name = pod_name("app", "t", "j1", f"{LOG}.1.1")
        await api.put(
            "ADDED", {"metadata": {"name": name, "uid": "x"}, "spec": {"containers": []}, "status": {}}
        )
        runner.start(spec(1))
        ended = await facts.end(1)
    assert ended.ending.outcome == "refused"
    assert ended.ending.error is not None
    assert f"there is a pod {name} already, which is not this run's" in ended.ending.error.message


async def test_a_full_quota_is_tried_by_one_run_and_filled_as_soon_as_there_is_room() -> None:
    """The server's words are told of each run once, and there is no busy loop."""
    words = "pods is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"

    def full(request: web.Request, kind: str) -> web.Response | None:
        return status(403, words, "Forbidden") if kind == "POST" and len(api.pods) >= 2 else None

    async with ready(logs=False) as (api, runner, facts):
        api.rules.append(full)
        for run in range(1, 11):
            runner.start(spec(run))
        await until(lambda: len(api.pods) == 2)
        await until(lambda: len([fact for fact in facts.all if isinstance(fact, Noticed)]) == 8)
        await asyncio.sleep(1.0)
        assert api.counts["POST"] < 20
        told = [fact for fact in facts.all if isinstance(fact, Noticed)]
        assert {(fact.phase, fact.reason, fact.message) for fact in told} == {
            ("pending", "QuotaExceeded", words)
        }
        for _ in range(10):
            await until(
                lambda: any(not pod["metadata"].get("deletionTimestamp") for pod in api.pods.values())
            )
            name = next(iter(api.pods))
            await api.run(name)
            await api.end(name)
            run = int(api.pods[name]["metadata"]["annotations"]["datatask.io/job"][1:])
            assert (await facts.end(run)).ending.outcome == "succeeded"
            runner.forget(run)
            await until(lambda name=name: name not in api.pods)  # type: ignore[misc]
    assert len([fact for fact in facts.all if isinstance(fact, Ended)]) == 10
    assert len([fact for fact in facts.all if isinstance(fact, Noticed)]) <= 12


@pytest.mark.parametrize(
    "refusal",
    [
        lambda: status(500, "etcdserver: request timed out", "InternalError"),
        lambda: web.Response(status=429, text="Too many requests", headers={"Retry-After": "1"}),
        lambda: status(409, "Operation cannot be fulfilled on resourcequotas", "Conflict"),
    ],
)
async def test_a_server_that_is_busy_is_asked_again_when_it_says(refusal: Any) -> None:
    """Nothing is lost, and the words are told."""
    async with ready(logs=False) as (api, runner, facts):
        api.rules.append(
            lambda request, kind: refusal() if kind == "POST" and api.counts["POST"] <= 2 else None
        )
        name = await running(api, runner, facts, 1)
        await api.end(name)
        await facts.end(1)
    assert 3 <= api.counts["POST"] <= 4
    assert len(facts.of(1, Noticed)) == 1


async def test_what_somebody_must_change_is_tried_for_as_long_as_the_user_allows() -> None:
    """Then it is refused with the server's words."""
    words = "pods is forbidden: maximum memory usage per Container is 64Mi, but limit is 128Mi"
    async with ready(logs=False, start_within=0.5) as (api, runner, facts):
        api.rules.append(lambda request, kind: status(403, words, "Forbidden") if kind == "POST" else None)
        runner.start(spec(1))
        ended = await facts.end(1)
    assert ended.ending.outcome == "refused"
    assert ended.ending.error is not None
    assert words in ended.ending.error.message
    assert facts.of(1, Noticed)[0].reason == "LimitRange"
    assert 2 <= api.counts["POST"] <= 5


async def test_what_can_never_be_is_refused_at_once() -> None:
    """By task, job and the server's words."""
    async with ready(logs=False) as (api, runner, facts):
        api.rules.append(
            lambda r, kind: status(422, 'Pod "x" is invalid: spec', "Invalid") if kind == "POST" else None
        )
        runner.start(spec(1))
        ended = await facts.end(1)
    assert ended.ending.error is not None
    assert (ended.ending.outcome, api.counts["POST"]) == ("refused", 1)
    assert ended.ending.error.message.startswith(
        't[j1]: the cluster refuses the pod: Pod "x" is invalid: spec'
    )


async def test_a_run_can_be_stopped_while_the_server_refuses_it() -> None:
    """Whether or not it is known that there is no pod."""
    async with ready(logs=False) as (api, runner, facts):
        api.rules.append(
            lambda r, kind: status(503, "away", "ServiceUnavailable") if kind == "POST" else None
        )
        runner.start(spec(1))
        await facts.first(1, Noticed)
        runner.stop(1, "cancelled", SECOND)
        assert (await facts.end(1)).ending.outcome == "cancelled"


async def test_another_log_with_pods_here_is_named() -> None:
    """Two engines would not know of each other's pods."""
    async with ready(logs=False) as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        async with opened(make_task(api, logs=False)) as (second, told):
            second.start(spec(1, log="f" * 32, epoch=1))
            ended = await told.end(1)
        assert ended.ending.outcome == "refused"
        assert ended.ending.error is not None
        assert f"has pods in space under the app 'app', such as {name}" in ended.ending.error.message


# --- stops --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reason", "outcome"), [("timeout", "timed_out"), ("deleted", "cancelled")])
async def test_a_stopped_pod_is_deleted_with_its_grace(reason: Any, outcome: str) -> None:
    """Its end is told when its containers have ended; the log is kept unless the job is to run anew."""
    async with ready() as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        await api.say(name, b"begun")
        runner.stop(1, reason, 3 * SECOND)
        await until(lambda: api.pods[name]["metadata"].get("deletionTimestamp"))
        assert api.pods[name]["metadata"]["deletionGracePeriodSeconds"] == 3
        assert facts.of(1, Ended) == []
        await api.end(name, 143)
        ended = await facts.end(1)
        assert text(ended) == (b"begun\n" if reason == "timeout" else None)
        runner.forget(1)
        await until(lambda: name not in api.pods)
    assert (ended.ending.outcome, ended.ending.exit_code) == (outcome, 143)
    assert api.counts["DELETE"] == 1


async def test_what_ended_before_its_stop_has_ended_by_itself() -> None:
    """The fact wins over the stop that raced it."""
    async with ready(logs=False) as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        await api.change(name, "Running", terminated(0, at="2026-01-01T00:00:00Z"))
        runner.stop(1, "cancelled", SECOND)
        await until(lambda: api.pods[name]["metadata"].get("deletionTimestamp"))
        await api.change(name, "Succeeded")
        assert (await facts.end(1)).ending.outcome == "succeeded"


async def test_a_users_timeout_handler_sees_the_pod_before_it_goes() -> None:
    """As kubernetes_asyncio's V1Pod; what it raises is told and stops nothing."""
    seen: list[Any] = []

    class Looking(KubeTask):
        async def handle_timeout(self, pod: Any) -> None:
            seen.append((pod.metadata.name, pod.metadata.deletion_timestamp))
            raise ValueError("as told")

    async with scripted() as api:
        manager = PodManager("app", "space", api.config())
        task = Looking("t", manager, None, TEMPLATE, None, None)
        task.link("inp", InProcessMetadataRepository(), is_input=True)
        async with opened(task) as (runner, facts):
            name = await running(api, runner, facts, 1)
            runner.stop(1, "timeout", SECOND)
            await until(lambda: api.pods[name]["metadata"].get("deletionTimestamp"))
            await api.end(name, 137)
            assert (await facts.end(1)).ending.outcome == "timed_out"
    assert seen == [(name, None)]
    assert "as told" in facts.of(1, Noticed)[0].message


# --- ends that somebody else makes --------------------------------------------------------------------


async def test_a_pod_that_somebody_deletes_is_lost_and_its_log_is_kept() -> None:
    """The finalizer keeps it until then."""
    async with ready() as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        await api.say(name, b"half")
        await api.delete(name, 2)
        await api.end(name, 0)
        ended = await facts.end(1)
    assert ended.ending.outcome == "lost"
    assert ended.ending.error is not None
    assert ended.ending.error.message.startswith("the pod was deleted by somebody while it ran")
    assert text(ended) == b"half\n"


async def test_a_log_is_kept_although_its_pod_is_deleted_right_after_its_end() -> None:
    """Also where it had not been read at all until then."""
    async with ready() as (api, runner, facts):
        held = asyncio.Event()

        async def late(request: web.Request, kind: str) -> None:
            if kind == "LOG":
                await held.wait()

        api.rules.append(late)
        name = await running(api, runner, facts, 1)
        await api.say(name, b"all of it")
        await api.end(name, at="2026-01-01T00:00:00Z")
        await api.delete(name, 0)
        await asyncio.sleep(0.1)
        held.set()
        ended = await facts.end(1)
    assert (ended.ending.outcome, text(ended)) == ("succeeded", b"all of it\n")


async def test_without_a_finalizer_a_pod_that_vanishes_is_lost_with_what_was_read() -> None:
    """At once, by the watch."""
    async with ready(finalizer=False) as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        await api.say(name, b"begun")
        await until(lambda: api.counts["LOG"])
        await asyncio.sleep(0.1)
        await api.remove(name)
        ended = await facts.end(1)
    assert (ended.ending.outcome, text(ended)) == ("lost", b"begun\n")


async def test_a_pod_that_is_deleted_before_it_has_a_node_ends_at_once() -> None:
    """No kubelet would ever say so."""
    async with ready() as (api, runner, facts):
        runner.start(spec(1))
        name = (await api.pod("j1"))["metadata"]["name"]
        await until(lambda: runner._runner.by_name[name].uid)
        await api.delete(name, 30)
        ended = await facts.end(1)
        runner.forget(1)
        await until(lambda: name not in api.pods)
    assert ended.ending.outcome == "lost"
    assert ended.ending.error is not None
    assert "before it ran" in ended.ending.error.message


async def test_a_forced_deletion_that_no_node_confirms_is_lost_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever forces it says that the node is dead."""
    monkeypatch.setattr(waiting, "FORCED_SECONDS", 0.2)
    async with ready() as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        await api.delete(name, 0)
        ended = await facts.end(1)
    assert ended.ending.outcome == "lost"
    assert ended.ending.error is not None
    assert "deleted by force" in ended.ending.error.message


async def test_an_image_that_cannot_be_pulled_ends_the_run_with_the_clusters_words() -> None:
    """Told at once, given up after the time that the user allows, with what the events say."""
    async with ready(logs=False, start_within=0.3) as (api, runner, facts):
        api.events = [
            {
                "type": "Normal",
                "reason": "Pulling",
                "message": "Pulling image",
                "lastTimestamp": "2026-01-01T00:00:02Z",
            },
            {
                "type": "Warning",
                "reason": "Failed",
                "message": "no such host",
                "lastTimestamp": "2026-01-01T00:00:01Z",
            },
        ]
        runner.start(spec(1))
        name = (await api.pod("j1"))["metadata"]["name"]
        api.pods[name]["spec"]["nodeName"] = "node1"
        for reason in ("ErrImagePull", "ImagePullBackOff", "ErrImagePull"):
            await api.change(name, "Pending", {"waiting": {"reason": reason, "message": "cannot pull x"}})
        ended = await facts.end(1)
        runner.forget(1)
        await until(lambda: name not in api.pods)
    assert [(fact.reason, fact.message) for fact in facts.of(1, Noticed)] == [
        ("ErrImagePull", "container main: cannot pull x")
    ]
    assert ended.ending.outcome == "refused"
    assert ended.ending.error is not None
    assert ended.ending.error.message.endswith("container main: cannot pull x — no such host")


async def test_a_pod_that_no_node_can_take_has_a_limit_of_its_own() -> None:
    """And one that is only slow to be made has none."""
    async with ready(logs=False, start_within=0.2, schedule_within=0.4) as (api, runner, facts):
        for run in (1, 2):
            runner.start(spec(run))
        slow = (await api.pod("j2"))["metadata"]["name"]
        api.pods[slow]["spec"]["nodeName"] = "node1"
        api.events = [{"type": "Normal", "reason": "Pulling", "message": "Pulling image"}]
        await api.change(slow, "Pending", {"waiting": {"reason": "ContainerCreating"}})
        name = (await api.pod("j1"))["metadata"]["name"]
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes",
        }
        await api.change(name, "Pending", conditions=[condition])
        ended = await facts.end(1)
        await asyncio.sleep(0.3)
        assert facts.of(2, Ended) == []
    assert ended.ending.error is not None
    assert (ended.ending.error.type, "0/1 nodes" in ended.ending.error.message) == ("Unschedulable", True)


# --- the watch ----------------------------------------------------------------------------------------


async def test_a_watch_that_is_cut_goes_on_where_it_was() -> None:
    """Without another list, and without telling anything twice."""
    async with ready(logs=False) as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        seen: list[str] = []
        told = runner._runner.on_pod
        runner._runner.on_pod = lambda pod: (seen.append(pod.metadata.resource_version), told(pod))
        cuts = 0

        async def cut(request: web.Request, kind: str) -> web.StreamResponse | None:
            nonlocal cuts
            if kind != "WATCH" or cuts >= 3:
                return None
            cuts += 1
            response = web.StreamResponse()
            await response.prepare(request)
            since = int(request.query["resourceVersion"])
            lines = [
                f'{{"type":"{k}","object":{json.dumps(p)}}}\n'.encode()
                for v, k, p in api.history
                if v > since
            ]
            for line in lines[:1]:
                await response.write(line)
            await response.write(b"".join(lines[1:])[:40])  # half a line
            assert request.transport is not None
            request.transport.close()
            return response

        api.rules.append(cut)
        api._ended = True  # the watch that is open ends cleanly
        async with api._changed:
            api._changed.notify_all()
        await asyncio.sleep(0.1)
        api._ended = False
        for index in range(5):
            await api.change(name, "Running", podIP=str(index))
        await api.end(name)
        await facts.end(1)
    assert api.counts["LIST"] == 1
    assert len(seen) == len(set(seen)) == 6


async def test_what_was_missed_while_the_history_was_lost_is_found_by_listing() -> None:
    """410: one pod has ended, one has gone, one is new, one is as it was."""
    async with ready(logs=False) as (api, runner, facts):
        names = {run: await running(api, runner, facts, run) for run in (1, 2, 3)}
        api.rules.append(lambda request, kind: status(503, "away", "x") if kind == "WATCH" else None)
        api._ended = True
        async with api._changed:
            api._changed.notify_all()
        await asyncio.sleep(0.1)
        await api.end(names[1], 5)
        api.pods[names[2]]["metadata"]["finalizers"] = []
        await api.remove(names[2], tell=False)
        await api.forget_history()
        api._ended = False
        api.rules.clear()
        assert (await facts.end(1)).ending.exit_code == 5
        assert (await facts.end(2)).ending.outcome == "lost"
        assert facts.of(3, Ended) == []
        assert runner._runner.shared.watch.known.keys() == {names[1], names[3]}
    assert api.counts["LIST"] == 2


async def test_a_pod_that_nobody_has_ever_seen_is_lost_by_the_next_list() -> None:
    """Created, gone, and its events forgotten, before the watch came to it."""
    async with ready(logs=False) as (api, runner, facts):
        api.rules.append(lambda request, kind: status(503, "away", "x") if kind == "WATCH" else None)
        api._ended = True
        async with api._changed:
            api._changed.notify_all()
        await asyncio.sleep(0.1)
        runner.start(spec(1))
        name = (await api.pod("j1"))["metadata"]["name"]
        await until(lambda: runner._runner.by_name[name].uid)
        await api.remove(name, tell=False)
        await api.forget_history()
        api._ended = False
        api.rules.clear()
        ended = await facts.end(1)
    assert ended.ending.outcome == "lost"


@pytest.mark.parametrize(
    "line", [b'"Too many requests"\n', b"{nonsense\n", b'{"type":"ERROR","object":{"code":500}}\n']
)
async def test_lines_that_are_no_events_break_nothing(line: bytes) -> None:
    """The stream is begun anew, not at once and for ever."""
    async with scripted() as api:

        async def odd(request: web.Request, kind: str) -> web.StreamResponse | None:
            if kind != "WATCH" or api.counts["WATCH"] > 3:
                return None
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(line)
            return response

        api.rules.append(odd)
        async with opened(make_task(api, logs=False)) as (runner, facts):
            name = await running(api, runner, facts, 1)
            await api.end(name)
            await facts.end(1)
    assert api.counts["WATCH"] <= 5


async def test_an_empty_watch_is_not_asked_for_in_a_circle() -> None:
    """The server ends it cleanly, again and again."""
    async with scripted() as api:
        api.rules.append(lambda request, kind: web.Response() if kind == "WATCH" else None)
        async with opened(make_task(api, logs=False)):
            await asyncio.sleep(1.5)
    assert api.counts["WATCH"] <= 6


async def test_a_watch_that_says_nothing_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No event, no bookmark: another one is begun, where it was."""
    monkeypatch.setattr(watching, "SILENT_SECONDS", 0.3)
    async with scripted() as api:

        async def silent(request: web.Request, kind: str) -> web.StreamResponse | None:
            if kind != "WATCH" or api.counts["WATCH"] > 1:
                return None
            response = web.StreamResponse()
            await response.prepare(request)
            await asyncio.sleep(5)
            return response

        api.rules.append(silent)
        api.bookmarks = True
        async with opened(make_task(api, logs=False)) as (runner, facts):
            name = await running(api, runner, facts, 1)
            await api.end(name)
            await facts.end(1)
            await asyncio.sleep(0.8)
    assert api.counts["WATCH"] == 2
    assert api.counts["LIST"] == 1


async def test_a_server_that_is_away_makes_runs_unreachable_and_ends_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What ended meanwhile is told when it is back."""
    monkeypatch.setattr(watching, "TELL_AFTER_SECONDS", 0.2)
    async with ready(logs=False) as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        api.rules.append(lambda request, kind: status(503, "etcd is away", "x"))
        api._ended = True
        async with api._changed:
            api._changed.notify_all()
        told = await facts.first(1, Unreachable)
        assert "etcd is away" in told.message
        await api.end(name)
        api._ended = False
        api.rules.clear()
        await facts.first(1, Reachable)
        assert (await facts.end(1)).ending.outcome == "succeeded"
    assert [type(fact) for fact in facts.all] == [Started, Unreachable, Reachable, Ended]


async def test_a_node_that_is_silent_makes_its_run_unreachable_until_it_answers() -> None:
    """The cluster says so on the pod alone; a probe that fails is no silence."""
    ready_, unready = {"type": "Ready", "status": "True"}, {"type": "Ready", "status": "False"}
    containers = {"type": "ContainersReady", "status": "True"}
    async with ready(logs=False) as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        probed = {**unready, "reason": "ContainersNotReady"}
        await api.change(name, conditions=[probed, {**containers, "status": "False"}])
        await api.change(name, conditions=[unready, containers])
        told = await facts.first(1, Unreachable)
        assert "node node1 does not answer" in told.message
        await api.change(name, conditions=[ready_, containers])
        await facts.first(1, Reachable)
        await api.change(name, conditions=[unready, containers])
        await until(lambda: len(facts.of(1, Unreachable)) == 2)
        await api.end(name)
        assert (await facts.end(1)).ending.outcome == "succeeded"
    assert [type(fact) for fact in facts.all] == [Started, Unreachable, Reachable, Unreachable, Ended]


@pytest.mark.parametrize(
    ("code", "words"), [(401, "log in again"), (403, "docs/kubernetes.md has the manifest")]
)
async def test_who_is_turned_away_hears_it_when_the_pipeline_opens(code: int, words: str) -> None:
    """With the remedy."""
    async with scripted() as api:
        api.rules.append(lambda request, kind: status(code, "no", "x"))
        with pytest.raises(CallerError, match=words):
            async with opened(make_task(api)):
                pass


# --- recovering ---------------------------------------------------------------------------------------


async def test_a_later_engine_adopts_what_runs_and_collects_what_ended() -> None:
    """By name and identity; also what was created and never confirmed."""
    async with scripted() as api:
        async with opened(make_task(api)) as (runner, facts):
            names = {run: await running(api, runner, facts, run) for run in (1, 2)}
            runner.start(spec(3))
            names[3] = (await api.pod("j3"))["metadata"]["name"]
            handles = {run: facts.of(run, Started)[0].handle for run in (1, 2)}
            await asyncio.sleep(0.05)
        await api.say(names[1], b"done")
        await api.end(names[1])
        await api.end(names[2], 4)
        await api.delete(names[2], 0)  # only the finalizer keeps it
        async with opened(make_task(api)) as (runner, facts):
            await runner.recover([spec(1, handle=handles[1]), spec(2, handle=handles[2]), spec(3)])
            ended = await facts.end(1)
            assert (ended.ending.outcome, text(ended)) == ("succeeded", b"done\n")
            assert (await facts.end(2)).ending.exit_code == 4
            assert isinstance(facts.of(3)[0], Adopted)
            await api.run(names[3])
            await facts.first(3, Started)
            runner.stop(3, "cancelled", SECOND)
            await until(lambda: api.pods[names[3]]["metadata"].get("deletionTimestamp"))
            await api.end(names[3], 137)
            assert (await facts.end(3)).ending.outcome == "cancelled"


async def test_a_run_whose_pod_is_gone_is_lost_and_one_that_never_began_has_its_name_taken() -> None:
    """A create that was on its way finds the tombstone."""
    async with scripted() as api, opened(make_task(api)) as (runner, facts):
        handle = {"pod": "x", "uid": "uid-9", "namespace": "space"}
        await runner.recover([spec(1, handle=handle), spec(2)])
        gone, never = await facts.end(1), await facts.end(2)
        assert [ended.ending.outcome for ended in (gone, never)] == ["lost", "lost"]
        assert gone.ending.error is not None
        assert "nobody saw how it ended" in gone.ending.error.message
        assert never.ending.error is not None
        assert "before this run was started" in never.ending.error.message
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
            await api.end(over)
        with caplog.at_level(logging.WARNING):
            async with opened(make_task(api)) as (runner, facts):
                runner.start(spec(9, epoch=2))
                await until(lambda: over not in api.pods)
                assert runs in api.pods
        assert f"pod {runs} runs for {LOG}.1.2, which is no open run; it is left alone" in caplog.text


# --- logs ---------------------------------------------------------------------------------------------


async def test_a_log_that_is_cut_goes_on_without_gaps_or_repeats() -> None:
    """Streams end in the middle of lines, over and over."""
    async with ready() as (api, runner, facts):
        cuts = 0

        async def cut(request: web.Request, kind: str) -> web.StreamResponse | None:
            nonlocal cuts
            if kind != "LOG" or cuts >= 6:
                return None
            cuts += 1
            since = request.query.get("sinceTime", "").rstrip("Z")
            lines = [line for line in api.logs.get((name, "main"), []) if line.decode() >= since]
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"".join(lines)[: 150 * cuts])
            assert request.transport is not None
            request.transport.close()
            return response

        api.rules.append(cut)
        name = await running(api, runner, facts, 1)
        for index in range(40):
            await api.say(name, b"line %d" % index)
            await asyncio.sleep(0.01)
        await until(lambda: cuts >= 4, 15)
        await api.end(name)
        ended = await facts.end(1)
    assert text(ended) == b"".join(b"line %d\n" % index for index in range(40))


async def test_the_logs_of_all_containers_are_kept_under_their_names() -> None:
    """Init containers first."""
    template = (
        TEMPLATE + "    - name: side\n      image: x\n      resources: {requests: {cpu: 1, memory: 1}}\n"
    )
    async with ready(template) as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        await api.say(name, b"a\nb", "main")
        await api.say(name, b"c", "side")
        await api.end(name)
        ended = await facts.end(1)
    assert text(ended) == b"==> main <==\na\nb\n==> side <==\nc\n"


async def test_a_log_that_cannot_be_had_does_not_hold_up_the_end_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is missing is said."""
    monkeypatch.setattr(logs, "LATE_SECONDS", 0.3)
    async with ready() as (api, runner, facts):
        api.rules.append(
            lambda r, kind: status(500, "dial tcp: connection refused", "x") if kind == "LOG" else None
        )
        name = await running(api, runner, facts, 1)
        await api.end(name)
        ended = await facts.end(1)
    assert ended.ending.outcome == "succeeded"
    assert facts.of(1, Noticed)[-1].message == "the log of main is not complete: dial tcp: connection refused"
    assert isinstance(ended.writes[0], Write)


async def test_more_pods_than_streams_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """All logs are whole."""
    monkeypatch.setattr(logs, "STREAMS", 2)
    monkeypatch.setattr(logs, "TURN_SECONDS", 0.1)
    async with ready() as (api, runner, facts):
        names = {run: await running(api, runner, facts, run) for run in range(1, 7)}
        for index in range(5):
            for run, name in names.items():
                await api.say(name, b"%d of %d" % (index, run))
            await asyncio.sleep(0.1)
        for name in names.values():
            await api.end(name)
        for run in names:
            whole = b"".join(b"%d of %d\n" % (index, run) for index in range(5))
            assert text(await facts.end(run)) == whole


# --- the less usual -----------------------------------------------------------------------------------


async def test_a_deletion_that_is_refused_is_asked_for_again() -> None:
    """And its words are told."""
    async with ready(logs=False) as (api, runner, facts):
        refusals = iter([status(503, "away", "x"), status(503, "away", "x")])
        api.rules.append(lambda request, kind: next(refusals, None) if kind == "DELETE" else None)
        name = await running(api, runner, facts, 1)
        runner.stop(1, "cancelled", SECOND)
        await until(lambda: api.pods[name]["metadata"].get("deletionTimestamp"))
        await api.end(name, 137)
        assert (await facts.end(1)).ending.outcome == "cancelled"
    assert facts.of(1, Noticed)[0].message == "away"


async def test_a_pod_that_cannot_be_removed_now_is_removed_later() -> None:
    """In the background, after its run has ended."""
    async with ready(logs=False) as (api, runner, facts):
        refusals = iter([status(500, "x", "x")])
        api.rules.append(lambda request, kind: next(refusals, None) if kind == "PATCH" else None)
        name = await running(api, runner, facts, 1)
        await api.end(name)
        await facts.end(1)
        runner.forget(1)
        await until(lambda: name not in api.pods)


async def test_a_stop_while_a_create_is_on_its_way_deletes_what_it_made() -> None:
    """The answer is waited for."""
    async with ready(logs=False) as (api, runner, facts):

        async def slow(request: web.Request, kind: str) -> None:
            if kind == "POST":
                runner.stop(1, "cancelled", SECOND)
                await asyncio.sleep(0.1)

        api.rules.append(slow)
        runner.start(spec(1))
        await until(lambda: any(pod["metadata"].get("deletionTimestamp") for pod in api.pods.values()))
        assert (await facts.end(1)).ending.outcome == "cancelled"
        runner.forget(1)
        await until(lambda: not api.pods)


async def test_a_create_that_was_given_up_and_arrives_late_is_deleted() -> None:
    """Nobody owns such a pod any more."""
    async with ready(logs=False) as (api, runner, facts):
        given: list[Any] = []

        async def lose(request: web.Request, kind: str) -> web.Response | None:
            if kind != "POST":
                return None
            given.append(await request.json())
            return status(504, "no answer", "Timeout")

        api.rules.append(lose)
        runner.start(spec(1))
        await facts.first(1, Noticed)
        runner.stop(1, "cancelled", SECOND)
        assert (await facts.end(1)).ending.outcome == "cancelled"
        runner.forget(1)
        await asyncio.sleep(0.1)
        await api._create(given[0], "space")
        await until(lambda: not api.pods)


async def test_a_name_that_cannot_be_taken_is_waited_for_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A create of an engine that died is over by then; what arrives before is adopted."""
    monkeypatch.setattr(starting, "DELAYED_SECONDS", 0.5)
    async with scripted() as api:
        refused = status(403, "exceeded quota: q", "Forbidden")
        api.rules.append(lambda request, kind: refused if kind == "POST" else None)
        async with opened(make_task(api, logs=False)) as (runner, facts):
            recovering = asyncio.create_task(runner.recover([spec(1)]))
            told = await facts.first(1, Noticed)
            assert "its name cannot be taken" in told.message
            await recovering
            assert (await facts.end(1)).ending.outcome == "lost"


async def test_a_run_that_is_stopped_while_it_is_looked_for_ends_as_stopped() -> None:
    """There is no pod."""
    async with scripted() as api, opened(make_task(api, logs=False)) as (runner, facts):
        handle = {"pod": "x", "uid": "uid-9", "namespace": "space"}
        recovering = asyncio.create_task(runner.recover([spec(1, handle=handle)]))
        await asyncio.sleep(0)
        runner.stop(1, "cancelled", SECOND)
        await recovering
        assert (await facts.end(1)).ending.outcome == "cancelled"


async def test_a_server_that_is_away_when_the_engine_opens_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Runs are unreachable, not lost."""
    monkeypatch.setattr(watching, "TELL_AFTER_SECONDS", 0.2)
    monkeypatch.setattr(watching, "OPEN_SECONDS", 0.1)
    async with scripted() as api:
        async with opened(make_task(api, logs=False)) as (runner, facts):
            name = await running(api, runner, facts, 1)
        api.rules.append(lambda request, kind: status(503, "away", "x"))
        async with opened(make_task(api, logs=False)) as (runner, facts):
            recovering = asyncio.create_task(runner.recover([spec(1)]))
            await facts.first(1, Unreachable)
            api.rules.clear()
            await facts.first(1, Reachable)
            await recovering
            await facts.first(1, Adopted)
            await api.end(name)
            assert (await facts.end(1)).ending.outcome == "succeeded"


async def test_a_quiet_while_asks_for_nothing() -> None:
    """One watch is enough."""
    async with ready(logs=False) as (api, runner, facts):
        for run in range(1, 6):
            await running(api, runner, facts, run)
        await asyncio.sleep(0.1)
        before = api.counts
        await asyncio.sleep(1.0)
        assert api.counts == before
        assert (before["LIST"], before["WATCH"], before["GET"]) == (1, 1, 0)


async def test_a_function_whose_pod_succeeds_without_a_result_has_failed() -> None:
    """It did not run, whatever the pod says."""
    async with scripted() as api:
        manager = PodManager("app", "space", api.config())
        done = InProcessMetadataRepository()
        done._id = "func_done"
        task = KubeFunctionTask(
            "t", manager, None, TEMPLATE, func_done=done, kube_done=InProcessMetadataRepository()
        )
        task.link("inp", InProcessMetadataRepository(), is_input=True)

        @task
        async def work(job: str) -> None:
            """Never called here."""

        await task.validate()
        async with opened(task) as (runner, facts):
            name = await running(api, runner, facts, 1)
            await api.say(name, b"hello")
            await api.end(name)
            ended = await facts.end(1)
    assert ended.ending.error is not None
    assert (ended.ending.outcome, ended.ending.error.type) == ("failed", "NoResult")
    assert [write.repository for write in ended.writes] == ["func_done"]


async def test_a_server_with_little_room_is_asked_by_fewer_at_a_time() -> None:
    """It takes two at once: what it turns away is asked again, not by all at once for ever."""
    async with ready(logs=False) as (api, runner, _facts):
        under_way = 0

        async def narrow(request: web.Request, kind: str) -> web.Response | None:
            nonlocal under_way
            if kind != "POST":
                return None
            if under_way >= 2:
                return web.Response(status=429, text="Too many requests", headers={"Retry-After": "0.1"})
            under_way += 1
            try:
                await asyncio.sleep(0.01)
                return await api._create(await request.json(), "space")
            finally:
                under_way -= 1

        api.rules.append(narrow)
        for run in range(1, 61):
            runner.start(spec(run))
        await until(lambda: len(api.pods) == 60, 20)
        assert api.counts["POST"] < 60 * 2.5
        for run in range(1, 61):  # what waits can be called off, and the rest goes on
            runner.stop(run, "cancelled", SECOND)
        await until(lambda: api.counts["DELETE"] >= 60, 20)
