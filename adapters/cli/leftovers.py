"""What `doctor` finds on the machines of a pipeline's process tasks, and removes with --clean.

In: a pipeline's managers and its log. Out: a line for each run that has a folder there and is nobody's any more. The
machines are asked before the log is read: a run is in the log before it is started, so what the log does not count as open
then is over. Runs of other logs are told and left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from datatask.adapters.cli.recorded import recorded
from datatask.adapters.cli.settings import Settings
from datatask.adapters.execute.processes import ProcessTask
from datatask.adapters.execute.targets import AbstractProcessManager, Leftover
from datatask.schema.errors import DatataskError

Found = tuple[str, str, str]


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


def look(settings: Settings, *, clean: bool) -> Iterator[Found]:
    """Yield (yes, no or note; what; remedy) for what is left on the machines."""
    for manager in managers_of(settings):
        try:
            runs = asyncio.run(manager.list_runs())
        except DatataskError as error:
            yield "no", f"{error.where}: {error.what}" if error.where else error.what, error.remedy
            continue
        with recorded(settings) as log:
            mine = log.state.log
            open_runs = {f"{mine}.{run.epoch}.{run.run}" for run in log.state.open_runs.values()}
        orphans = [
            run for run in runs if run.identity.startswith(f"{mine}.") and run.identity not in open_runs
        ]
        others = len([run for run in runs if not run.identity.startswith(f"{mine}.")])
        gone = set(asyncio.run(manager.remove_runs(orphans))) if clean and orphans else set()
        for run in orphans:
            yield _told(run, run in gone, settings)
        if others:
            yield (
                "note",
                f"{manager!r}: {others} folders are of other logs",
                "their own pipelines clean them up",
            )
        if not orphans:
            yield "yes", f"{manager!r}: nothing is left of runs that are over", ""


def _told(run: Leftover, gone: bool, settings: Settings) -> Found:
    text = f"{run.where}: {run.identity}, which no open run owns: {run.state}"
    if gone:
        return "yes", f"{text}; removed", ""
    return "note", text, f"`{settings.command('doctor', '--clean')}` removes it"
