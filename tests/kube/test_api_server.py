"""The API server for tests, as kubernetes_asyncio sees it: what a real server was seen to do, one behaviour a test."""

from __future__ import annotations

import asyncio

import pytest
from kubernetes_asyncio.client.exceptions import ApiException

from tests.kube.api import Fault
from tests.kube.api.deleting import PODS
from tests.kube.api_kit import NS, connected, manifest, refused, watched


async def test_a_pod_is_made_with_what_it_does_not_say() -> None:
    """uid, version, time, Pending, defaults; a name made up where that is wanted; nothing by a dry run."""
    async with connected() as to:
        pod = await to.make("a")
        assert pod.metadata.uid
        assert pod.metadata.resource_version.isdigit()
        assert pod.metadata.creation_timestamp
        assert (pod.status.phase, pod.spec.dns_policy) == ("Pending", "ClusterFirst")
        made = await to.v1.create_namespaced_pod(
            NS, manifest("", metadata={"name": None, "generateName": "gen-"})
        )
        assert made.metadata.name.startswith("gen-")
        assert len(made.metadata.name) == len("gen-") + 5
        await to.v1.create_namespaced_pod(NS, manifest("dry"), dry_run="All")
        await refused(to.v1.read_namespaced_pod("dry", NS), 404, "NotFound")


async def test_what_cannot_be_made() -> None:
    """Twice the same name, a bad name, no namespace, one that goes."""
    async with connected() as to:
        await to.make("a")
        await refused(to.make("a"), 409, "AlreadyExists")
        told = await refused(to.make("Bad_Name"), 422, "Invalid")
        assert told["details"]["causes"][0]["field"] == "metadata.name"
        await refused(to.make("x", namespace="nowhere"), 404, "NotFound")
        await to.v1.create_namespace({"metadata": {"name": "going"}})
        held = {"metadata": {"name": "hold", "finalizers": ["example.org/hold"]}}
        await to.v1.create_namespaced_config_map("going", held)
        await to.v1.delete_namespace("going")
        told = await refused(to.make("x", namespace="going"), 403, "Forbidden")
        assert told["details"]["causes"][0]["reason"] == "NamespaceTerminating"
        await to.v1.patch_namespaced_config_map("hold", "going", {"metadata": {"finalizers": None}})
        await refused(to.v1.read_namespace("going"), 404)


async def test_patches() -> None:
    """Strategic by keys of lists, JSON with a test, a replace by who was slower."""
    async with connected() as to:
        old = await to.make("a", {"tier": "1"})
        pod = await to.v1.patch_namespaced_pod("a", NS, {"metadata": {"labels": {"new": "1", "tier": None}}})
        assert pod.metadata.labels == {"new": "1"}
        pod = await to.v1.patch_namespaced_pod(
            "a", NS, {"spec": {"containers": [{"name": "main", "image": "b:2"}]}}
        )
        (container,) = pod.spec.containers
        assert (container.image, container.command) == ("b:2", ["true"])
        steps = [
            {"op": "test", "path": "/metadata/labels/new", "value": "1"},
            {"op": "replace", "path": "/metadata/labels/new", "value": "2"},
            {"op": "copy", "from": "/metadata/labels/new", "path": "/metadata/labels/more"},
            {"op": "move", "from": "/metadata/labels/new", "path": "/metadata/labels/example.org~1new"},
            {"op": "add", "path": "/metadata/finalizers", "value": []},
            {"op": "add", "path": "/metadata/finalizers/-", "value": "example.org/x"},
            {"op": "remove", "path": "/metadata/finalizers/0"},
        ]
        pod = await to.v1.patch_namespaced_pod("a", NS, steps)
        assert pod.metadata.labels == {"more": "2", "example.org/new": "2"}
        await refused(
            to.v1.patch_namespaced_pod("a", NS, [{"op": "test", "path": "/metadata/name", "value": "z"}]), 422
        )
        await refused(
            to.v1.patch_namespaced_pod("a", NS, [{"op": "remove", "path": "/metadata/none/0"}]), 422
        )
        stale = to.api.sanitize_for_serialization(old)
        await refused(to.v1.replace_namespaced_pod("a", NS, stale), 409, "Conflict")
        fresh = to.api.sanitize_for_serialization(pod)
        fresh["metadata"]["annotations"] = {"z": "1"}
        assert (await to.v1.replace_namespaced_pod("a", NS, fresh)).metadata.annotations == {"z": "1"}
        await refused(to.v1.patch_namespaced_pod("a", NS, {"metadata": {"uid": "other"}}), 409, "Conflict")


