"""What pods take, before there is a job."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest

from datatask import CallerError, Resources, parse_quantity
from datatask.adapters.execute.base.templates import Template
from datatask.adapters.execute.kube.preview import Unknown, requests_of, resources_of, sketch

# --- what a pod takes ---------------------------------------------------------------------------------


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


# --- templates without a job --------------------------------------------------------------------------

MANIFEST = """
kind: Pod
spec:
  containers:
    - name: main
      image: "{{ image }}"
      args: ["{{ job }}", {{ inp.title | json }}, {{ inp | yaml }}]
      resources: {requests: {cpu: CPU, memory: 1Gi}}
"""


def asked(cpu: str) -> Resources:
    """Return what the template's pods take."""
    scope = {"image": "x", "inp": Unknown()}
    return requests_of(sketch(Template(MANIFEST.replace("CPU", cpu), where="t"), scope, "t"), "t")


def test_what_pods_take_is_known_before_there_is_a_job() -> None:
    """Where the requests are the same for all."""
    assert asked("100m").cpu == Decimal("0.1")


@pytest.mark.parametrize("cpu", ["'{{ inp.cores }}'", "{{ inp.cores * 2 }}"])
def test_requests_that_depend_on_the_job_are_told(cpu: str) -> None:
    """With the remedy."""
    with pytest.raises(CallerError, match="depends on the job; pass job_resources="):
        asked(cpu)


def test_a_name_that_is_not_there_is_told_at_once() -> None:
    """Not only when the first job comes."""
    with pytest.raises(CallerError, match="'nothing' is undefined"):
        asked("{{ nothing }}")
