"""What a real API server does, asked of the fake through kubernetes_asyncio: each test is a promise that clients build on."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kubernetes_asyncio import client, watch
from kubernetes_asyncio.client.exceptions import ApiException
from kubernetes_asyncio.stream import WsApiClient

from tests.kube.fake import FakeCluster

NAMESPACE = "checks"


class Asking:
    """A cluster and a client of it."""

    def __init__(self, cluster: FakeCluster, api: client.ApiClient) -> None:
        self.cluster, self.api = cluster, api
        self.v1 = client.CoreV1Api(api)

    async def create(self, name: str, labels: dict[str, str] | None = None, **spec: Any) -> Any:
        """Create a pod."""
        return await self.v1.create_namespaced_pod(NAMESPACE, pod(name, labels, **spec))

    async def names(self, **query: Any) -> list[str]:
        """Return the names of the pods that a list gives."""
        return [one.metadata.name for one in (await self.v1.list_namespaced_pod(NAMESPACE, **query)).items]

    async def watched(self, *, until: str = "", **query: Any) -> list[tuple[str, str]]:
        """Return what a watch tells, up to its end or an event of this kind."""
        told = []
        async with watch.Watch() as watching:
            async for event in watching.stream(self.v1.list_namespaced_pod, NAMESPACE, **query):
                told.append((event["type"], (event["raw_object"]["metadata"]).get("name")))
                if event["type"] == until:
                    break
        return told


def configuration(cluster: FakeCluster, token: str = "admin") -> client.Configuration:
    """Return how to reach the cluster."""
    result = client.Configuration()
    result.host = cluster.url
    result.api_key = {"BearerToken": token}
    result.api_key_prefix = {"BearerToken": "Bearer"}
    return result


@contextlib.asynccontextmanager
async def asking(kubelet: Any = None, **options: Any) -> AsyncIterator[Asking]:
    """Serve while the block lasts."""
    async with (
        FakeCluster(kubelet, namespaces=(NAMESPACE,), **options) as cluster,
        client.ApiClient(configuration(cluster)) as api,
    ):
        yield Asking(cluster, api)


def pod(name: str, labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """Return a manifest."""
    container: dict[str, Any] = {"name": "main", "image": "busybox:1"}
    if "command" in spec:
        container["command"] = spec.pop("command")
    if limits := spec.pop("limits", None):
        container["resources"] = {"limits": limits, "requests": limits}
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"restartPolicy": "Never", "containers": [container], **spec},
    }


@contextlib.contextmanager
def refused(status: int, reason: str = "") -> Any:
    """Expect a refusal; the block gets its body."""
    told: dict[str, Any] = {}
    with pytest.raises(ApiException) as caught:
        yield told
    assert caught.value.status == status, caught.value.body
    if reason:
        told |= json.loads(caught.value.body)
        assert told["reason"] == reason


async def test_a_new_pod_has_identity_version_defaults_and_a_phase() -> None:
    """As the create answers it, and as a get does."""
    async with asking() as asks:
        made = await asks.create("a", {"app": "x"})
        assert made.metadata.uid
        assert made.metadata.resource_version.isdigit()
        assert made.metadata.creation_timestamp
        assert (made.status.phase, made.spec.dns_policy) == ("Pending", "ClusterFirst")
        assert (await asks.v1.read_namespaced_pod("a", NAMESPACE)).metadata.labels == {"app": "x"}


async def test_creates_that_are_refused() -> None:
    """A taken name, one that is none, a namespace that is not there; a dry run leaves nothing."""
    async with asking() as asks:
        await asks.create("a")
        with refused(409, "AlreadyExists"):
            await asks.create("a")
        with refused(422, "Invalid") as told:
            await asks.create("Bad_Name")
        assert told["details"]["causes"][0]["field"] == "metadata.name"
        with refused(404, "NotFound"):
            await asks.v1.create_namespaced_pod("no-such", pod("x"))
        await asks.v1.create_namespaced_pod(NAMESPACE, pod("dry"), dry_run="All")
        with refused(404, "NotFound"):
            await asks.v1.read_namespaced_pod("dry", NAMESPACE)


async def test_a_name_is_generated() -> None:
    """From a prefix."""
    async with asking() as asks:
        manifest = pod("")
        manifest["metadata"] = {"generateName": "gen-"}
        made = await asks.v1.create_namespaced_pod(NAMESPACE, manifest)
        assert len(made.metadata.name) == len("gen-") + 5


async def test_lists_by_labels_and_fields() -> None:
    """Equality, sets, absence; fields; and what is no selector."""
    async with asking() as asks:
        await asks.create("a", {"app": "x", "tier": "1"})
        await asks.create("b", {"app": "y", "tier": "1"})
        assert await asks.names(label_selector="app=x") == ["a"]
        assert await asks.names(label_selector="app in (x,y),tier!=2") == ["a", "b"]
        assert await asks.names(label_selector="app notin (x), !absent, tier") == ["b"]
        assert await asks.names(field_selector="metadata.name=b,status.phase=Pending") == ["b"]
        assert await asks.names(field_selector="status.phase!=Pending") == []
        with refused(400, "BadRequest"):
            await asks.names(label_selector="a===b")
        with refused(400, "BadRequest"):
            await asks.names(field_selector="spec.foo=x")


async def test_patches() -> None:
    """Strategic merges join lists by key, null removes; JSON patches test; nothing changed is no new version."""
    async with asking() as asks:
        await asks.create("a", {"tier": "1"})
        change = asks.v1.patch_namespaced_pod
        made = await change("a", NAMESPACE, {"metadata": {"labels": {"new": "1", "tier": None}}})
        assert made.metadata.labels == {"new": "1"}
        again = await change("a", NAMESPACE, {"metadata": {"labels": {"new": "1"}}})
        assert again.metadata.resource_version == made.metadata.resource_version
        made = await change("a", NAMESPACE, {"spec": {"containers": [{"name": "main", "image": "other:2"}]}})
        container = made.spec.containers[0]
        assert (container.image, container.image_pull_policy) == ("other:2", "IfNotPresent")
        made = await change("a", NAMESPACE, [{"op": "add", "path": "/metadata/labels/jp", "value": "y"}])
        assert made.metadata.labels["jp"] == "y"
        with refused(422, "Invalid"):
            await change("a", NAMESPACE, [{"op": "test", "path": "/metadata/labels/jp", "value": "z"}])
        with refused(422, "Invalid"):
            await change("a", NAMESPACE, {"spec": {"nodeName": "other"}})
        with refused(409, "Conflict"):
            await change("a", NAMESPACE, {"metadata": {"uid": "another", "finalizers": None}})


async def test_a_stale_replace_is_a_conflict() -> None:
    """By its resourceVersion."""
    async with asking() as asks:
        old = await asks.create("a")
        await asks.v1.patch_namespaced_pod("a", NAMESPACE, {"metadata": {"annotations": {"z": "1"}}})
        with refused(409, "Conflict"):
            await asks.v1.replace_namespaced_pod("a", NAMESPACE, asks.api.sanitize_for_serialization(old))


async def test_deletes() -> None:
    """With grace, by force, with another's uid, held by a finalizer; without a node there is no grace."""
    async with asking() as asks:
        delete, read = asks.v1.delete_namespaced_pod, asks.v1.read_namespaced_pod
        await asks.create("g", nodeName="no-such-node")
        await delete("g", NAMESPACE, grace_period_seconds=120)
        left = (await read("g", NAMESPACE)).metadata
        assert left.deletion_timestamp
        assert (left.deletion_grace_period_seconds, left.generation) == (120, 2)
        await delete("g", NAMESPACE, grace_period_seconds=0)
        with refused(404):
            await read("g", NAMESPACE)
        await asks.create("p")
        with refused(409, "Conflict"):
            await delete("p", NAMESPACE, body={"preconditions": {"uid": "wrong"}})
        await asks.v1.patch_namespaced_pod("p", NAMESPACE, {"metadata": {"finalizers": ["example.org/hold"]}})
        await delete("p", NAMESPACE)
        assert (await read("p", NAMESPACE)).metadata.deletion_timestamp
        await asks.v1.patch_namespaced_pod("p", NAMESPACE, {"metadata": {"finalizers": None}})
        with refused(404):
            await read("p", NAMESPACE)