async def test_deletion() -> None:
    """At once without a node; with grace on one, which may only get shorter; only whom it is meant for; held by finalizers."""
    async with connected() as to:
        await to.make("free")
        await to.v1.delete_namespaced_pod("free", NS)
        await refused(to.v1.read_namespaced_pod("free", NS), 404)
        await to.make("bound", nodeName="somewhere")
        await refused(
            to.v1.delete_namespaced_pod("bound", NS, body={"preconditions": {"uid": "other"}}),
            409,
            "Conflict",
        )
        for asked, kept in ((120, 120), (60, 60), (90, 60)):
            await to.v1.delete_namespaced_pod("bound", NS, grace_period_seconds=asked)
            metadata = (await to.v1.read_namespaced_pod("bound", NS)).metadata
            assert (metadata.deletion_grace_period_seconds, bool(metadata.deletion_timestamp)) == (kept, True)
        await to.v1.delete_namespaced_pod("bound", NS, grace_period_seconds=0)
        assert await to.names() == []
        await to.make("held", metadata={"finalizers": ["example.org/hold"]})
        await to.v1.delete_namespaced_pod("held", NS, grace_period_seconds=0)
        assert (await to.v1.read_namespaced_pod("held", NS)).metadata.deletion_timestamp
        more = {"metadata": {"finalizers": ["example.org/more"]}}
        told = await refused(to.v1.patch_namespaced_pod("held", NS, more), 422)
        assert "no new finalizers can be added" in told["message"]
        await to.v1.patch_namespaced_pod("held", NS, {"metadata": {"finalizers": None}})
        assert await to.names() == []
        await to.make("x", {"app": "x"})
        await to.make("y", {"app": "y"})
        await to.v1.delete_collection_namespaced_pod(NS, label_selector="app=x")
        assert await to.names() == ["y"]


# --- lists and watches ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        ("app=x", "a"),
        ("app==x,tier", "a"),
        ("app!=x", "bc"),
        ("app in (x, y),tier!=2", "a"),
        ("app notin (x)", "bc"),
        ("!app", "c"),
        ("tier=", ""),
        ("", "abc"),
    ],
)
async def test_label_selectors(selector: str, chosen: str) -> None:
    """By equality, by sets, by presence."""
    async with connected() as to:
        await to.make("a", {"app": "x", "tier": "1"})
        await to.make("b", {"app": "y", "tier": "2"})
        await to.make("c")
        assert await to.names(label_selector=selector) == list(chosen)
        assert await to.names(field_selector="metadata.name!=a,status.phase=Pending") == ["b", "c"]


async def test_pages_are_of_one_moment() -> None:
    """What is made, changed or deleted between the pages is not seen; a token from before a compaction is too old."""
    async with connected() as to:
        for at in range(5):
            await to.make(f"p{at}")
        page = await to.v1.list_namespaced_pod(NS, limit=2)
        assert (page.metadata.remaining_item_count, len(page.items)) == (3, 2)
        await to.v1.delete_namespaced_pod("p3", NS)
        await to.make("p22")
        rest = await to.v1.list_namespaced_pod(NS, limit=10, _continue=page.metadata._continue)
        assert [one.metadata.name for one in rest.items] == ["p2", "p3", "p4"]
        assert rest.metadata.resource_version == page.metadata.resource_version
        to.server.storage.compact(PODS)
        told = await refused(
            to.v1.list_namespaced_pod(NS, limit=2, _continue=page.metadata._continue), 410, "Expired"
        )
        rest = await to.v1.list_namespaced_pod(NS, _continue=told["metadata"]["continue"])
        assert [one.metadata.name for one in rest.items] == ["p2", "p22", "p4"]
        exact = {"resource_version": page.metadata.resource_version, "resource_version_match": "Exact"}
        await refused(to.v1.list_namespaced_pod(NS, **exact), 410, "Expired")
        await refused(to.v1.list_namespaced_pod(NS, _continue="garbage"), 400, "BadRequest")


