"""Names of pods, their labels and times."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datatask.adapters.execute.kube import pods
from datatask.adapters.execute.kube.pods import Metadata, Pod, as_pod, nanoseconds
from datatask.schema.values import JOB_CHARACTERS, JOB_ENDS

LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
IDENTITY = "0123456789abcdef0123456789abcdef.1.77"

jobs = st.builds(
    lambda front, middle, end: front + middle + end,
    st.sampled_from(JOB_ENDS),
    st.text(JOB_CHARACTERS, max_size=126),
    st.sampled_from(JOB_ENDS),
)


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


def test_pods_of_any_make(tmp_path: Path) -> None:
    """Ours, a mapping, kubernetes_asyncio's."""
    from kubernetes_asyncio.client import V1ObjectMeta, V1Pod

    pod = Pod(metadata=Metadata(name="n", namespace="s", uid="u", labels={"a": "b"}))
    assert as_pod(pod) is pod
    assert as_pod({"metadata": {"name": "n", "namespace": "s", "uid": "u", "labels": {"a": "b"}}}) == pod
    assert as_pod(V1Pod(metadata=V1ObjectMeta(name="n", namespace="s", uid="u", labels={"a": "b"}))) == pod
