"""Manifests: what cannot be a pod, and what is added to what the user wrote."""

from __future__ import annotations

import re

import pytest

from datatask import CallerError
from datatask.adapters.execute.kube import pods
from datatask.adapters.execute.kube.manifests import parse_manifest, stamp

IDENTITY = "0123456789abcdef0123456789abcdef.1.77"


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
        (
            "kind: Pod\nspec:\n  nodeSelector:\n    on: a\n    8080: b\n  containers: [{name: x, 1.5: y, ~: z}]",
            "are no text: `on` in line 4 (bool), `8080` in line 5 (int), `1.5` in line 6 (float), `~` in line 6 (null); put",
        ),
    ],
)
def test_what_cannot_be_a_pod_is_refused_by_name(text: str, told: str) -> None:
    """Before anything is sent."""
    with pytest.raises(CallerError, match=re.escape(told)):
        parse_manifest(text, "t[j]")


def test_keys_that_come_by_reference_are_text() -> None:
    """Merged mappings and keys in quotes."""
    text = """
kind: Pod
metadata: {labels: &all {"on": a, '8080': b}, annotations: {<<: *all, c: d}}
spec: {containers: [{name: m}]}
"""
    made = parse_manifest(text, "t")
    assert made["metadata"]["annotations"] == {"on": "a", "8080": "b", "c": "d"}


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


# --- templates without a job --------------------------------------------------------------------------
