"""What pods take, as the scheduler counts."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from datatask import CallerError, Resources, parse_quantity
from datatask.adapters.execute.kube.amounts import most, resources_of, taken
from datatask.adapters.execute.kube.pods import Pod, as_pod
from tests.kube import recorded


def container(name: str, cpu: object, memory: object, **more: Any) -> dict[str, Any]:
    """Return a container that requests so much."""
    return {"name": name, "resources": {"requests": {"cpu": cpu, "memory": memory}}, **more}


def pod(*containers: dict[str, Any], init: list[dict[str, Any]] | None = None, **spec: Any) -> dict[str, Any]:
    """Return a manifest."""
    return {"kind": "Pod", "spec": {"containers": list(containers), "initContainers": init or [], **spec}}


def test_containers_add_up_and_init_containers_count_by_the_largest() -> None:
    """As the scheduler counts, per resource."""
    manifest = pod(container("a", "100m", "1Gi"), container("b", 1, "64Mi"), init=[container("i", 2, "1Mi")])
    assert resources_of(manifest, "t") == Resources(Decimal(2), parse_quantity("1088Mi"), 1)


def test_sidecars_run_beside_the_containers_and_beside_later_init_containers() -> None:
    """Those before them do not count them."""
    side = container("s", "500m", "100Mi", restartPolicy="Always")
    first, last = container("i", "1800m", "10Mi"), container("j", "1600m", "10Mi")
    manifest = pod(container("a", 1, "1Gi"), init=[first, side, last])
    found = resources_of(manifest, "t")
    assert found.cpu == Decimal("2.1")
    assert found.mem == parse_quantity("1124Mi")


def test_limits_stand_for_requests_and_overhead_and_gpus_count() -> None:
    """As the API server defaults them."""
    one = {"name": "a", "resources": {"limits": {"cpu": "2", "memory": "1Gi", "nvidia.com/gpu": 1}}}
    found = resources_of(pod(one, overhead={"cpu": "250m"}), "t")
    assert (found.cpu, found.custom) == (Decimal("2.25"), {"nvidia.com/gpu": Decimal(1)})


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        ({}, "container a has no resources.requests.cpu"),
        ({"requests": {"cpu": 1}}, "container a has no resources.requests.memory"),
        ({"requests": {"cpu": "12Zi", "memory": 1}}, "cpu of container a: '12Zi' is not a quantity"),
        ({"requests": {"cpu": "-1", "memory": 1}}, "less than nothing"),
        ([], "container a has no resources.requests.cpu"),
    ],
)
def test_missing_and_wrong_requests_are_named(resources: Any, told: str) -> None:
    """By container and resource."""
    with pytest.raises(CallerError, match=re.escape(told)):
        resources_of(pod({"name": "a", "resources": resources}), "t")


@pytest.mark.parametrize(
    ("level", "own", "cpu", "memory"),
    [
        ({"requests": {"cpu": "100m", "memory": "64Mi"}}, {}, "350m", "184Mi"),  # overhead comes on top
        ({"limits": {"cpu": "100m", "memory": "64Mi"}}, {}, "350m", "184Mi"),
        ({"limits": {"cpu": "1", "memory": "64Mi"}}, {"requests": {"cpu": "200m"}}, "450m", "184Mi"),
        ({"requests": {"cpu": "1"}}, {"requests": {"cpu": "200m", "memory": "8Mi"}}, "1250m", "128Mi"),
    ],
)
def test_requests_of_the_pod_stand_for_those_of_its_containers(
    level: dict[str, Any], own: dict[str, Any], cpu: str, memory: str
) -> None:
    """Its limits only where no container asks; the RuntimeClass's overhead is added to either."""
    overhead = {"cpu": "250m", "memory": "120Mi"}
    manifest = pod({"name": "a", "resources": own}, resources=level, overhead=overhead)
    assert resources_of(manifest, "t") == Resources.parse(cpu, memory, 1)


def test_what_the_pod_does_not_say_a_container_has_to() -> None:
    """A pod with only cpu needs memory of each container."""
    with pytest.raises(CallerError, match=re.escape("container a has no resources.requests.memory")):
        resources_of(pod({"name": "a"}, resources={"limits": {"cpu": "500m"}}), "t")
    with pytest.raises(CallerError, match=re.escape("spec.resources is no mapping")):
        resources_of(pod(container("a", 1, 1), resources=[1]), "t")


def test_huge_pages_and_gpus_of_a_pod() -> None:
    """Only the former can be asked for the pod as a whole."""
    level = {"requests": {"cpu": 1, "memory": 1}, "limits": {"hugepages-2Mi": "4Mi", "nvidia.com/gpu": 1}}
    assert resources_of(pod({"name": "a"}, resources=level), "t").custom == {
        "hugepages-2Mi": parse_quantity("4Mi")
    }


# --- pods as they are ---------------------------------------------------------------------------------


def lives(name: str) -> list[str]:
    """Return what the pod of a recorded watch takes, event by event, each once in a row."""
    found = [str(taken(as_pod(event["object"]))) for event in recorded.events(name)]
    return [one for at, one in enumerate(found) if at == 0 or found[at - 1] != one]


def test_a_resize_counts_as_the_scheduler_counts_it() -> None:
    """More from the moment that it is asked for, less from the moment that it is done; also while it waits for room."""
    assert lives("resize-watch") == [
        "cpu 0.2, mem 64Mi",
        "cpu 0.3, mem 64Mi",
        "cpu 0.3, mem 96Mi",
        "cpu 0.1, mem 64Mi",
    ]
    assert lives("resize-deferred-watch") == ["cpu 0.2", "cpu 1.5"]


def test_a_resize_that_the_node_can_never_grant_does_not_count() -> None:
    """Only what it has."""
    told = [event["object"] for event in recorded.events("resize-deferred-watch")]
    waits = next(one for one in told if "Deferred" in str(one["status"]))
    for condition in waits["status"]["conditions"]:
        if condition["type"] == "PodResizePending":
            condition["reason"] = "Infeasible"
    assert str(taken(as_pod(waits))) == "cpu 0.2"


@pytest.mark.parametrize(
    ("name", "takes"),
    [
        ("podlevel-create", "cpu 0.1, mem 64Mi"),
        ("podlevel-get", "cpu 0.1, mem 64Mi"),
        ("runtimeclass-pod-create", "cpu 0.35, mem 184Mi"),
    ],
)
def test_what_real_pods_take(name: str, takes: str) -> None:
    """As the server completed them; those alike share one answer."""
    found = msgspec.convert(recorded.answer(name)["json"], Pod)
    assert str(taken(found)) == takes
    assert taken(found) is taken(msgspec.convert(recorded.answer(name)["json"], Pod))


def test_a_pod_level_resize_in_place() -> None:
    """Of the pod as a whole: wanted, granted, in force."""
    made = recorded.answer("podlevel-get")["json"]
    made["spec"]["resources"]["requests"]["cpu"] = "50m"
    made["status"]["allocatedResources"]["memory"] = "1Gi"
    assert str(taken(as_pod(made))) == "cpu 0.1, mem 1Gi"


def test_the_most_of_each() -> None:
    """Of what is said and what is."""
    one, other = Resources.parse(1, 5, 1, gpu=2), Resources.parse(2, 4, 1, fpga=1)
    assert most(one, other) == Resources.parse(2, 5, 1, gpu=2, fpga=1)
