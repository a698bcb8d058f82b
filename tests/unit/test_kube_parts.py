"""Names of pods, what pods take, manifests, refusals, templates without a job: each by its own rules."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datatask import CallerError, Resources, parse_quantity
from datatask.adapters.execute.base.templates import Template
from datatask.adapters.execute.kube import pods
from datatask.adapters.execute.kube.connection import refusal, unanswered
from datatask.adapters.execute.kube.manifests import parse_manifest, stamp, tombstone
from datatask.adapters.execute.kube.pods import nanoseconds
from datatask.adapters.execute.kube.preview import Unknown, requests_of, resources_of, sketch
from datatask.schema.ids import JOB_CHARACTERS, JOB_ENDS

RECORDINGS = Path(__file__).parents[1] / "kube" / "recordings"
LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
IDENTITY = "0123456789abcdef0123456789abcdef.1.77"

jobs = st.builds(
    lambda front, middle, end: front + middle + end,
    st.sampled_from(JOB_ENDS),
    st.text(JOB_CHARACTERS, max_size=126),
    st.sampled_from(JOB_ENDS),
)


# --- names --------------------------------------------------------------------------------------------


@given(
    app=st.sampled_from(["survey", "My_App.v2", "_"]),
    task=st.sampled_from(["t", "A.Very-long_task" * 8]),
    job=jobs,
)
def test_any_job_has_a_pod_name_and_labels_that_kubernetes_takes(app: str, task: str, job: str) -> None:
    """Upper case, dots, 128 characters: a DNS-1123 label of at most 63."""
    name = pods.pod_name(app, task, job, IDENTITY)
    assert len(name) <= 63
    assert DNS_LABEL.fullmatch(name)
    for value in pods.labels(app, task, job, IDENTITY).values():
        assert len(value) <= 63
        assert LABEL.fullmatch(value)
    assert pods.told(app, task, job, IDENTITY)[pods.JOB] == job


def test_a_name_is_readable_and_tells_runs_apart() -> None:
    """The same run has the same name, another one another, also where only case differs."""
    name = pods.pod_name("survey", "resize", "Cat.1", IDENTITY)
    assert name.startswith("survey-resize-cat-1-")
    assert name == pods.pod_name("survey", "resize", "Cat.1", IDENTITY)
    others = {
        pods.pod_name("survey", "resize", "cat.1", IDENTITY),
        pods.pod_name("survey", "resize", "cat-1", IDENTITY),
        pods.pod_name("survey", "resize", "Cat.1", IDENTITY + "0"),
        pods.pod_name("survey-resize", "cat", "1", IDENTITY),
    }
    assert len(others | {name}) == 5


def test_ids_that_are_labels_stay_and_others_become_digests() -> None:
    """So that `kubectl get pods -l job=cat` works for most."""
    assert pods.label_value("Cat.1_x-y") == "Cat.1_x-y"
    assert pods.label_value("x" * 63) == "x" * 63
    assert len(pods.label_value("x" * 64)) == pods.DIGEST_LENGTH


@pytest.mark.parametrize(
    ("text", "good"), [("default", True), ("a-1", True), ("A", False), ("a.b", False), ("-a", False)]
)
def test_a_namespace_is_a_dns_label(text: str, good: bool) -> None:
    """Lower case, digits and hyphens."""
    assert pods.is_dns_label(text) is good


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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("100m", "0.1"),
        ("1E", "1e18"),
        ("1E3", "1000"),
        ("1e3", "1000"),
        ("1Ei", 2**60),
        (".5", "0.5"),
        ("5.", "5"),
        ("+2", "2"),
        ("1e-10", "1e-9"),
        ("-1e-10", "-1e-9"),
        ("9007199254740993Ki", 2**63 - 1),
        ("1e999999", 2**63 - 1),
    ],
)
def test_quantities_are_what_the_api_server_makes_of_them(text: str, value: str | int) -> None:
    """Capped at what 63 bits hold, rounded up to a billionth."""
    assert parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["12Zi", "1e", "Ki", "1 Gi", "", "1mi", "1.2.3", "0x10", "1e3Ki", "１", "."])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    """As the API server refuses it."""
    with pytest.raises(CallerError, match="is not a quantity"):
        parse_quantity(text)


# --- manifests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kind: Pod\nspec: ]", "the manifest is no YAML, line 2"),
        ("kind: Job", "makes a Job, not a Pod"),
        ("[]", "makes a list, not a Pod"),
        ("", "makes 0 documents"),
        ("kind: Pod\n---\nkind: Pod", "makes 2 documents"),
        ("kind: Pod", "has no spec"),
        ("kind: Pod\nspec: {}", "has no spec.containers"),
        ("kind: Pod\nspec: {containers: [{image: x}]}", "one of spec.containers has no name"),
        (
            "kind: Pod\nmetadata: {labels: [1]}\nspec: {containers: [{name: x}]}",
            "metadata.labels is no mapping",
        ),
    ],
)
def test_what_cannot_be_a_pod_is_refused_by_name(text: str, told: str) -> None:
    """Before anything is sent."""
    with pytest.raises(CallerError, match=re.escape(told)):
        parse_manifest(text, "t[j]")


def test_a_stamped_manifest_keeps_the_users_part() -> None:
    """Labels beside ours, finalizers, variables that the user sets himself; never another restart policy."""
    text = """
