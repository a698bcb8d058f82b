"""Why a pod with a node does not start is asked of the cluster's events: soon, once for all pods, and not for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from datatask import KubeTask, LogMetadataRepository, Pipeline, PodManager, Session, why
from datatask.adapters.execute.kube import causes
from datatask.schema.messages import Noticed, Started
from tests.effort import by_effort
from tests.kube.api.faults import Fault
from tests.kube.api.kinds import BY_PATH
from tests.kube.runner_kit import ready, running, spec
from tests.kube.scripted import SPACE
from tests.kube.toy import toy_cluster
from tests.run_kit import until

WAITS = {"waiting": {"reason": "ContainerCreating"}}
MOUNT = 'MountVolume.SetUp failed for volume "v" : secret "absent" not found'


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at once, and often."""
    monkeypatch.setattr(causes, "PAUSE_SECONDS", (0.02, 0.16))
    monkeypatch.setattr(causes, "BETWEEN_SECONDS", 0.0)


async def made(api: Any, runner: Any, *runs: int) -> list[str]:
    """Let runs have pods whose containers are being made, and return their names."""
    for run in runs:
        runner.start(spec(run))
    names = [(await api.pod(f"j{run}"))["metadata"]["name"] for run in runs]
    for name in names:
        api.change(name, "Pending", WAITS, node="node1")
    return names


@pytest.mark.usefixtures("soon")
async def test_a_missing_volume_is_told_at_once_and_then_nothing_is_asked() -> None:
    """By the kubelet's own words, which only an event has; of this pod, not of one of that name before."""
    async with ready(logs=False) as (api, runner, facts):
        (name,) = await made(api, runner, 1)
        api.tell(name, "FailedScheduling", "0/1 nodes are available", kind="Warning")  # it has a node by now
        api.tell(name, "Pulled", "Container image is present")
        await until(lambda: api.counts["list events"] >= 2)
        assert not facts.of(1, Noticed)
        api.tell(name, "FailedMount", MOUNT, kind="Warning")
        told = await facts.first(1, Noticed)
        assert (told.phase, told.reason, told.message) == ("pending", "FailedMount", f"pod {name}: {MOUNT}")
        asked = len(api.server.asked)
        api.change(name, "Pending", WAITS, node="node1")
        await asyncio.sleep(0.5)
        assert len(api.server.asked) == asked
        api.run(name)
        await facts.first(1, Started)
    assert len(facts.of(1, Noticed)) == 1


@pytest.mark.usefixtures("soon")
async def test_one_list_is_for_all_pods_that_wait_and_the_last_one_comes_soon() -> None:
    """What takes long to be made is not asked about for ever."""
    async with ready(logs=False) as (api, runner, _):
        await made(api, runner, *range(1, 31))
        asked = -1
        while len(api.server.asked) > asked:
            asked = len(api.server.asked)
            await asyncio.sleep(0.6)
        assert 4 <= api.counts["list events"] <= 4 * 6


@pytest.mark.usefixtures("soon")
async def test_events_in_pages_and_a_server_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last warning counts, wherever it is listed; without the right nothing is asked for a while."""
    async with ready(logs=False) as (api, runner, facts):
        api.faults.append(Fault("list", "events", code=500, message="etcdserver: leader changed"))
        (name,) = await made(api, runner, 1)
        monkeypatch.setattr(causes, "PAGE", 20)
        for number in range(65):
            at = f"2026-01-01T00:00:{number % 60:02}Z"
            api.tell(name, f"Failed{number % 60}", "text", kind="Warning", at=at)
        assert (await facts.first(1, Noticed)).reason == "Failed59"
        api.server.users["admin"].denied = {"list events"}
        before = api.counts["list events"]
        await made(api, runner, 2)
        await until(lambda: api.counts["list events"] > before)
        await asyncio.sleep(0.3)
        assert api.counts["list events"] == before + 1


@pytest.mark.scaled
async def test_a_quiet_minute_costs_no_request() -> None:
    """Pods run, one waits for what it has been told to lack: the watch is all."""
    async with ready(logs=False) as (api, runner, facts):
        for run in range(1, 11):
            await running(api, runner, facts, run)
        (name,) = await made(api, runner, 11)
        api.tell(name, "FailedMount", MOUNT, kind="Warning")
        await facts.first(11, Noticed)
        asked = list(api.server.asked)
        await asyncio.sleep(by_effort(quick=1.5, thorough=1.5, soak=60.0))
        assert api.server.asked == asked
    assert api.counts["list events"] <= 2


@pytest.mark.parametrize(
    ("spec_of", "told"),
    [
        ("volumes: [{name: v, secret: {secretName: absent}}]", f"FailedMount: pod NAME: {MOUNT}"),
        (
            "volumes: [{name: v, persistentVolumeClaim: {claimName: absent}}]",
            'Unschedulable: pod NAME: 0/1 nodes are available: persistentvolumeclaim "absent" not found',
        ),
        (
            "volumes: [{name: v, secret: {secretName: given, items: [{key: absent, path: x}]}}]",
            'FailedMount: pod NAME: MountVolume.SetUp failed for volume "v" : references non-existent secret key: absent',
        ),
        (
            "volumes: [{name: v, hostPath: {path: /absent, type: Directory}}]",
            'FailedMount: pod NAME: MountVolume.SetUp failed for volume "v" : hostPath type check failed: /absent is not a directory',
        ),
        (
            "securityContext: {runAsNonRoot: true}",
            (
                "CreateContainerConfigError: container main: container has runAsNonRoot and image will run as root "
                '(pod: "NAME_space('
            ),
        ),
        (
            "KEY",
            "CreateContainerConfigError: pod NAME: container main: couldn't find key absent in Secret space/given",
        ),
    ],
)
async def test_why_names_the_pod_and_what_it_lacks(tmp_path: Path, spec_of: str, told: str) -> None:
    """In the cluster's words, while the pod waits."""
    key = ", env: [{name: V, valueFrom: {secretKeyRef: {name: given, key: absent}}}]"
    env, spec_of = (key, "") if spec_of == "KEY" else ("", spec_of)
    template = "kind: Pod\nspec: {containers: [{name: main, image: busybox" + env + "}], " + spec_of + "}"
    async with toy_cluster() as api:
        api.server.storage.create(
            BY_PATH["", "v1", "secrets"],
            {"metadata": {"name": "given", "namespace": SPACE}, "data": {"k": "dg=="}},
        )
        given = LogMetadataRepository("given")
        task = KubeTask("t", PodManager("app", SPACE, api.config()), None, template, None, None)
        task.link("given", given, is_input=True)
        async with Pipeline([task], Session(), log=tmp_path / "log.db") as pipeline:
            await given.dump("j", {})
            await pipeline.update()
            name = (await api.pod("j"))["metadata"]["name"]

            def reason() -> str:
                return why(tmp_path / "log.db", "t", "j").held_by[0].explain

            await until(lambda: told.replace("NAME", name) in reason())
