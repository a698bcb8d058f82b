"""The kubelet of the API server for tests does as that of v1.36: sidecars, volumes and runtimes that are missing, resizes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kube import recorded
from tests.kube.test_api_kubelet import Node, node

PATIENT = "trap 'exit {}' TERM; while :; do sleep 0.02; done"
STRATEGIC = "application/strategic-merge-patch+json"


def side(script: str) -> dict[str, Any]:
    """Return a sidecar."""
    return {"name": "side", "image": "busybox", "restartPolicy": "Always", "command": ["sh", "-c", script]}


def ends(status: dict[str, Any]) -> list[Any]:
    """Return the phase, and how the main container and the sidecar ended or wait."""
    told = [status["phase"]]
    for one in (status["containerStatuses"][0], status["initContainerStatuses"][0]):
        state = one["state"]
        ended = state.get("terminated")
        told.append((ended["exitCode"], ended["reason"]) if ended else state["waiting"]["reason"])
    return told


@pytest.mark.parametrize(
    ("name", "script", "main"),
    [
        ("sidecar-watch", PATIENT.format(0), "sleep 0.1"),
        ("sidecar-fail-watch", PATIENT.format(9), "sleep 0.1; exit 5"),
        ("sidecar-crashing-watch", "exit 7", "sleep 2"),
    ],
)
async def test_sidecars_live_as_recorded(name: str, script: str, main: str) -> None:
    """They start first and stay; the phase waits for them, and is the main container's alone."""
    recorded_lives = [event["object"]["status"] for event in recorded.events(name)]
    last = next(one for one in reversed(recorded_lives) if one["phase"] in ("Succeeded", "Failed"))
    async with node(backoff=30.0) as there:
        await there.make("x", main, initContainers=[side(script)], terminationGracePeriodSeconds=10)
        status = await there.end("x")
        told = [change.found["status"] for change in there.told if change.found["metadata"]["name"] == "x"]
    assert ends(status) == ends(last)
    running = [one for one in told if "running" in str(one.get("initContainerStatuses"))]
    if name != "sidecar-crashing-watch":
        first = next(one for one in running if one["phase"] == "Pending")
        initialized = next(one for one in first["conditions"] if one["type"] == "Initialized")
        assert first["containerStatuses"][0]["state"]["waiting"]["reason"] == "PodInitializing"
        assert initialized["status"] in ("True", "False")
        waits = [one for one in running if "terminated" in one["containerStatuses"][0]["state"]]
        assert {one["phase"] for one in waits} == {"Running"}
    else:
        assert status["initContainerStatuses"][0]["restartCount"] == 1


async def test_a_sidecar_that_ignores_term_is_killed_after_the_grace() -> None:
    """With 137, and the pod has succeeded."""
    async with node() as there:
        deaf = "trap '' TERM; while :; do sleep 0.02; done"
        await there.make("x", "sleep 0.1", initContainers=[side(deaf)], terminationGracePeriodSeconds=1)
        assert ends(await there.end("x")) == ["Succeeded", (0, "Completed"), (137, "Error")]


async def events_of(there: Node, name: str) -> list[dict[str, Any]]:
    """Return a pod's events in the order in which they were recorded first."""
    chosen = f"events?fieldSelector=involvedObject.name%3D{name},involvedObject.kind%3DPod"
    found: list[dict[str, Any]] = (await there.ask("GET", chosen))["items"]
    return sorted(found, key=lambda event: int(event["metadata"]["resourceVersion"]))


