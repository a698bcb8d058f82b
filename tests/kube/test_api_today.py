"""The API server for tests is one of today: what it takes, counts, warns of and lists, as recorded on v1.36.2."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.kube.api.deleting import PODS
from tests.kube.recorded import exchange
from tests.kube.test_api_words import SPEC, Cluster, arrange, plain, serving


async def answered(cluster: Cluster, name: str) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Send a recorded request; return status, body, headers, and the recorded answer."""
    asked, wanted = exchange(name)
    headers = {
        key: value for key, value in asked.get("headers", {}).items() if key in ("Accept", "Content-Type")
    }
    return *await cluster.ask(asked["method"], asked["path"], asked.get("body"), **headers), wanted


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("podlevel-create", ("resources", "containers")),
        ("podlevel-partial-quota", ("resources", "containers")),
        ("limitrange-min-none-given", ("containers",)),
        ("podsecurity-restricted-accepted", ("containers", "securityContext")),
        ("podsecurity-warn-only", ("containers",)),
    ],
)
async def test_pods_that_are_taken(name: str, parts: tuple[str, ...]) -> None:
    """With the same amounts and warnings; a pod with amounts of its own is not asked for those of its containers."""
    async with serving() as cluster:
        if name == "podlevel-create":
            cluster.server.namespace("rec-pl")
        else:
            await arrange(cluster, name)
        code, told, headers, wanted = await answered(cluster, name)
        assert code == wanted["status"] == 201, told
        recorded = wanted["json"]
        for part in parts:
            assert told["spec"].get(part) == recorded["spec"].get(part)
        assert told["status"]["qosClass"] == recorded["status"]["qosClass"]
        assert told["metadata"].get("annotations") == recorded["metadata"].get("annotations")
        assert headers.get("Warning") == wanted["headers"].get("Warning")


async def test_what_quotas_count() -> None:
    """Amounts of pods as a whole, overhead of a RuntimeClass, and pods that are over as objects only."""
    async with serving() as cluster:
        await arrange(cluster, "podlevel-quota")
        code, told, _, wanted = await answered(cluster, "podlevel-quota")
        assert (code, told["status"]) == (200, wanted["json"]["status"])
        overhead = {"podFixed": {"cpu": "250m", "memory": "120Mi"}}
        body = {"metadata": {"name": "boxed"}, "handler": "runc", "overhead": overhead}
        assert (await cluster.ask("POST", "/apis/node.k8s.io/v1/runtimeclasses", body))[0] == 201
        code, told, _, wanted = await answered(cluster, "runtimeclass-pod-create")
        assert (code, told["spec"]["overhead"]) == (201, wanted["json"]["spec"]["overhead"])
        before = (await answered(cluster, "podlevel-quota"))[1]["status"]["used"]
        assert (before["requests.cpu"], before["limits.cpu"]) == ("450m", "850m")
        both = {"runtimeClassName": "boxed", "resources": {"limits": {"cpu": "250m", "memory": "64Mi"}}}
        await cluster.make("pods", "both", "rec-pl", spec={**SPEC, **both})
        used = (await answered(cluster, "podlevel-quota"))[1]["status"]["used"]
        assert (used["requests.cpu"], used["limits.cpu"], used["requests.memory"]) == (
            "950m",
            "1350m",
            "432Mi",
        )
        await arrange(cluster, "refused-count-pods-after-end")
        path = "/api/v1/namespaces/rec-count/resourcequotas/q"
        assert (await cluster.ask("GET", path))[1]["status"] == exchange("quota-count-after-end")[1]["json"][
            "status"
        ]


async def test_sidecars_count_as_long_as_they_stay() -> None:
    """Beside the main containers, and beside the init containers after them."""
    async with serving() as cluster:
        await cluster.make("resourcequotas", "q", spec={"hard": {"requests.cpu": "10"}})
        cluster.server.storage.remove(PODS, cluster.server.pods()[0])

        def asks(name: str, cpu: str, **more: str) -> dict[str, Any]:
            return {"name": name, "image": "x", "resources": {"requests": {"cpu": cpu}}, **more}

        inits = [asks("a", "1800m"), asks("b", "500m", restartPolicy="Always"), asks("c", "1600m")]
        await cluster.make("pods", "side", spec={"initContainers": inits, "containers": [asks("main", "1")]})
        told = (await cluster.ask("GET", "/api/v1/namespaces/rec/resourcequotas/q"))[1]
        assert told["status"]["used"] == {"requests.cpu": "2100m"}