async def test_a_watch_tells_what_comes_after_its_version() -> None:
    """In order, once; also when it begins after the fact."""
    async with asking() as asks:
        await asks.create("before")
        version = (await asks.v1.list_namespaced_pod(NAMESPACE)).metadata.resource_version
        live = asyncio.create_task(asks.watched(until="DELETED", resource_version=version, timeout_seconds=5))
        await asks.create("w")
        await asks.v1.patch_namespaced_pod("w", NAMESPACE, {"metadata": {"labels": {"q": "1"}}})
        await asks.v1.delete_namespaced_pod("w", NAMESPACE, grace_period_seconds=0)
        expected = [("ADDED", "w"), ("MODIFIED", "w"), ("MODIFIED", "w"), ("DELETED", "w")]
        assert await live == expected
        assert await asks.watched(until="DELETED", resource_version=version, timeout_seconds=5) == expected


async def test_a_watch_by_labels_sees_objects_come_and_go_by_their_labels() -> None:
    """What stops matching is DELETED to it."""
    async with asking() as asks:
        version = (await asks.v1.list_namespaced_pod(NAMESPACE)).metadata.resource_version
        await asks.create("other", {"app": "other"})
        await asks.create("s", {"app": "sel"})
        await asks.v1.patch_namespaced_pod("s", NAMESPACE, {"metadata": {"labels": {"app": "gone"}}})
        told = await asks.watched(
            until="DELETED", label_selector="app=sel", resource_version=version, timeout_seconds=5
        )
        assert told == [("ADDED", "s"), ("DELETED", "s")]


