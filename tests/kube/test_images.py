"""A pod's image counts by its digest: another one under the same name makes the results before out of date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datatask import Pipeline, Session
from datatask.adapters.execute.kube.pods import as_pod
from datatask.adapters.execute.kube.verdicts import images_of
from datatask.adapters.history.stale import causes_of, find_stale
from datatask.adapters.history.states import fold
from datatask.adapters.log.reader import LogReader
from datatask.schema.events import IMAGES, RunEnded
from tests.kube.api import telling
from tests.kube.scripted import Hand
from tests.kube.test_pipelines import kube_task
from tests.kube.toy import toy_cluster


async def run(folder: Path, api: Hand, job: str, on_change: Any) -> list[str]:
    """Put a job and run until it is quiet; return the jobs that ran, in order."""
    log = folder / "log.db"
    before = 0
    if log.exists():
        with LogReader(log) as reader:
            before = reader.head
    task, has = kube_task(api, "true", on_change=on_change)
    async with Pipeline([task], Session(), log=log) as pipeline:
        await has["inp"].dump(job, {"word": "x"})
        await pipeline.run(timeout=60)
    with LogReader(log) as reader:
        return [one.event.job for one in reader.read(before) if isinstance(one.event, RunEnded)]


async def test_another_digest_under_the_same_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with toy_cluster() as api:
        monkeypatch.setattr(telling, "image_id", lambda image: "sha256:11")
        assert await run(tmp_path, api, "a", "mark") == ["a"]
        assert await run(tmp_path, api, "b", "mark") == ["b"]
        monkeypatch.setattr(telling, "image_id", lambda image: "sha256:22")
        assert await run(tmp_path, api, "c", "mark") == ["c"]
    with LogReader(tmp_path / "log.db") as reader:
        state = fold(reader, reader.head)
        stale = find_stale(reader, state).stale["Say_it"]
        assert [state.jobs[job] for job in stale] == ["a", "b"]
        (cause,) = causes_of(reader, state, "Say_it", "a")
        ends = [one for one in reader.read() if isinstance(one.event, RunEnded)]
        assert cause.text == f"image busybox: sha256:11 -> sha256:22 (position {ends[-1].position})"
        assert [(one.event.detail or {})[IMAGES] for one in ends if isinstance(one.event, RunEnded)] == [
            "busybox=sha256:11",
            "busybox=sha256:11",
            "busybox=sha256:22",
        ]


async def test_results_of_another_digest_are_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the engine that sees the new one; all have it then, and it comes to rest."""
    async with toy_cluster() as api:
        monkeypatch.setattr(telling, "image_id", lambda image: "sha256:11")
        assert await run(tmp_path, api, "a", "rerun") == ["a"]
        monkeypatch.setattr(telling, "image_id", lambda image: "sha256:22")
        assert await run(tmp_path, api, "b", "rerun") == ["b", "a"]
        assert await run(tmp_path, api, "c", "rerun") == ["c"]


async def test_without_a_digest_the_name_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with toy_cluster() as api:
        monkeypatch.setattr(telling, "image_id", lambda image: "")
        assert await run(tmp_path, api, "a", "rerun") == ["a"]
        monkeypatch.setattr(telling, "image_id", lambda image: "sha256:22")
        assert await run(tmp_path, api, "b", "rerun") == ["b"]


def test_images_are_named_as_the_manifest_names_them() -> None:
    """The kubelet may write another name; containers that have not begun have no digest."""
    pod = as_pod(
        {
            "spec": {
                "containers": [{"name": "main", "image": "b:1"}, {"name": "more", "image": "c"}],
                "initContainers": [{"name": "first", "image": "a"}],
            },
            "status": {
                "containerStatuses": [
                    {
                        "name": "main",
                        "image": "docker.io/library/b:1",
                        "imageID": "docker.io/library/b@sha256:1",
                    },
                    {"name": "more", "image": "c", "imageID": ""},
                ],
                "initContainerStatuses": [{"name": "first", "image": "a", "imageID": "sha256:2"}],
            },
        }
    )
    assert images_of(pod) == "a=sha256:2 b:1=docker.io/library/b@sha256:1"
