"""Quotas of pipelines count pods as the cluster does: whole-pod requests, overhead, resizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datatask import (
    KubeTask,
    LogMetadataRepository,
    Pipeline,
    PodManager,
    ResourceManager,
    Resources,
    Session,
    why,
)
from datatask.adapters.execute.kube.connection import Cluster, Location
from datatask.adapters.history.shapes import status
from tests.kube.api.kinds import BY_PATH
from tests.kube.scripted import SPACE, Hand, scripted
from tests.run_kit import until

RUNTIMES = BY_PATH["node.k8s.io", "v1", "runtimeclasses"]
TEMPLATE = """
kind: Pod
spec:
  {more}
  containers:
    - name: main
      image: busybox
      resources: {amounts}
"""
OWN = "{requests: {cpu: 100m, memory: 64Mi}}"


def template_of(more: str, amounts: str) -> str:
    """Return a template with something of the pod's and the container's amounts."""
    return TEMPLATE.format(more=more, amounts=amounts)


def pipeline_on(api: Hand, folder: Path, template: str, *, limit: Resources, **more: Any) -> Any:
    """Return a pipeline of one task with a quota, and its input."""
    given = LogMetadataRepository("given")
    quota = ResourceManager(limit, name="q")
    token = more.pop("token", "admin")
    task = KubeTask("t", PodManager("app", SPACE, api.config(token)), quota, template, None, None, **more)
    task.link("given", given, is_input=True)
    return Pipeline([task], Session(), log=folder / "log.db"), given


def used(pipeline: Any) -> dict[str, float]:
    """Return what status tells of the quota's use."""
    found: dict[str, float] = status(pipeline.state)["quotas"]["q"]["used"]
    return found


def runtime(api: Hand, name: str = "boxed") -> None:
    """Let there be a RuntimeClass that adds to its pods."""
    overhead = {"podFixed": {"cpu": "250m", "memory": "120Mi"}}
    made = {"kind": "RuntimeClass", "apiVersion": "node.k8s.io/v1", "metadata": {"name": name}}
    api.storage.create(RUNTIMES, {**made, "handler": "runc", "overhead": overhead})


async def test_the_overhead_of_a_runtime_class_counts_before_the_first_launch(tmp_path: Path) -> None:
    """As many pods as fit with it, and `why` says so."""
    template = template_of("runtimeClassName: boxed", OWN)
    async with scripted() as api:
        runtime(api)
        pipeline, given = pipeline_on(api, tmp_path, template, limit=Resources.parse(1, "1Gi"))
        async with pipeline:
            for number in range(5):
                await given.dump(f"j{number}", {})
            await pipeline.update()
            await until(lambda: len(api.pods) == 2)
            assert used(pipeline) == {"cpu": 0.7, "mem": 2 * 184 << 20}
            await until(lambda: api.counts["create pods"] == 2)
        found = why(tmp_path / "log.db", "t", "j2")
    reasons = [one.explain for one in found.held_by if one.what == "quota"]
    assert reasons[0].startswith("q has 0.7 of 1 core in use, it asks for 0.35 cores: run ")
    assert "(t j0: 0.35 cores, 184Mi memory)" in reasons[0]


async def test_an_overhead_that_cannot_be_asked_for_counts_once_a_pod_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says so; the pod as it was created is counted."""
    template = template_of("runtimeClassName: boxed", OWN)
    async with scripted() as api:
        runtime(api)
        api.server.users["admin"].denied = {"get runtimeclasses"}
        pipeline, given = pipeline_on(api, tmp_path, template, limit=Resources.parse(1, "1Gi"))
        async with pipeline:
            assert "what RuntimeClass boxed adds to each pod is not known" in caplog.text
            await given.dump("j", {})
            await pipeline.update()
            await until(lambda: used(pipeline) == {"cpu": 0.35, "mem": 184 << 20})


@pytest.mark.parametrize(
    ("more", "asked", "cpu"),
    [("resources: {limits: {cpu: 500m, memory: 64Mi}}", None, 0.5), ("", Resources.parse("2", "1Gi"), 2.0)],
)
async def test_a_resize_in_place_counts_from_when_it_is_asked_for(
    tmp_path: Path, more: str, asked: Resources | None, cpu: float
) -> None:
    """Also where only the pod has amounts; a task that says the most never counts less. Another engine goes on with it."""
    template = template_of(more, "{}" if more else OWN)
    async with scripted() as api:
        for engine in range(2):
            limit = Resources.parse(4, "8Gi")
            pipeline, given = pipeline_on(api, tmp_path, template, limit=limit, job_resources=asked)
            async with pipeline:
                if not engine:
                    await given.dump("j", {})
                    await pipeline.update()
                    name = (await api.pod("j"))["metadata"]["name"]
                    api.run(name)
                    assert used(pipeline)["cpu"] == cpu
                    await _resized(api, name, "3")
                await until(lambda pipeline=pipeline: used(pipeline)["cpu"] == 3)
        async with pipeline_on(api, tmp_path, template, limit=limit, job_resources=asked)[0] as pipeline:
            await _resized(api, name, "100m")
            await until(lambda: used(pipeline)["cpu"] == (0.1 if asked is None else 2))
            api.end(name)
            await until(lambda: not used(pipeline))


async def _resized(api: Hand, name: str, cpu: str) -> None:
    """Resize the pod's amounts, wherever it has them."""
    amounts = {"cpu": cpu, "memory": "64Mi"}
    pod = api.pods[name]
    told = {"requests": amounts, "limits": amounts} if pod["spec"].get("resources") else {"requests": amounts}
    body: dict[str, Any] = {"spec": {"containers": [{"name": "main", "resources": told}]}}
    if pod["spec"].get("resources"):
        body = {"spec": {"resources": told}}
    cluster = Cluster(Location(api.config()))
    await cluster.attach()
    try:
        path = f"/api/v1/namespaces/{SPACE}/pods/{name}/resize"
        await cluster.ask("PATCH", path, body=body, content_type="application/strategic-merge-patch+json")
    finally:
        await cluster.detach()