async def test_a_watch_ends_with_its_time() -> None:
    """And without an event."""
    async with asking() as asks:
        version = (await asks.v1.list_namespaced_pod(NAMESPACE)).metadata.resource_version
        began = asyncio.get_running_loop().time()
        assert await asks.watched(resource_version=version, timeout_seconds=1) == []
        assert 0.9 < asyncio.get_running_loop().time() - began < 3


async def test_versions_are_forgotten() -> None:
    """An old one is 410 to a watch and to a page; one that is not there yet is 504 to a list."""
    async with asking() as asks:
        asks.cluster.future_seconds = 0.1
        with refused(410):
            await asks.watched(resource_version="1", timeout_seconds=2)
        for name in ("a", "b", "c"):
            await asks.create(name)
        first = await asks.v1.list_namespaced_pod(NAMESPACE, limit=1)
        asks.cluster.forget_history()
        with refused(410, "Expired") as told:
            await asks.v1.list_namespaced_pod(NAMESPACE, limit=1, _continue=first.metadata._continue)
        rest = await asks.v1.list_namespaced_pod(NAMESPACE, _continue=told["metadata"]["continue"])
        assert [one.metadata.name for one in rest.items] == ["b", "c"]
        with refused(410):
            await asks.watched(resource_version=first.metadata.resource_version, timeout_seconds=2)
        with refused(504, "Timeout"):
            await asks.names(resource_version="99999999")


async def test_bookmarks() -> None:
    """The end of the initial events, and a version now and then."""
    async with asking() as asks:
        await asks.create("a")
        initial = {"send_initial_events": True, "resource_version_match": "NotOlderThan"}
        more = {"allow_watch_bookmarks": True, "timeout_seconds": 5}
        told = await asks.watched(until="BOOKMARK", **initial, **more)
        assert told == [("ADDED", "a"), ("BOOKMARK", None)]
        asks.cluster.bookmark_seconds = 0.05
        version = str(asks.cluster.store.version)
        assert await asks.watched(until="BOOKMARK", resource_version=version, **more) == [("BOOKMARK", None)]


