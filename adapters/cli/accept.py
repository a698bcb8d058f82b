"""`accept`: results that are out of date are taken as good, with a reason, until something else changes.

In: a task, and some of its stale results. Out: a `ResultAccepted` in the log for each; nothing is run.
"""

from __future__ import annotations

from collections.abc import Iterable

import click
from pyroaring import BitMap

from datatask.adapters.cli.asking import carry_out
from datatask.adapters.cli.commands import JOB, changing, command
from datatask.adapters.cli.errand import Change, Wish, sliced, who
from datatask.adapters.cli.ls import job_set
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import recorded
from datatask.adapters.cli.settings import Settings
from datatask.adapters.cli.verbs import report
from datatask.adapters.history import shapes
from datatask.adapters.history.stale import find_stale
from datatask.engine.core.state import State
from datatask.engine.ports import Blobs
from datatask.schema import messages as r
from datatask.schema.errors import InvalidValueError, NotPossibleError


@command(
    "accept",
    example="datatask accept resize --reason 'only the comment differs'\ndatatask accept resize cat dog --reason looked",
)
@click.argument("task")
@click.argument("jobs", nargs=-1, type=JOB, metavar="[JOB]...")
@click.option("--jobs", "chosen", metavar="EXPR", help="Only jobs of a set expression, as of `datatask ls`.")
@changing
def accept(
    settings: Settings,
    task: str,
    jobs: tuple[str, ...],
    chosen: str | None,
    dry_run: bool,
    reason: str,
    exit_code: bool,
) -> int:
    """Take results of TASK that are out of date as good: all, of these jobs, or of a set.

    Nothing is run, and the results stay as they are. What changes later makes them out of date again. `datatask undo` takes it back.
    """
    if not reason:
        raise InvalidValueError(
            "accept needs a reason, which the log keeps", remedy="say why the results are good with --reason"
        )
    with recorded(settings) as log:
        shapes.find_task(log.state, task)
        seen, stale = log.state.position, find_stale(log.reader, log.state).stale.get(task, BitMap())
        among = None if chosen is None else set(job_set(log, chosen))
        outdated = [log.state.jobs[job] for job in stale]
    if jobs:
        for job in dict.fromkeys(jobs):
            if job not in outdated:
                raise NotPossibleError(
                    f"{job} has no result of {task} that is out of date",
                    remedy=f"`{settings.program} ls 'stale({task})'` lists them",
                )
        outdated = list(dict.fromkeys(jobs))
    if among is not None:
        outdated = [job for job in outdated if job in among]

    def plan(state: State, _: Blobs | None) -> Iterable[Wish]:
        for part in sliced(outdated):
            request = r.AcceptResults(
                **who("accept", reason), task=task, jobs=part, seen=seen, withdrawn=False
            )
            yield Wish(request, tuple(Change("accept", task=task, job=job) for job in part))

    return report(Output(settings), carry_out(settings, plan, dry_run=dry_run), "accept", dry_run, exit_code)
