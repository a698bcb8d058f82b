"""`enter`, and what `cat` prints of a run that goes on: a look into a run's folder, wherever it is.

In: the log, which knows the open run of a task and job and where it is; the pipeline, whose manager reaches it. Out: a
shell there, or output as it comes. The engine that watches the run is not disturbed, and nothing is written.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import click

from datatask.adapters.cli.options import JOB, command
from datatask.adapters.cli.recorded import Recorded, recorded
from datatask.adapters.cli.settings import Settings
from datatask.engine.core.tasks import OpenRun
from datatask.engine.ports import Filters
from datatask.schema.errors import NotPossibleError, UnknownNameError

if TYPE_CHECKING:
    from datatask.adapters.execute.base.targets import RunPlace

STREAMS = ("stdout", "stderr", "logs")
TAIL_SECONDS = 0.3


@command("enter", example="datatask -p pipeline.py enter resize cat")
@click.argument("task")
@click.argument("job", type=JOB)
def enter(settings: Settings, task: str, job: str) -> int:
    """Open a shell in the folder of a job's run, on the machine where it runs, or in its pod.

    With input that is no terminal, the shell reads its commands from there. The exit code is the shell's.
    """
    with recorded(settings) as log:
        place = place_of(settings, log, open_run(settings, log, task, job))

    async def inside() -> int:
        try:
            return await place.enter()
        finally:
            await place.close()

    return asyncio.run(inside())


def find_run(log: Recorded, task: str, job: str) -> OpenRun | None:
    """Return the open run of a task and job, or None."""
    for run in log.state.open_runs.values():
        if run.task == task and log.state.jobs[run.job] == job:
            return run
    return None


def open_run(settings: Settings, log: Recorded, task: str, job: str) -> OpenRun:
    """Return the open run of a task and job; `UnknownNameError` when there is none."""
    if task not in log.state.tasks:
        raise UnknownNameError(f"there is no task {task}", remedy=f"see `{settings.command('status')}`")
    run = find_run(log, task, job)
    if run is None:
        raise UnknownNameError(
            f"{task} has no run of {job} now; a run's folder is removed when its end is recorded",
            remedy=f"see `{settings.command('runs')}`",
        )
    return run


def place_of(settings: Settings, log: Recorded, run: OpenRun) -> RunPlace:
    """Return the folder of an open run, or its pod, by the pipeline's own manager."""
    from datatask.adapters.execute.base.process_task import ProcessTask

    task = settings.load_pipeline().tasks.get(run.task)
    identity = f"{log.state.log}.{run.epoch}.{run.run}"
    if isinstance(task, ProcessTask):
        return task.manager.place(identity, run.where)
    if any(kind.__name__ == "KubeTask" for kind in type(task).__mro__):
        from datatask.adapters.execute.kube.tasks import KubeTask

        assert isinstance(task, KubeTask)
        return task.podman.place(identity)
    raise NotPossibleError(f"the runs of {run.task} are no processes", remedy="only these have a folder")


def tail(settings: Settings, log: Recorded, run: OpenRun, name: str) -> int:
    """Print a stream of an open run as it comes, until the run is over; return how many bytes were printed."""
    place = place_of(settings, log, run)

    async def following() -> int:
        offset, after, over = 0, log.state.position, False
        try:
            while True:
                while data := await place.read(name, offset):
                    sys.stdout.buffer.write(data)
                    sys.stdout.buffer.flush()
                    offset += len(data)
                if over:
                    return offset
                await asyncio.sleep(TAIL_SECONDS)
                ended = Filters(kinds=("RunEnded",), runs=(run.run,))
                over = any(True for _ in log.reader.read(after, filters=ended))
        finally:
            await place.close()

    return asyncio.run(following())