async def test_pages_are_one_moment() -> None:
    """Also when pods come and go between them; a token that is none is refused."""
    async with asking() as asks:
        for number in range(5):
            await asks.create(f"p-{number}")
        names: list[str] = []
        token, left = None, []
        while token != "":
            more = {"_continue": token} if token else {}
            page = await asks.v1.list_namespaced_pod(NAMESPACE, limit=2, **more)
            names += [one.metadata.name for one in page.items]
            left.append(page.metadata.remaining_item_count)
            token = page.metadata._continue or ""
            await asks.create(f"a-{len(names)}")
            with contextlib.suppress(ApiException):
                await asks.v1.delete_namespaced_pod("p-4", NAMESPACE, grace_period_seconds=0)
        assert names == [f"p-{number}" for number in range(5)]
        assert left == [3, 1, None]
        with refused(400):
            await asks.names(limit=2, _continue="garbage")


async def test_quotas() -> None:
    """What must be said, what is over, in the server's words; a taken name comes after."""
    async with asking() as asks:
        hard = {"pods": "2", "limits.memory": "256Mi", "requests.memory": "256Mi"}
        quota = {"metadata": {"name": "rq"}, "spec": {"hard": hard}}
        await asks.v1.create_namespaced_resource_quota(NAMESPACE, quota)
        await asks.create("q1", limits={"memory": "100Mi"})
        with refused(403, "Forbidden") as told:
            await asks.create("q0")
        assert "must specify limits.memory for: main; requests.memory for: main" in told["message"]
        with refused(403, "Forbidden") as told:
            await asks.create("q2", limits={"memory": "200Mi"})
        assert (
            "requested: limits.memory=200Mi,requests.memory=200Mi, used: limits.memory=100Mi"
            in told["message"]
        )
        await asks.create("q3", limits={"memory": "50Mi"})
        with refused(403, "Forbidden") as told:
            await asks.create("q3", limits={"memory": "1Mi"})
        assert "exceeded quota: rq, requested: pods=1, used: pods=2, limited: pods=2" in told["message"]
        status = (await asks.v1.read_namespaced_resource_quota("rq", NAMESPACE)).status
        assert status.used == {"pods": "2", "limits.memory": "150Mi", "requests.memory": "150Mi"}


async def test_limit_ranges() -> None:
    """Defaults are filled in, bounds are kept."""
    async with asking() as asks:
        rule = {"type": "Container", "max": {"memory": "128Mi"}, "default": {"memory": "64Mi"}}
        await asks.v1.create_namespaced_limit_range(
            NAMESPACE, {"metadata": {"name": "lr"}, "spec": {"limits": [rule]}}
        )
        with refused(403, "Forbidden") as told:
            await asks.create("l1", limits={"memory": "500Mi"})
        assert "maximum memory usage per Container is 128Mi, but limit is 500Mi" in told["message"]
        made = await asks.create("l2")
        assert made.spec.containers[0].resources.limits == {"memory": "64Mi"}


async def test_a_namespace_that_goes_takes_nothing_new() -> None:
    """And goes once it is empty."""
    async with asking() as asks:
        held = {"metadata": {"name": "hold", "finalizers": ["example.org/hold"]}}
        await asks.v1.create_namespaced_config_map(NAMESPACE, held)
        await asks.v1.delete_namespace(NAMESPACE)
        with refused(403, "Forbidden") as told:
            await asks.create("late")
        assert told["details"]["causes"][0]["reason"] == "NamespaceTerminating"
        await asks.v1.patch_namespaced_config_map("hold", NAMESPACE, {"metadata": {"finalizers": None}})
        with refused(404, "NotFound"):
            await asks.v1.read_namespace(NAMESPACE)


