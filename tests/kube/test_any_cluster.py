"""How pods end on a cluster that runs them: the toy one, or a real one where DATATASK_TEST_KUBECONFIG names it."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from datatask import InProcessBlobRepository, InProcessMetadataRepository, KubeTask
from datatask.schema.messages import Ended, Noticed, Started
from tests.kube.runner_kit import opened, spec, text
from tests.kube.toy import Target, target

SECOND = 1_000_000_000
TEMPLATE = """
kind: Pod
spec:
  terminationGracePeriodSeconds: 2
  SPEC
  containers:
    - name: main
      image: IMAGE
      command: COMMAND
      resources: {requests: {cpu: 10m, memory: 16Mi}}
      MORE
    SIDE
"""
_apps = itertools.count()


def make_task(
    there: Target,
    command: str,
    *,
    image: str = "",
    pod: str = "",
    more: str = "",
    side: str = "",
    **policy: Any,
) -> KubeTask:
    """Return a task whose pods run a command, of an application of its own."""
    template = TEMPLATE.replace("COMMAND", command).replace("IMAGE", image or there.image)
    template = template.replace("SPEC", pod).replace("MORE", more).replace("SIDE", side)
    logs = InProcessBlobRepository()
    logs._id = "logs"
    manager = there.manager(f"any{os.getpid()}-{next(_apps)}")
    task = KubeTask("t", manager, None, template, logs, None, **policy)
    task.link("inp", InProcessMetadataRepository(), is_input=True)
    return task


async def end_of(task: KubeTask, *, stop: Any = None) -> tuple[Ended, Any]:
    """Run one pod to its end, or until it runs and is stopped."""
    async with opened(task) as (runner, facts):
        runner.start(spec(1))
        if stop is not None:
            await facts.first(1, Started)
            await stop(runner)
        async with asyncio.timeout(100):
            while not facts.of(1, Ended):
                await asyncio.sleep(0.02)
        ended = await facts.end_of(1)
        runner.forget(1)
        await removed(task)
    return ended, facts


async def removed(task: KubeTask) -> None:
    """Wait until its pods are gone."""
    manager = task.podman
    async with asyncio.timeout(100):
        while await manager.query(task="t"):
            await asyncio.sleep(0.05)
    await manager.close()


@pytest.mark.parametrize(
    ("command", "pod", "outcome", "code", "reason"),
    [
        ("[sh, -c, 'echo out; echo err >&2']", "", "succeeded", 0, ""),
        ("[sh, -c, 'echo out; echo err >&2; exit 3']", "", "failed", 3, "ExitCode"),
        ("[sh, -c, 'echo out; echo err >&2; exit 137']", "", "failed", 137, "ExitCode"),
        ("[/no/such]", "", "refused", 128, "StartError"),
        (
            "[sh, -c, 'echo out; echo err >&2; sleep 60']",
            "activeDeadlineSeconds: 2",
            "timed_out",
            137,
            "DeadlineExceeded",
        ),
    ],
)
async def test_ends(command: str, pod: str, outcome: str, code: int, reason: str) -> None:
    """By what the cluster tells; with what was said."""
    ended, _ = await end_of(make_task(target(), command, pod=pod))
    error = ended.ending.error
    assert (ended.ending.outcome, error.type if error else "") == (outcome, reason)
    assert (
        ended.ending.exit_code in (code, None)
        if reason == "DeadlineExceeded"
        else ended.ending.exit_code == code
    )
    said = text(ended) or b""
    assert sorted(said.splitlines()) == ([] if reason == "StartError" else [b"err", b"out"])


@pytest.mark.parametrize(
    ("image", "pod", "more", "reason"),
    [
        ("localhost/absent:1", "", "", "ErrImagePull"),
        ("", "", "envFrom: [{configMapRef: {name: absent}}]", "CreateContainerConfigError"),
        ("", "nodeSelector: {nobody: has-this}", "", "Unschedulable"),
    ],
)
async def test_pods_that_cannot_start(image: str, pod: str, more: str, reason: str) -> None:
    """Told at once, ended after the limit, gone."""
    limits: dict[str, Any] = {"start_within": 10.0 if target().is_real else 1.0, "schedule_within": 1.0}
    ended, facts = await end_of(
        make_task(target(), "[sleep, '1']", image=image, pod=pod, more=more, **limits)
    )
    assert ended.ending.outcome == "refused"
    assert reason in [fact.reason for fact in facts.of(1, Noticed)]
    assert ended.ending.error is not None
    assert "it did not start within" in ended.ending.error.message


@pytest.mark.parametrize(("reason", "outcome"), [("timeout", "timed_out"), ("cancelled", "cancelled")])
async def test_stops(reason: Any, outcome: str) -> None:
    """TERM, then KILL when the grace is over."""

    async def stop(runner: Any) -> None:
        runner.stop(1, reason, SECOND)

    ended, _ = await end_of(
        make_task(target(), "[sh, -c, 'trap : TERM; while :; do sleep 1; done']"), stop=stop
    )
    assert ended.ending.outcome == outcome


async def test_a_pod_that_somebody_else_deletes() -> None:
    """Its log is kept, its run is lost."""
    task = make_task(target(), "[sh, -c, 'echo begun; sleep 60']")

    async def stop(runner: Any) -> None:
        await asyncio.sleep(0.5)
        (pod,) = await task.podman.query(task="t")
        await task.podman.v1.delete_namespaced_pod(
            pod.metadata.name, task.podman.namespace, grace_period_seconds=1
        )

    ended, _ = await end_of(task, stop=stop)
    assert (ended.ending.outcome, text(ended)) == ("lost", b"begun\n")


INITS = """initContainers:
    - {name: first, image: IMAGE, command: [sh, -c, 'echo one; sleep 0.2; echo two'], resources: SMALL}
    - {name: second, image: IMAGE, command: [sh, -c, 'echo three; exit CODE'], resources: SMALL}"""
SIDE = "- {name: side, image: IMAGE, command: [sh, -c, 'echo side; exit 3'], resources: SMALL}"


@pytest.mark.parametrize(
    ("code", "logs"),
    [
        (
            0,
            b"==> first <==\none\ntwo\n==> second <==\nthree\n==> main <==\nout\n==> side <==\nside\n",
        ),
        (4, b"==> first <==\none\ntwo\n==> second <==\nthree\n"),
    ],
)
async def test_pods_of_several_containers(code: int, logs: bytes) -> None:
    """Init containers come first, one after the other, and end the pod where one fails; each log is kept under its name."""
    there = target()

    def filled(text: str) -> str:
        small = "{requests: {cpu: 10m, memory: 16Mi}}"
        return text.replace("IMAGE", there.image).replace("CODE", str(code)).replace("SMALL", small)

    task = make_task(there, "[sh, -c, 'echo out']", pod=filled(INITS), side=filled(SIDE))
    ended, _ = await end_of(task)
    assert (ended.ending.outcome, ended.ending.exit_code) == ("failed", code or 3)
    assert text(ended) == logs
    assert ended.ending.error is not None
    assert ("second" if code else "side") in ended.ending.error.message


@pytest.mark.parametrize("megabytes", [32, pytest.param(2048, marks=pytest.mark.soak)])
async def test_a_log_of_gigabytes_takes_constant_memory(megabytes: int) -> None:
    there = target()
    if there.is_real:
        pytest.skip("a real kubelet rotates logs of that size away")
    size = megabytes << 20
    command = f"[sh, -c, \"head -c {size} /dev/zero | tr '\\\\0' x | fold -w 4095\"]"
    task = make_task(there, command)
    async with opened(task) as (runner, facts):
        runner.start(spec(1))
        await facts.first(1, Started)
        before = most = resident()
        while not facts.of(1, Ended):
            most = max(most, resident())
            await asyncio.sleep(0.02)
        ended = await facts.end_of(1)
        assert ended.ending.outcome == "succeeded"
        (log,) = ended.writes
        assert log.source is not None
        assert log.source.stat().st_size == size + size // 4095
        assert most - before < 24 << 20
        runner.forget(1)
        await removed(task)


def resident() -> int:
    """The bytes that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
