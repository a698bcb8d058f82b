"""How pods live and end on the toy kubelet, what a test's faults do, and recorded lives told again."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from typing import Any

import aiohttp
import pytest
from kubernetes_asyncio.client.exceptions import ApiException

from tests.kube.fake.player import Player, interleaved, recorded
from tests.kube.fake.refusals import too_many_requests
from tests.kube.test_fake_checks import NAMESPACE, asking, pod


def state(of: dict[str, Any], place: int = 0) -> dict[str, Any]:
    """Return the state of a container."""
    return dict(of["status"]["containerStatuses"][place]["state"])


@pytest.mark.parametrize(
    ("command", "phase", "code", "reason"),
    [
        (["sh", "-c", "exit 0"], "Succeeded", 0, "Completed"),
        (["sh", "-c", "echo boom > /dev/termination-log; exit 3"], "Failed", 3, "Error"),
        (["sh", "-c", "kill -9 $$$$"], "Failed", 137, "Error"),
        (["/no/such"], "Failed", 128, "StartError"),
    ],
)
async def test_ends(command: list[str], phase: str, code: int, reason: str) -> None:
    """Running with a terminated container comes before the last phase."""
    async with asking("toy") as asks:
        seen: list[tuple[str, str]] = []
        asks.cluster.store.listeners.append(
            lambda change: (
                change.resource == "pods"
                and seen.append((change.object["status"]["phase"], *_states(change.object)[:1]))
            )  # type: ignore[func-returns-value]
        )
        await asks.create("p", command=command)
        told = await asks.cluster.until("p", "Succeeded", "Failed", namespace=NAMESPACE)
        end = state(told)["terminated"]
        assert (told["status"]["phase"], end["exitCode"], end["reason"]) == (phase, code, reason)
        assert end.get("message", "") == ("boom\n" if code == 3 else end.get("message", ""))
        before = "Pending" if reason == "StartError" else "Running"
        assert seen[-2:] == [(before, "terminated"), (phase, "terminated")]


def _states(of: dict[str, Any]) -> list[str]:
    return [next(iter(one["state"])) for one in of["status"].get("containerStatuses") or ()]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"image": "localhost/absent:1"}, "ErrImagePull"),
        ({"envFrom": [{"configMapRef": {"name": "later"}}]}, "CreateContainerConfigError"),
    ],
)
async def test_what_keeps_a_container_waiting(more: dict[str, Any], reason: str) -> None:
    """It is told, and when it is mended the pod goes on."""
    async with asking("toy") as asks:
        manifest = pod("p", command=["true"])
        manifest["spec"]["containers"][0] |= more
        await asks.v1.create_namespaced_pod(NAMESPACE, manifest)
        while not any(
            one["status"].get("containerStatuses") and reason == state(one).get("waiting", {}).get("reason")
            for one in asks.cluster.pods(NAMESPACE).values()
        ):
            await asyncio.sleep(0.01)
        asks.cluster.kubelet.has_image = lambda image: True  # type: ignore[union-attr]
        await asks.v1.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "later"}})
        await asks.cluster.until("p", "Succeeded", namespace=NAMESPACE)


async def test_a_pod_that_no_node_takes() -> None:
    """Until room is made."""
    async with asking("toy") as asks:
        await asks.create("big", limits={"cpu": "60", "memory": "1Gi"}, command=["sleep", "300"])
        await asks.cluster.until("big", "Running", namespace=NAMESPACE)
        await asks.create("next", limits={"cpu": "60", "memory": "1Gi"}, command=["true"])
        told = asks.cluster.pod("next", NAMESPACE)
        assert told is not None
        while not told["status"].get("conditions"):
            await asyncio.sleep(0.01)
            told = asks.cluster.pod("next", NAMESPACE)
            assert told is not None
        condition = told["status"]["conditions"][0]
        assert (condition["status"], condition["reason"]) == ("False", "Unschedulable")
        assert condition["message"].startswith("0/1 nodes are available: 1 Insufficient cpu.")
        asks.cluster.delete_pod("big", NAMESPACE, grace=0)
        await asks.cluster.until("next", "Succeeded", namespace=NAMESPACE)


async def test_deadline_memory_and_eviction() -> None:
    """The pod's own reason, the container's, and the pod's again."""
    async with asking("toy") as asks:
        await asks.create(
            "late",
            command=["sh", "-c", "trap '' TERM; sleep 300"],
            activeDeadlineSeconds=1,
            terminationGracePeriodSeconds=1,
        )
        await asks.create("oom", command=["tail", "/dev/zero"], limits={"memory": "32Mi"})
        await asks.create("out", command=["sleep", "300"])
        await asks.cluster.until("out", "Running", namespace=NAMESPACE)
        asks.cluster.kubelet.evict("out", "The node was low on resource: memory.", NAMESPACE)  # type: ignore[union-attr]
        ends = {}
        for name in ("late", "oom", "out"):
            told = await asks.cluster.until(name, "Failed", namespace=NAMESPACE)
            end = state(told).get("terminated", {})
            ends[name] = told["status"].get("reason"), end.get("exitCode"), end.get("reason")
        assert ends == {
            "late": ("DeadlineExceeded", 137, "Error"),
            "oom": (None, 137, "OOMKilled"),
            "out": ("Evicted", 137, "Error"),
        }