async def test_a_watch_goes_on_where_a_list_was() -> None:
    """Only later events, in order; resumed at any of their versions, it misses and repeats nothing."""
    async with connected() as to:
        await to.make("before")
        version = (await to.v1.list_namespaced_pod(NS)).metadata.resource_version
        reading = asyncio.create_task(watched(to, 4, resource_version=version))
        await asyncio.sleep(0.05)
        await to.make("a")
        await to.v1.patch_namespaced_pod("a", NS, {"metadata": {"labels": {"q": "1"}}})
        await to.v1.delete_namespaced_pod("a", NS, grace_period_seconds=0)
        seen = await reading
        assert [kind for kind, _, _ in seen] == ["ADDED", "MODIFIED", "MODIFIED", "DELETED"]
        assert {name for _, name, _ in seen} == {"a"}
        for at, (_, _, pod) in enumerate(seen[:-1]):
            rest = await watched(to, 3 - at, resource_version=pod.metadata.resource_version)
            assert [kind for kind, _, _ in rest] == [kind for kind, _, _ in seen[at + 1 :]]


async def test_a_watch_by_labels_tells_who_comes_and_goes() -> None:
    """What stops matching is told as deleted, what begins to match as added."""
    async with connected() as to:
        version = (await to.v1.list_namespaced_pod(NS)).metadata.resource_version
        await to.make("other", {"app": "y"})
        await to.make("a", {"app": "x"})
        for app in ("y", "x"):
            await to.v1.patch_namespaced_pod("a", NS, {"metadata": {"labels": {"app": app}}})
        seen = await watched(to, 3, resource_version=version, label_selector="app=x")
        assert [(kind, name) for kind, name, _ in seen] == [("ADDED", "a"), ("DELETED", "a"), ("ADDED", "a")]


async def test_a_watch_ends_at_its_time_and_gives_signs_of_life() -> None:
    """Without versions it begins with what there is; bookmarks tell how far it is; too old is an event, or a status."""
    async with connected() as to:
        began = asyncio.get_running_loop().time()
        await to.make("a")
        to.server.reader.bookmark_seconds = 0.2
        how = {
            "allow_watch_bookmarks": True,
            "send_initial_events": True,
            "resource_version_match": "NotOlderThan",
        }
        seen = await watched(to, 99, **how)
        assert 0.9 < asyncio.get_running_loop().time() - began < 3
        assert [kind for kind, _, _ in seen[:3]] == ["ADDED", "BOOKMARK", "BOOKMARK"]
        assert len(seen) >= 4
        for as_status in (False, True):
            to.server.reader.expired_as_status = as_status
            with pytest.raises(ApiException) as caught:
                await watched(to, 1, resource_version="1")
            assert caught.value.status == 410
        await refused(to.v1.list_namespaced_pod(NS, resource_version="99999"), 504, "Timeout")


async def test_watches_that_are_cut() -> None:
    """Cleanly after so many events, or within one."""
    async with connected() as to:
        for name in "abc":
            await to.make(name)
        to.server.faults.append(Fault("watch", events=2))
        first = (await to.v1.list_namespaced_pod(NS)).metadata.resource_version
        assert first
        async with to.api.rest_client.pool_manager.get(
            f"{to.server.url}/api/v1/namespaces/{NS}/pods?watch=true",
            headers={"Authorization": "Bearer admin"},
        ) as response:
            assert len((await response.text()).splitlines()) == 2
        to.server.faults.append(Fault("watch", events=1, torn=True))
        with pytest.raises(Exception, match=r"payload|closed|disconnected|reset"):
            async with to.api.rest_client.pool_manager.get(
                f"{to.server.url}/api/v1/namespaces/{NS}/pods?watch=true",
                headers={"Authorization": "Bearer admin"},
            ) as response:
                await response.read()


# --- who may, and how much --------------------------------------------------------------------------------