@pytest.mark.parametrize("name", ["resize-patch", "resize-other-field"])
async def test_a_resize_changes_amounts_and_nothing_else(name: str) -> None:
    """The generation counts it; other fields are dropped without a word."""
    async with serving() as cluster:
        await arrange(cluster, name)
        before = (await cluster.ask("GET", "/api/v1/namespaces/rec/pods/resized"))[1]
        code, told, _, wanted = await answered(cluster, name)
        resources, image = (told["spec"]["containers"][0][key] for key in ("resources", "image"))
        assert (code, resources) == (200, wanted["json"]["spec"]["containers"][0]["resources"])
        assert image == before["spec"]["containers"][0]["image"]
        changed = resources != before["spec"]["containers"][0]["resources"]
        assert told["metadata"]["generation"] == 1 + changed
        code, told, _ = await cluster.ask(
            "PATCH",
            "/api/v1/namespaces/rec/pods/resized",
            exchange("resize-patch")[0]["body"],
            **{"Content-Type": "application/strategic-merge-patch+json"},
        )
        assert code == (422 if not changed else 200)


async def test_a_finished_pod_that_is_evicted_is_gone_at_once() -> None:
    """Whatever the budget says; and a pod that is not there is not."""
    async with serving() as cluster:
        await cluster.make("pods", "done", spec=SPEC)
        pod = cluster.server.storage.get(PODS, "rec", "done")
        cluster.server.storage.update(PODS, {**pod, "status": {"phase": "Succeeded"}})
        code, told, _, wanted = await answered(cluster, "eviction-of-finished")
        assert (code, told) == (wanted["status"], wanted["json"])
        assert (await answered(cluster, "eviction-of-finished"))[0] == 404


@pytest.mark.parametrize(
    ("name", "count", "more"), [("list-limit-rv0", 4, False), ("list-limit-notolderthan", 2, True)]
)
async def test_a_limit_from_the_cache(name: str, count: int, more: bool) -> None:
    """Version 0 has no pages."""
    async with serving() as cluster:
        cluster.server.namespace("rec-watch")
        for pod in "abcd":
            await cluster.make("pods", pod, "rec-watch", spec=SPEC)
        code, told, _, wanted = await answered(cluster, name)
        assert (code, len(told["items"]), len(wanted["json"]["items"])) == (200, count, count)
        assert bool(told["metadata"].get("continue")) is more


@pytest.mark.parametrize("name", ["empty", "future-rv", "no-bookmarks", "limit"])
async def test_lists_as_watches(name: str) -> None:
    """All that there is, in spite of a limit, then the mark where bookmarks are allowed; a version to come is an error event."""
    async with serving() as cluster:
        cluster.server.namespace("rec-watch")
        for pod in "abcd":
            await cluster.make("pods", pod, "rec-watch", spec=SPEC)
        _, told, _, wanted = await answered(cluster, f"watch-initial-events-{name}")
        lines = [told] if isinstance(told, dict) else [json.loads(line) for line in told.splitlines()]
        assert [told_of(one) for one in lines] == [told_of(one) for one in wanted["events"]]


def told_of(event: dict[str, Any]) -> tuple[Any, ...]:
    """Return what matters of a watch's event."""
    found = event["object"]
    annotations = found.get("metadata", {}).get("annotations") if event["type"] == "BOOKMARK" else None
    spec = found.get("spec") if event["type"] == "BOOKMARK" else None
    return event["type"], annotations, spec, found.get("code"), found.get("reason")


async def test_lists_as_watches_have_rules() -> None:
    """They say that nothing older will do; without their beginning they are from now on."""
    async with serving() as cluster:
        path = "/api/v1/namespaces/rec/pods?watch=true&timeoutSeconds=0&sendInitialEvents="
        code, told, _ = await cluster.ask("GET", f"{path}true")
        assert (code, told["reason"]) == (422, "Invalid")
        code, told, _ = await cluster.ask("GET", f"{path}false&resourceVersionMatch=NotOlderThan")
        assert (code, plain(told)) == (200, "")


async def test_long_names_that_are_made() -> None:
    """Cut so that the random end has room."""
    async with serving() as cluster:
        body = {"metadata": {"generateName": "n" * 70}, "spec": SPEC}
        _, told, _ = await cluster.ask("POST", "/api/v1/namespaces/rec/pods", body)
        assert told["metadata"]["name"][:58] == "n" * 58
        assert len(told["metadata"]["name"]) == 63
