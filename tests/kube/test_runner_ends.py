"""The pod runner ends runs: stopped by us, deleted by others, never begun; what is judged, told and removed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from datatask import InProcessMetadataRepository, KubeFunctionTask, KubeTask, PodManager
from datatask.adapters.execute.kube import slow_starts, stops
from datatask.schema.events import MACHINE
from datatask.schema.messages import Ended, Noticed
from tests.kube.api.faults import away, broken
from tests.kube.runner_kit import SECOND, TEMPLATE, opened, ready, running, spec, text
from tests.kube.scripted import scripted, terminated
from tests.run_kit import until


@pytest.mark.parametrize(("reason", "outcome"), [("timeout", "timed_out"), ("deleted", "cancelled")])
async def test_a_stopped_pod_is_deleted_with_its_grace(reason: Any, outcome: str) -> None:
    """Its end is told when its containers have ended; the log is kept unless the job is to run anew."""
    async with ready() as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        api.say(name, b"begun")
        runner.stop(1, reason, 3 * SECOND)
        await until(lambda: api.pods[name]["metadata"].get("deletionTimestamp"))
        assert api.pods[name]["metadata"]["deletionGracePeriodSeconds"] == 3
        assert facts.of(1, Ended) == []
        api.end(name, 143)
        ended = await facts.end_of(1)
        assert text(ended) == (b"begun\n" if reason == "timeout" else None)
        runner.forget(1)
        await until(lambda: name not in api.pods)
    assert (ended.ending.outcome, ended.ending.exit_code) == (outcome, 143)
    assert api.counts["delete pods"] == 1


async def test_what_ended_before_its_stop_has_ended_by_itself() -> None:
    """The fact wins over the stop that raced it."""
    async with ready(logs=False) as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        api.change(name, "Running", terminated(0, at="2026-01-01T00:00:00Z"))
        runner.stop(1, "cancelled", SECOND)
        await until(lambda: api.pods[name]["metadata"].get("deletionTimestamp"))
        api.change(name, "Succeeded")
        assert (await facts.end_of(1)).ending.outcome == "succeeded"


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
            api.end(name, 137)
            assert (await facts.end_of(1)).ending.outcome == "timed_out"
    assert seen == [(name, None)]
    assert "as told" in facts.of(1, Noticed)[0].message


async def test_a_deletion_that_is_refused_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And its words are told."""
    monkeypatch.setattr(stops, "RETRY_SECONDS", (0.2, 1.0))
    async with ready(logs=False) as (api, runner, facts):
        api.faults.append(away("delete", times=2))
        name = await running(api, runner, facts, 1)
        runner.stop(1, "cancelled", SECOND)
        await until(lambda: api.pods[name]["metadata"].get("deletionTimestamp"))
        api.end(name, 137)
        assert (await facts.end_of(1)).ending.outcome == "cancelled"
    assert facts.of(1, Noticed)[0].message == f"pod {name}: away"


async def test_a_pod_that_cannot_be_removed_now_is_removed_later() -> None:
    """In the background, after its run has ended."""
    async with ready(logs=False) as (api, runner, facts):
        api.faults.append(broken(1, "patch"))
        name = await running(api, runner, facts, 1)
        api.end(name)
        await facts.end_of(1)
        runner.forget(1)
        await until(lambda: name not in api.pods)


async def test_a_pod_that_somebody_deletes_is_lost_and_its_log_is_kept() -> None:
    """The finalizer keeps it until then."""
    async with ready() as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        api.say(name, b"half")
        api.delete(name, 2)
        api.end(name, 0)
        ended = await facts.end_of(1)
    assert ended.ending.outcome == "lost"
    assert ended.ending.error is not None
    assert ended.ending.error.message.startswith("the pod was deleted by somebody while it ran")
    assert MACHINE not in (ended.ending.detail or {}), "it may be for the job's sake: it counts"
    assert text(ended) == b"half\n"


