"""The API server for tests refuses as a real one: quotas, limit ranges, rights, crowds, disruption budgets."""

from __future__ import annotations

import asyncio
from typing import Any

from kubernetes_asyncio import client
from kubernetes_asyncio.client.exceptions import ApiException

from tests.kube.api_kit import NS, connected, refused


async def test_quotas() -> None:
    """They count pods and what they ask for, want it said, and name what is short."""
    async with connected() as to:
        hard = {"pods": "2", "requests.memory": "256Mi", "limits.memory": "256Mi", "requests.cpu": "1500m"}
        await to.v1.create_namespaced_resource_quota(NS, {"metadata": {"name": "q"}, "spec": {"hard": hard}})
        told = await refused(to.make("bare"), 403, "Forbidden")
        assert "must specify limits.memory,requests.cpu,requests.memory for: main" in told["message"]
        await to.make("a", limits={"memory": "100Mi", "cpu": "1"})
        told = await refused(to.make("b", limits={"memory": "200Mi", "cpu": "100m"}), 403, "Forbidden")
        assert (
            "requested: limits.memory=200Mi,requests.memory=200Mi, used: limits.memory=100Mi,"
            in told["message"]
        )
        await to.make("c", limits={"memory": "50Mi", "cpu": "100m"})
        told = await refused(to.make("d", limits={"memory": "1Mi", "cpu": "1m"}), 403, "Forbidden")
        assert told["message"].endswith("exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2")
        used = (await to.v1.read_namespaced_resource_quota("q", NS)).status.used
        assert used == {
            "pods": "2",
            "requests.memory": "150Mi",
            "limits.memory": "150Mi",
            "requests.cpu": "1100m",
        }
        await to.v1.delete_namespaced_pod("a", NS)
        await to.make("d", limits={"memory": "1Mi", "cpu": "1m"})


async def test_limit_ranges() -> None:
    """They fill in what is not said, and keep their bounds."""
    async with connected() as to:
        rule = {"type": "Container", "max": {"memory": "128Mi"}, "min": {"memory": "8Mi"}}
        rule |= {"default": {"memory": "64Mi"}, "defaultRequest": {"memory": "32Mi"}}
        await to.v1.create_namespaced_limit_range(NS, {"metadata": {"name": "l"}, "spec": {"limits": [rule]}})
        told = await refused(to.make("a", limits={"memory": "500Mi"}), 403, "Forbidden")
        assert "maximum memory usage per Container is 128Mi, but limit is 500Mi" in told["message"]
        told = await refused(to.make("a", limits={"memory": "1Mi"}), 403, "Forbidden")
        assert "minimum memory usage per Container is 8Mi, but request is 1Mi" in told["message"]
        resources = (await to.make("b")).spec.containers[0].resources
        assert (resources.limits, resources.requests) == ({"memory": "64Mi"}, {"memory": "32Mi"})


async def test_strangers_and_crowds() -> None:
    """401 for a wrong token; 429 with Retry-After and plain text beyond a user's share."""
    async with connected("wrong") as to:
        await refused(to.v1.list_namespaced_pod(NS), 401, "Unauthorized")
    async with connected("throttled") as to:
        asked = [to.v1.list_namespaced_pod(NS) for _ in range(10)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        told = [one for one in answers if isinstance(one, ApiException)]
        assert len(told) == 9
        assert {(one.status, one.headers and one.headers["Retry-After"], str(one.body)) for one in told} == {
            (429, "1", "Too many requests, please try again later.\n")
        }


async def test_a_disruption_budget_refuses_evictions() -> None:
    """429 without Retry-After, while too few are healthy; then the pod goes."""
    async with connected() as to:
        await to.make("a", {"app": "x"})
        ready = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
        await to.v1.patch_namespaced_pod_status("a", NS, ready)
        budget = {
            "metadata": {"name": "b"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}},
        }
        policy: Any = client.PolicyV1Api(to.api)
        await policy.create_namespaced_pod_disruption_budget(NS, budget)
        eviction = {"metadata": {"name": "a"}}
        told = await refused(to.v1.create_namespaced_pod_eviction("a", NS, eviction), 429, "TooManyRequests")
        assert "needs 1 healthy pods and has 1 currently" in told["details"]["causes"][0]["message"]
        await policy.delete_namespaced_pod_disruption_budget("b", NS)
        await to.v1.create_namespaced_pod_eviction("a", NS, eviction)
        assert await to.names() == []


# --- logs and commands --------------------------------------------------------------------------------------
