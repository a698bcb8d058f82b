"""What `doctor` finds in the clusters of a pipeline's Kubernetes tasks, and removes with --clean.

In: a pipeline's pod managers and its log. Out: a line for the connection, the versions, the rights, and for each pod of a
run of this log that is no longer open. The cluster is asked before the log is read: a run is in the log before its pod is
made. Pods of other logs are told and left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from datatask.adapters.cli.leftovers import log_of, open_identities, others
from datatask.adapters.cli.settings import Settings
from datatask.schema.errors import DatataskError

if TYPE_CHECKING:
    from datatask.adapters.execute.kube.manager import PodManager

Found = tuple[str, str, str]


def managers_of(settings: Settings) -> list[PodManager]:
    """Return the pipeline's pod managers, each once; those of a session's resource are not reached."""
    tasks = settings.load_pipeline().tasks.values()
    if not any("Kube" in kind.__name__ for task in tasks for kind in type(task).__mro__):
        return []
    from datatask.adapters.execute.kube.tasks import KubeTask

    found: dict[int, PodManager] = {}
    for task in tasks:
        if isinstance(task, KubeTask):
            try:
                manager = task.podman
            except DatataskError:
                continue
            found[id(manager.shared)] = manager
    return list(found.values())


def look(settings: Settings, *, clean: bool, of: str = "") -> Iterator[Found]:
    """Yield (yes, no or note; what; remedy) for each cluster; `of` is a log that is gone."""
    for manager in managers_of(settings):
        found = asyncio.run(_looked(manager))
        yield from found
        if not any(ok == "no" for ok, _, _ in found):
            yield from _left(settings, manager, clean, of)


async def _looked(manager: PodManager) -> list[Found]:
    from datatask.adapters.execute.kube import health

    try:
        return [found async for found in health.look(manager)]
    except DatataskError as error:
        return [("no", error.fact, error.remedy)]


def _left(settings: Settings, manager: PodManager, clean: bool, of: str) -> Iterator[Found]:
    from datatask.adapters.execute.kube import health, names

    pods = asyncio.run(health.leftovers(manager))
    mine, open_runs = open_identities(settings)
    ours = [pod for pod in pods if log_of(names.identity_of(pod)) in (mine, of)]
    orphans = [pod for pod in ours if names.identity_of(pod) not in open_runs]
    gone = asyncio.run(health.remove(manager, orphans)) if clean and orphans else set()
    for pod in orphans:
        yield _told(pod, pod.name in gone, settings)
    yield from others(
        f"{manager!r}", "pods", [names.identity_of(pod) for pod in pods if pod not in ours], settings
    )
    if not orphans:
        yield "yes", f"{manager!r}: nothing is left of runs that are over", ""


def _told(pod: Any, gone: bool, settings: Settings) -> Found:
    phase = pod.status.phase or "unknown"
    text = f"pod {pod.name} ({phase}), which no open run owns"
    if gone:
        return "yes", f"{text}; removed", ""
    return "note", text, f"`{settings.command('doctor', '--clean')}` removes it"
