"""What `doctor` finds of ended runs in a pipeline's clusters and on its machines, and removes with --clean.

In: the managers of a pipeline's tasks, and its log. Out: a line for the connection, versions and rights of a cluster, and for each
pod or folder of a run of this log that is no longer open. Clusters and machines are asked before the log is read: a run is in the
log before its pod or folder is made, so what the log does not count as open then is over. Those of other logs are left alone.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from datatask.adapters.cli.recorded import recorded
from datatask.adapters.cli.settings import Settings
from datatask.adapters.execute.base.process_task import ProcessTask
from datatask.adapters.execute.base.targets import AbstractProcessManager, Leftover
from datatask.schema.errors import DatataskError

if TYPE_CHECKING:
    from datatask.adapters.execute.kube.manager import PodManager


Found = tuple[str, str, str]


def clusters_of(settings: Settings) -> list[PodManager]:
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


def look_at_clusters(settings: Settings, *, clean: bool, of: str = "") -> Iterator[Found]:
    """Yield (yes, no or note; what; remedy) for each cluster; `of` is a log that is gone."""
    for manager in clusters_of(settings):
        found = asyncio.run(_looked(manager))
        yield from found
        if not any(ok == "no" for ok, _, _ in found):
            yield from _left(settings, manager, clean, of)


async def _looked(manager: PodManager) -> list[Found]:
    from datatask.adapters.execute.kube import doctor

    try:
        return [found async for found in doctor.look(manager)]
    except DatataskError as error:
        return [("no", error.fact, error.remedy)]


def _left(settings: Settings, manager: PodManager, clean: bool, of: str) -> Iterator[Found]:
    from datatask.adapters.execute.kube import doctor
    from datatask.adapters.execute.kube import pods as names

    pods = asyncio.run(doctor.leftovers(manager))
    mine, open_runs = open_identities(settings)
    ours = [pod for pod in pods if log_of(names.identity_of(pod)) in (mine, of)]
    orphans = [pod for pod in ours if names.identity_of(pod) not in open_runs]
    gone = asyncio.run(doctor.remove(manager, orphans)) if clean and orphans else set()
    for pod in orphans:
        yield _cluster_rows(pod, pod.name in gone, settings)
    yield from others(
        f"{manager!r}", "pods", [names.identity_of(pod) for pod in pods if pod not in ours], settings
    )
    if not orphans:
        yield "yes", f"{manager!r}: nothing is left of runs that are over", ""


def _cluster_rows(pod: Any, gone: bool, settings: Settings) -> Found:
    phase = pod.status.phase or "unknown"
    text = f"pod {pod.name} ({phase}), which no open run owns"
    if gone:
        return "yes", f"{text}; removed", ""
    return "note", text, f"`{settings.command('doctor', '--clean')}` removes it"


def managers_of(settings: Settings) -> list[AbstractProcessManager]:
    """Return the pipeline's process managers, each once; those of a session's resource are not reached."""
    found: dict[int, AbstractProcessManager] = {}
    for task in settings.load_pipeline().tasks.values():
        if isinstance(task, ProcessTask):
            try:
                manager = task.manager
            except DatataskError:
                continue
            found[id(manager)] = manager
    return list(found.values())


def look_at_hosts(settings: Settings, *, clean: bool, of: str = "") -> Iterator[Found]:
    """Yield (yes, no or note; what; remedy) for what is left on the machines; `of` is a log that is gone."""
    for manager in managers_of(settings):
        try:
            runs = asyncio.run(manager.list_runs())
        except DatataskError as error:
            yield "no", error.fact, error.remedy
            continue
        mine, open_runs = open_identities(settings)
        homes = {log_of(run.identity): run.home for run in runs}
        if of != mine and homes.get(of):
            yield (
                "no",
                f"{manager!r}: the log {of} is not gone, it is {homes[of]}",
                "its own pipeline cleans up",
            )
            continue
        ours = [
            run
            for run in runs
            if log_of(run.identity) in (mine, of) and not is_of_another(run.home, settings)
        ]
        orphans = [run for run in ours if run.identity not in open_runs]
        gone = set(asyncio.run(manager.remove_runs(orphans))) if clean and orphans else set()
        for run in orphans:
            yield _line(run, run in gone, settings)
        yield from others(f"{manager!r}", "runs", [run.identity for run in runs if run not in ours], settings)
        if not orphans:
            yield "yes", f"{manager!r}: nothing is left of runs that are over", ""


def is_of_another(home: str, settings: Settings) -> bool:
    """Whether a run belongs to the log at `home`, of which ours is a copy."""
    log = settings.log_path()
    return bool(home) and log.exists() and os.path.exists(home) and not os.path.samefile(home, log)


def open_identities(settings: Settings) -> tuple[str, set[str]]:
    """Return the log and the identities of its open runs; nothing of a log that is not there."""
    if not settings.log_path().exists():
        return "", set()
    with recorded(settings) as log:
        mine = log.state.log
        return mine, {f"{mine}.{run.epoch}.{run.run}" for run in log.state.open_runs.values()}


def log_of(identity: str) -> str:
    """Return the log whose run this is."""
    return identity.partition(".")[0]


def others(where: str, kind: str, identities: list[str], settings: Settings) -> Iterator[Found]:
    """Yield a note for each other log of which something is there."""
    for log, count in Counter(map(log_of, identities)).items():
        remedy = settings.command("doctor", "--clean", "--of", log)
        yield (
            "note",
            f"{where}: {count} {kind} are of another log, {log}",
            f"its own pipeline cleans up; if that log is gone, `{remedy}` does",
        )


def _line(run: Leftover, gone: bool, settings: Settings) -> Found:
    text = f"{run.where}: {run.identity}, which no open run owns: {run.state}"
    if gone:
        return "yes", f"{text}; removed", ""
    return "note", text, f"`{settings.command('doctor', '--clean')}` removes it"