async def test_who_may_not() -> None:
    """A wrong token, no rights, too many requests; one may ask what one may."""
    async with asking() as asks:
        for token, status in (("wrong", 401), ("limited", 403)):
            async with client.ApiClient(configuration(asks.cluster, token)) as api:
                with refused(status):
                    await client.CoreV1Api(api).list_namespaced_pod(NAMESPACE)
        attributes = {"verb": "create", "resource": "pods", "namespace": NAMESPACE}
        review = {"spec": {"resourceAttributes": attributes}}
        for token, allowed in (("admin", True), ("limited", False)):
            async with client.ApiClient(configuration(asks.cluster, token)) as api:
                reviews = client.AuthorizationV1Api(api)
                told = await reviews.create_self_subject_access_review(review)
                assert told.status.allowed is allowed
        async with client.ApiClient(configuration(asks.cluster, "throttled")) as api:
            listing = client.CoreV1Api(api).list_namespaced_pod
            answers = await asyncio.gather(*(listing(NAMESPACE) for _ in range(40)), return_exceptions=True)
        late = [one for one in answers if isinstance(one, ApiException)]
        assert {one.status for one in late} == {429}
        assert late[0].headers["Retry-After"] == "1"


async def test_an_eviction_against_a_budget() -> None:
    """429 with JSON; allowed once more pods are healthy than needed."""
    async with asking() as asks:
        await asks.create("a", {"app": "x"})
        budget = {
            "metadata": {"name": "pdb"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}},
        }
        policy = client.PolicyV1Api(asks.api)
        await policy.create_namespaced_pod_disruption_budget(NAMESPACE, budget)
        eviction = {"metadata": {"name": "a"}}
        with refused(429, "TooManyRequests"):
            await asks.v1.create_namespaced_pod_eviction("a", NAMESPACE, eviction)
        ready = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
        await asks.create("b", {"app": "x"})
        for name in ("a", "b"):
            await asks.v1.patch_namespaced_pod_status(name, NAMESPACE, ready)
        await asks.v1.create_namespaced_pod_eviction("a", NAMESPACE, eviction)
        with refused(404):
            await asks.v1.read_namespaced_pod("a", NAMESPACE)


async def test_logs_and_commands_of_a_running_pod() -> None:
    """Followed to its end, its last line, a command's output and exit code."""
    async with asking("toy") as asks:
        script = "for i in 1 2 3; do echo line $i; sleep .1; done"
        await asks.create("lg", command=["sh", "-c", script])
        await asks.create("ex", command=["sleep", "300"], terminationGracePeriodSeconds=0)
        await asks.cluster.until("lg", "Running", "Succeeded", namespace=NAMESPACE)
        async with watch.Watch() as watching:
            lines = watching.stream(asks.v1.read_namespaced_pod_log, "lg", NAMESPACE, follow=True)
            assert [line.rstrip("\n") async for line in lines] == ["line 1", "line 2", "line 3"]
        await asks.cluster.until("lg", "Succeeded", namespace=NAMESPACE)
        assert await asks.v1.read_namespaced_pod_log("lg", NAMESPACE, tail_lines=1) == "line 3\n"
        await asks.cluster.until("ex", "Running", namespace=NAMESPACE)
        async with WsApiClient(configuration(asks.cluster)) as sockets:
            run = client.CoreV1Api(sockets).connect_get_namespaced_pod_exec
            streams = {"stderr": True, "stdin": False, "stdout": True, "tty": False}
            told = await run("ex", NAMESPACE, command=["sh", "-c", "echo hi; echo err >&2"], **streams)
            assert sorted(told.split()) == ["err", "hi"]
            opened = await run(
                "ex", NAMESPACE, command=["sh", "-c", "exit 7"], _preload_content=False, **streams
            )
            async with opened as socket:
                codes = [
                    sockets.parse_error_data(one.data[1:].decode())
                    async for one in socket
                    if one.data and one.data[0] == 3
                ]
            assert codes == [7]