async def test_a_pod_that_is_drained_or_evicted_says_so_for_the_budget() -> None:
    """By the eviction API, in whatever way its process ends then; by the kubelet."""
    async with ready() as (api, runner, facts):
        drained, evicted = [await running(api, runner, facts, run) for run in (1, 2)]
        condition = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
        api.change(drained, conditions=[condition])
        api.delete(drained, 2)
        api.end(drained, 0)
        api.change(evicted, "Failed", reason="Evicted", message="The node was low on resource: memory. ")
        endings = [(await facts.end_of(run)).ending for run in (1, 2)]
    told = [(ending.outcome, (ending.detail or {})[MACHINE]) for ending in endings]
    assert told == [("lost", "EvictionByEvictionAPI"), ("lost", "Evicted")]


async def test_without_a_finalizer_a_pod_that_vanishes_is_lost_with_what_was_read() -> None:
    """At once, by the watch."""
    async with ready(finalizer=False) as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        api.say(name, b"begun")
        await until(lambda: api.counts["get pods/log"])
        await asyncio.sleep(0.1)
        api.remove(name)
        ended = await facts.end_of(1)
    assert (ended.ending.outcome, text(ended)) == ("lost", b"begun\n")


async def test_a_pod_that_is_deleted_before_it_has_a_node_ends_at_once() -> None:
    """No kubelet would ever say so."""
    async with ready() as (api, runner, facts):
        runner.start(spec(1))
        name = (await api.pod("j1"))["metadata"]["name"]
        await until(lambda: runner._runner.by_name[name].uid)
        api.delete(name, 30)
        ended = await facts.end_of(1)
        runner.forget(1)
        await until(lambda: name not in api.pods)
    assert ended.ending.outcome == "lost"
    assert ended.ending.error is not None
    assert "before it ran" in ended.ending.error.message


async def test_a_forced_deletion_that_no_node_confirms_is_lost_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever forces it says that the node is dead."""
    monkeypatch.setattr(slow_starts, "FORCED_SECONDS", 0.2)
    async with ready() as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        api.delete(name, 0)
        ended = await facts.end_of(1)
    assert ended.ending.outcome == "lost"
    assert ended.ending.error is not None
    assert "deleted by force" in ended.ending.error.message


async def test_an_image_that_cannot_be_pulled_ends_the_run_with_the_clusters_words() -> None:
    """Told at once, given up after the time that the user allows, with what the events say."""
    async with ready(logs=False, start_within=0.3) as (api, runner, facts):
        runner.start(spec(1))
        name = (await api.pod("j1"))["metadata"]["name"]
        api.tell(name, "Pulling", "Pulling image", at="2026-01-01T00:00:02Z")
        api.tell(name, "Failed", "no such host", kind="Warning", at="2026-01-01T00:00:01Z")
        for reason in ("ErrImagePull", "ImagePullBackOff", "ErrImagePull"):
            waits = {"waiting": {"reason": reason, "message": "cannot pull x"}}
            api.change(name, "Pending", waits, node="node1")
        ended = await facts.end_of(1)
        runner.forget(1)
        await until(lambda: name not in api.pods)
    assert [(fact.reason, fact.message) for fact in facts.of(1, Noticed)] == [
        ("ErrImagePull", f"pod {name}: container main: cannot pull x")
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
        api.tell(slow, "Pulling", "Pulling image")
        api.change(slow, "Pending", {"waiting": {"reason": "ContainerCreating"}}, node="node1")
        name = (await api.pod("j1"))["metadata"]["name"]
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes",
        }
        api.change(name, "Pending", conditions=[condition])
        ended = await facts.end_of(1)
        await asyncio.sleep(0.3)
        assert facts.of(2, Ended) == []
    assert ended.ending.error is not None
    assert (ended.ending.error.type, "0/1 nodes" in ended.ending.error.message) == ("Unschedulable", True)


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
            api.say(name, b"hello")
            api.end(name)
            ended = await facts.end_of(1)
    assert ended.ending.error is not None
    assert (ended.ending.outcome, ended.ending.error.type) == ("failed", "NoResult")
    assert [write.repository for write in ended.writes] == ["func_done"]