kind: Pod
metadata: {generateName: x-, labels: {team: a, app: b}, finalizers: [other/one]}
spec: {restartPolicy: Always, containers: [{name: m, env: [{name: MINE, value: '1'}]}]}
"""
    env = {"MINE": "0", "DATATASK_RUN": IDENTITY}
    made = stamp(
        parse_manifest(text, "t"),
        name="n",
        namespace="ns",
        labels={"app": "s"},
        annotations={},
        finalizer=True,
        env=env,
    )
    assert made["metadata"]["labels"] == {"team": "a", "app": "s"}
    assert made["metadata"]["finalizers"] == ["other/one", pods.FINALIZER]
    assert "generateName" not in made["metadata"]
    assert made["spec"]["restartPolicy"] == "Never"
    assert made["spec"]["containers"][0]["env"] == [
        {"name": "DATATASK_RUN", "value": IDENTITY},
        {"name": "MINE", "value": "1"},
    ]


def test_a_tombstone_is_never_scheduled() -> None:
    """It takes a name and nothing else."""
    stone = tombstone("n", "ns", {}, {})
    assert stone["spec"]["schedulingGates"]
    assert resources_of(stone, "t") == Resources(Decimal(0), Decimal(0), 1)


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


# --- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recording", "again", "reason"),
    [
        ("quota-exceeded", "full", "QuotaExceeded"),
        ("quota-must-specify", "never", "QuotaNeedsRequests"),
        ("limitrange-exceeded", "limited", "LimitRange"),
        ("priorityclass-missing", "limited", "PriorityClassMissing"),
        ("serviceaccount-missing", "limited", "ServiceAccountMissing"),
        ("rbac-create-forbidden", "limited", "NotAllowed"),
        ("rbac-forbidden", "limited", "NotAllowed"),
        ("too-many-requests", "busy", "TooManyRequests"),
        ("unauthorized", "limited", "Unauthorized"),
        ("pod-create-duplicate", "exists", "AlreadyExists"),
        ("pod-delete-wrong-uid", "busy", "Conflict"),
        ("pod-create-in-terminating-ns", "limited", "NamespaceTerminating"),
        ("pod-create-bad-quantity", "never", "BadRequest"),
        ("pod-create-invalid-name", "never", "Invalid"),
        ("pod-get-missing", "limited", "NotFound"),
        ("list-future-rv", "busy", "Timeout"),
    ],
)
def test_recorded_refusals_say_whether_to_ask_again(recording: str, again: str, reason: str) -> None:
    """With the server's own words."""
    response = json.loads((RECORDINGS / f"{recording}.json").read_text())["response"]
    body = json.dumps(response["json"]) if "json" in response else response["text"]
    found = refusal(response["status"], body.encode(), response["headers"])
    assert (found.again, found.reason) == (again, reason)
    assert found.words == (response["json"]["message"] if "json" in response else response["text"].strip())
    assert found.after_seconds == (1.0 if "Retry-After" in response["headers"] else None)


@pytest.mark.parametrize(
    ("code", "words", "again"),
    [
        (403, 'admission webhook "policy.example" denied the request: no', "limited"),
        (400, 'admission webhook "policy.example" denied the request: no', "limited"),
        (500, 'failed calling webhook "policy.example": context deadline exceeded', "busy"),
        (503, "apiserver is shutting down", "busy"),
        (409, "Operation cannot be fulfilled on resourcequotas", "busy"),
        (413, "too large", "never"),
    ],
)
def test_other_refusals(code: int, words: str, again: str) -> None:
    """Webhooks deny until somebody changes something; servers come back."""
    body = json.dumps({"kind": "Status", "message": words}).encode()
    found = refusal(code, body, {"Retry-After": "nonsense"})
    assert (found.again, found.words, found.after_seconds) == (again, words, None)


def test_no_answer_is_no_answer() -> None:
    """It may have been done."""
    assert unanswered(TimeoutError()).again == "busy"
    assert unanswered(TimeoutError()).words == "TimeoutError"


@pytest.mark.parametrize(
    ("time", "value"),
    [
        ("1970-01-01T00:00:00Z", None),
        (None, None),
        ("soon", None),
        ("2026-11-23T02:02:40Z", 1_795_399_360_000_000_000),
        ("2026-11-23T03:02:40.5+01:00", 1_795_399_360_500_000_000),
    ],
)
def test_times(time: str | None, value: int | None) -> None:
    """The epoch means never."""
    assert nanoseconds(time) == value