VOLUME = {"name": "v"}


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("waits-secret-volume", {"volumes": [{**VOLUME, "secret": {"secretName": "absent"}}]}),
        ("waits-configmap-volume", {"volumes": [{**VOLUME, "configMap": {"name": "absent"}}]}),
        ("waits-pvc", {"volumes": [{**VOLUME, "persistentVolumeClaim": {"claimName": "absent"}}]}),
        ("waits-runtimeclass-handler", {"runtimeClassName": "nohandler"}),
    ],
)
async def test_pods_that_wait_tell_why_in_events_alone(name: str, spec: dict[str, Any]) -> None:
    """Of the same shape and words as recorded; the kubelet counts its own, and the containers are only being made."""
    wanted = recorded.answer(f"{name}-events")["json"]["items"]
    async with node(backoff=0.2) as there:
        kind = "/apis/node.k8s.io/v1/runtimeclasses"
        headers = {"Authorization": "Bearer admin"}
        body = {"metadata": {"name": "nohandler"}, "handler": "absent"}
        await (await there.session.post(f"{there.server.url}{kind}", json=body, headers=headers)).read()
        await there.make("x", **spec)
        if name != "waits-pvc":
            await there.until("x", lambda status: status.get("containerStatuses"))
        found: list[dict[str, Any]] = []
        while len(found) < len(wanted) or (wanted[-1].get("count") and found[-1]["count"] < 2):
            found = await events_of(there, "x")
        found = sorted(found, key=lambda event: event["type"])
        same = ("reason", "type", "reportingComponent", "action")
        assert [[one.get(key) for key in same] for one in found] == [
            [one.get(key) for key in same] for one in wanted
        ]
        assert found[-1]["message"] == wanted[-1]["message"]
        for one, real in zip(found, wanted, strict=True):
            assert {key for key in one if one[key] is None} == {key for key in real if real[key] is None}
        (pod,) = there.server.pods("space")
        states = [one["state"]["waiting"] for one in pod["status"].get("containerStatuses") or ()]
        assert (states or [{"reason": "ContainerCreating"}]) == [{"reason": "ContainerCreating"}]


def resize(there: Node, name: str, cpu: str, memory: str = "64Mi") -> Any:
    """Ask for other amounts."""
    amounts = {"cpu": cpu, "memory": memory}
    main = {"name": "main", "resources": {"requests": amounts, "limits": amounts}}
    return there.ask("PATCH", f"pods/{name}/resize", {"spec": {"containers": [main]}}, STRATEGIC)


def steps(pods: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return wanted, granted and in force, and what the conditions say of a resize, each once in a row."""
    found: list[tuple[Any, ...]] = []
    for pod in pods:
        told = (pod["status"].get("containerStatuses") or [{}])[0]
        if "running" not in told.get("state", {}) or "allocatedResources" not in told:
            continue
        wanted = pod["spec"]["containers"][0]["resources"]["requests"]["cpu"]
        marks = [
            (one["type"], one.get("reason"))
            for one in pod["status"]["conditions"]
            if one["type"].startswith("PodResize")
        ]
        step = wanted, told["allocatedResources"]["cpu"], told["resources"]["requests"]["cpu"], tuple(marks)
        if not found or found[-1] != step:
            found.append(step)
    return found


async def test_a_resize_that_has_to_wait_is_done_when_there_is_room() -> None:
    """Deferred, then granted, then in force, as recorded; without a restart."""
    wanted = steps([event["object"] for event in recorded.events("resize-deferred-watch")])
    async with node(cpu="2") as there:
        small, large = ({"limits": {"cpu": cpu, "memory": "64Mi"}} for cpu in ("200m", "1200m"))
        await there.make("large", "sleep 60", main={"resources": large})
        await there.make("x", "sleep 60", main={"resources": small})
        for name in ("large", "x"):
            await there.until(name, lambda status: status["phase"] == "Running")
        await resize(there, "x", "1500m")
        await there.until("x", lambda status: "Deferred" in str(status["conditions"]))
        await there.ask("DELETE", "pods/large", {"gracePeriodSeconds": 0})
        pod = await there.until(
            "x", lambda status: "1500m" in str(status["containerStatuses"][0]["resources"])
        )
        told = [change.found for change in there.told if change.found["metadata"]["name"] == "x"]
        assert steps(told) == wanted
        (one,) = pod["status"]["containerStatuses"]
        assert (one["restartCount"], pod["metadata"]["generation"]) == (0, 2)
        conditions = str([change.found["status"].get("conditions") for change in there.told])
        assert "cpu, requested: 1500, used: 1200, capacity: 2000" in conditions