async def test_grace() -> None:
    """TERM that is heard, TERM that is not; both are told before the pod is gone."""
    async with asking("toy") as asks:
        last: dict[str, tuple[str, int]] = {}
        asks.cluster.store.listeners.append(
            lambda change: (
                change.gone
                and change.resource == "pods"
                and last.update(
                    {
                        change.object["metadata"]["name"]: (
                            change.object["status"]["phase"],
                            state(change.object)["terminated"]["exitCode"],
                        )
                    }
                )
            )
        )
        for name, trap in (("hears", "exit 0"), ("deaf", "true")):
            script = f"trap '{trap}' TERM; echo ready; while :; do sleep .05; done"
            await asks.create(name, command=["sh", "-c", script])
            told = await asks.cluster.until(name, "Running", namespace=NAMESPACE)
            log = asks.cluster.logs.of(told["metadata"]["uid"], "main")
            assert log is not None
            while not log.size:
                await log.bell.wait()
            await asks.v1.delete_namespaced_pod(name, NAMESPACE, grace_period_seconds=1)
            await asks.cluster.until(name, "gone", namespace=NAMESPACE)
        assert last == {"hears": ("Succeeded", 0), "deaf": ("Failed", 137)}


async def test_a_lost_node_and_a_removed_one() -> None:
    """Its pods are to be deleted, and stay; with the node they go."""
    async with asking("toy", pace=0.001) as asks:
        await asks.create("p", command=["sleep", "300"])
        await asks.cluster.until("p", "Running", namespace=NAMESPACE)
        kubelet: Any = asks.cluster.kubelet
        kubelet.lose_node()
        while not asks.cluster.pods(NAMESPACE)["p"]["metadata"].get("deletionTimestamp"):
            await asyncio.sleep(0.02)
        conditions = {
            one["type"]: one.get("reason")
            for one in asks.cluster.pods(NAMESPACE)["p"]["status"]["conditions"]
        }
        assert conditions["DisruptionTarget"] == "DeletionByTaintManager"
        kubelet.remove_node()
        assert asks.cluster.pods(NAMESPACE) == {}


async def test_faults() -> None:
    """As many as were told; what was done although nobody heard of it is there."""
    async with asking() as asks:
        asks.cluster.faults.add("create", refuse=too_many_requests(2), times=2)
        for _ in range(2):
            with pytest.raises(ApiException) as caught:
                await asks.create("p")
            assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "2")
        asks.cluster.faults.add("create", cut="after")
        with pytest.raises(aiohttp.ClientError):
            await asks.create("p")
        with pytest.raises(ApiException, match="AlreadyExists"):
            await asks.create("p")
        asks.cluster.deny("no", webhook="deny.example.org")
        with pytest.raises(ApiException, match=r"deny\.example\.org"):
            await asks.create("q")
        version = asks.cluster.store.version
        for number in range(3):
            asks.cluster.set_status("p", NAMESPACE, message=str(number))
        asks.cluster.faults.add("watch", stream_bytes=100)
        with pytest.raises((aiohttp.ClientError, ApiException)):
            await asks.watched(resource_version=str(version), timeout_seconds=2)
        assert asks.cluster.counts["create pods"] == 5


@pytest.mark.parametrize("seed", [None, 1, 2])
async def test_recorded_lives_are_told_again(seed: int | None) -> None:
    """Each object's events in its order, and in the end nothing is left."""
    events = recorded()
    if seed is not None:
        events = interleaved(events, random.Random(seed))
    async with asking() as asks:
        player = Player(asks.cluster, events)
        version = asks.cluster.store.version
        url = f"{asks.cluster.url}/api/v1/namespaces/rec/pods?watch=1&resourceVersion={version}"
        headers = {"Authorization": "Bearer admin"}
        told: defaultdict[str, list[str]] = defaultdict(list)
        async with aiohttp.ClientSession(headers=headers) as session, session.get(url) as response:
            await player.play()
            for _ in events:
                event = json.loads(await response.content.readline())
                told[event["object"]["metadata"]["name"]].append(event["type"])
        wanted: defaultdict[str, list[str]] = defaultdict(list)
        for event in recorded():
            wanted[event.object["metadata"]["name"]].append(event.kind)
        assert told == wanted
        assert asks.cluster.pods("rec") == {}
