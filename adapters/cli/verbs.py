"""`launch`, `cancel`, `retry`, `pause`, `resume`, `quota`: what people ask of an engine, running or not."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from datatask.adapters.cli.asking import carry_out
from datatask.adapters.cli.commands import JOB, changing, command, waits
from datatask.adapters.cli.errand import Change, Done, Wish, exit_code, shape, sliced, who
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import changed, recorded
from datatask.adapters.cli.settings import Settings
from datatask.adapters.cli.terminal import note_interrupts
from datatask.adapters.history import shapes
from datatask.adapters.history.states import follow
from datatask.engine.core.quotas import QuotaState
from datatask.engine.core.state import State
from datatask.engine.core.tasks import TaskState
from datatask.engine.ports import Blobs
from datatask.schema import messages as r
from datatask.schema.errors import (
    CallerError,
    InvalidValueError,
    NotPossibleError,
    UnknownNameError,
    one_of,
    unknown,
)
from datatask.schema.resources import parse_amount, to_nano
from datatask.schema.troubles import shown

if TYPE_CHECKING:
    from datatask.adapters.wiring.pipeline import Pipeline


def report(output: Output, done: Done, verb: str, dry_run: bool, wanted: bool) -> int:
    """Print what a command did, one line a change, and return its exit code."""
    if output.json:
        output.document(shape(done, verb, dry_run))
    for change in [] if output.json else done.changes:
        about = " ".join(part for part in change[1:] if part is not None)
        output.line(shown(f"would {change.op} {about}" if dry_run else f"{change.op} {about}"))
    if not done.changes and not output.json:
        output.say("nothing to do")
    return exit_code(done, dry_run, wanted)


@command(
    "launch",
    example="datatask launch resize cat\ndatatask launch resize cat --force --sync --reason 'second look'",
)
@click.argument("task")
@click.argument("job", type=JOB)
@click.option("--meta/--no-meta", default=True, help="Write the done entry (default), or do not.")
@click.option("--over-quota", is_flag=True, help="Although it does not fit its quota.")
@click.option("--sync", is_flag=True, help="Wait until the run has ended; exit code 1 when it failed.")
@click.option("-f", "--force", is_flag=True, help="Although the job is not ready.")
@changing
def launch(
    settings: Settings, task: str, job: str, force: bool, sync: bool, over_quota: bool, meta: bool,
    dry_run: bool, reason: str, exit_code: bool,
) -> int:  # fmt: skip
    """Launch one job now, ahead of the queue."""
    if sync and "DATATASK_INPUTS" in os.environ:
        return _work(settings, task, job)

    def plan(state: State, _: Blobs | None) -> Iterable[Wish]:
        found = shapes.find_task(state, task)
        index = state.job_index.get(job)
        if dry_run and not force and (index is None or index not in found.queue):
            raise NotPossibleError(
                "Task is not ready to launch - use -f to force",
                where=f"{task} {job}",
                remedy=f"see `{settings.command('why', task, job)}`",
            )
        request = r.LaunchJob(
            **who("launch", reason), task=task, job=job, force=force, over_quota=over_quota, meta=meta
        )
        yield Wish(request, (Change("launch", task=task, job=job),))

    async def wait(pipeline: Pipeline) -> None:
        if pipeline.tasks[task].outlives and not sync:
            return  # closing would end any other run
        while pipeline.runtime.failure is None and any(
            (run.task, pipeline.state.jobs[run.job]) == (task, job) for run in _open_runs(pipeline.state)
        ):
            await asyncio.sleep(0.02)

    done = carry_out(settings, plan, dry_run=dry_run, afterwards=wait)
    code = report(Output(settings), done, "launch", dry_run, exit_code)
    return _ended(settings, task, job) if sync and not dry_run else code


def _work(settings: Settings, task: str, job: str) -> int:
    """Do the work of the run whose pod this is: no log is opened, and nothing is decided."""
    from datatask.adapters.execute.kube import worker
    from datatask.adapters.execute.kube.functions import KubeFunctionTask

    pipeline = settings.load_pipeline()
    found = pipeline.tasks.get(task)
    if not worker.is_worker(task, job) or not isinstance(found, KubeFunctionTask):
        raise CallerError(
            f"this is the pod of a run of {os.environ.get('DATATASK_TASK')} {os.environ.get('DATATASK_JOB')}",
            where=f"{task} {job}",
            remedy="launch that one, by the script that made the pod",
        )
    return worker.work(found, pipeline.declare().objects, pipeline.session)


def _open_runs(state: State) -> list[Any]:
    return list(state.open_runs.values())


def _ended(settings: Settings, task: str, job: str) -> int:
    """Wait until the job has no open run, by the log alone; return 1 unless the last one succeeded."""
    note_interrupts()
    with recorded(settings) as log:
        state = log.state
        while any((run.task, state.jobs[run.job]) == (task, job) for run in _open_runs(state)):
            changed(log.reader, state.position, 1.0)
            follow(log.reader, state)
            time.sleep(0.01)
        return 0 if state.contains(shapes.find_task(state, task).succeeded.id, job) else 1


@command("cancel", example="datatask cancel resize cat dog --reason 'wrong input'")
@click.argument("task")
@click.argument("jobs", nargs=-1, required=True, type=JOB, metavar="JOB...")
@waits
@changing
def cancel(
    settings: Settings,
    task: str,
    jobs: tuple[str, ...],
    wait: bool,
    dry_run: bool,
    reason: str,
    exit_code: bool,
) -> int:
    """Cancel jobs of a task: stop those that run, take out of the queue those that wait."""

    def plan(state: State, _: Blobs | None) -> Iterable[Wish]:
        found = shapes.find_task(state, task)
        mine = [job for job in dict.fromkeys(jobs) if _is_pending(state, found, job)]
        for part in sliced(mine):
            request = r.CancelJobs(**who("cancel", reason), task=task, jobs=part)
            yield Wish(request, tuple(Change("cancel", task=task, job=job) for job in part))

    done = carry_out(settings, plan, dry_run=dry_run, wait=wait)
    return report(Output(settings), done, "cancel", dry_run, exit_code)


def _is_pending(state: State, task: TaskState, job: str) -> bool:
    index = state.job_index.get(job)
    return index is not None and (index in task.queue or index in task.awaiting or index in task.episodes)


@command("retry", example="datatask retry resize cat\ndatatask retry resize --failed\ndatatask retry --stale")
@click.argument("task", required=False)
@click.argument("jobs", nargs=-1, type=JOB, metavar="[JOB]...")
@click.option("--failed", is_flag=True, help="All jobs whose last run failed.")
@click.option("--stale", is_flag=True, help="All jobs whose result is out of date, of TASK or of all tasks.")
@changing
def retry(
    settings: Settings,
    task: str | None,
    jobs: tuple[str, ...],
    failed: bool,
    stale: bool,
    dry_run: bool,
    reason: str,
    exit_code: bool,
) -> int:
    """Run jobs of a task again whose last run has ended."""
    if bool(jobs) + failed + stale != 1 or (task is None and not stale):
        raise InvalidValueError(
            "retry takes a task with jobs or --failed, or --stale",
            remedy=f"see `{settings.program} retry --help`",
        )
    outdated = _stale(settings, task) if stale else {}

    def plan(state: State, _: Blobs | None) -> Iterable[Wish]:
        wanted = outdated
        if task is not None and not stale:
            found = shapes.find_task(state, task)
            wanted = {task: state.members(found.failed.id) if failed else list(dict.fromkeys(jobs))}
        for name, mine in wanted.items():
            for part in sliced(mine):
                request = r.RetryJobs(**who("retry", reason), task=name, jobs=part)
                yield Wish(request, tuple(Change("retry", task=name, job=job) for job in part))

    return report(Output(settings), carry_out(settings, plan, dry_run=dry_run), "retry", dry_run, exit_code)


def _stale(settings: Settings, task: str | None) -> dict[str, list[str]]:
    """Return the jobs whose results are out of date, by task in the order of the definition."""
    from datatask.adapters.history.stale import find_stale

    with recorded(settings) as log:
        state = log.state
        if task is not None:
            shapes.find_task(state, task)
        found = find_stale(log.reader, state).stale
        return {
            name: [state.jobs[job] for job in jobs] for name, jobs in found.items() if task in (None, name)
        }


@command("pause", example="datatask pause resize --reason 'disk is nearly full'")
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@changing
def pause(settings: Settings, tasks: tuple[str, ...], dry_run: bool, reason: str, exit_code: bool) -> int:
    """Launch no more jobs of these tasks; what runs goes on."""
    return _mark(settings, "pause", tasks, dry_run, reason, exit_code)


@command("resume", example="datatask resume resize")
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@changing
def resume(settings: Settings, tasks: tuple[str, ...], dry_run: bool, reason: str, exit_code: bool) -> int:
    """Launch jobs of paused tasks again."""
    return _mark(settings, "resume", tasks, dry_run, reason, exit_code)


def _mark(
    settings: Settings, verb: str, tasks: Sequence[str], dry_run: bool, reason: str, wanted: bool
) -> int:
    kind = r.PauseTask if verb == "pause" else r.ResumeTask

    def plan(state: State, _: Blobs | None) -> Iterable[Wish]:
        found = [shapes.find_task(state, task) for task in dict.fromkeys(tasks)]
        for task in found:
            if bool(task.paused) is (verb == "resume"):
                yield Wish(kind(**who(verb, reason), task=task.name), (Change(verb, task=task.name),))

    return report(Output(settings), carry_out(settings, plan, dry_run=dry_run), verb, dry_run, wanted)


LAUNCHES = "launches"
NO_LIMIT = "none"


@command(
    "quota",
    example="datatask quota default cpu=8 mem=16Gi\ndatatask quota default launches=30 --reason 'the API is slow'\n"
    "datatask quota default launches=none --dry-run",
)
@click.argument("name")
@click.argument("limits", nargs=-1, required=True, metavar="WHAT=AMOUNT...")
@changing
def quota(
    settings: Settings, name: str, limits: tuple[str, ...], dry_run: bool, reason: str, exit_code: bool
) -> int:
    """Change limits of a quota; what runs goes on, and limits that are not named stay.

    WHAT is cpu, mem, a resource of your own, or launches (in each window; none: as many as there are).
    """
    given = dict(_limit(text) for text in limits)

    def plan(state: State, _: Blobs | None) -> Iterable[Wish]:
        found = state.quotas.get(name)
        if found is None:
            raise unknown("quota", name, state.quotas)
        wanted = _amounts(state, found, name, given)
        launches = given.get(LAUNCHES, found.launches)
        changes = tuple(_changes(name, found, wanted, launches))
        if changes:
            request = r.ChangeQuota(**who("quota", reason), quota=name, limits=wanted, launches=launches)
            yield Wish(request, changes)

    return report(Output(settings), carry_out(settings, plan, dry_run=dry_run), "quota", dry_run, exit_code)


def _limit(text: str) -> tuple[str, int | None]:
    """Return the name and the amount (launches as they are, the rest in billionths) of `cpu=8`."""
    what, equals, amount = text.partition("=")
    if not equals or not what:
        raise InvalidValueError(f"{text!r:.80} is no limit", remedy="write cpu=8, mem=16Gi, launches=30")
    if what == LAUNCHES:
        if amount == NO_LIMIT:
            return what, None
        if not (amount.isascii() and amount.isdigit()):
            raise InvalidValueError(
                f"{amount!r:.80} is no number of launches", where=what, remedy="write launches=30"
            )
        return what, int(amount)
    quantity = parse_amount(what, amount)
    if quantity < 0:
        raise InvalidValueError(f"{amount} is less than nothing", where=what, remedy="give 0 or more")
    return what, to_nano(quantity)


def _amounts(state: State, found: QuotaState, name: str, given: Mapping[str, int | None]) -> dict[str, int]:
    """Return all limits as they will be; a name that nothing asks for is more likely a slip than a wish."""
    asked = {
        what
        for task in state.tasks.values()
        if task.definition.quota == name
        for request in task.definition.requests
        for what in request
    }
    known = {"cpu", "mem", *found.limits, *found.definition.limits, *asked}
    for what in given:
        if what != LAUNCHES and what not in known:
            raise UnknownNameError(f"{name} has no {what}", remedy=one_of({*known, LAUNCHES}, what))
    wanted = found.limits | {
        what: amount for what, amount in given.items() if what != LAUNCHES and amount is not None
    }
    return {what: amount for what, amount in wanted.items() if amount}


def _changes(
    name: str, found: QuotaState, wanted: Mapping[str, int], launches: int | None
) -> Iterable[Change]:
    before, after = shapes.units(found.limits), shapes.units(dict(wanted))
    for what in sorted({*before, *after}):
        if before.get(what, 0) != after.get(what, 0):
            yield Change("limit", about=f"{name}.{what} {before.get(what, 0)} -> {after.get(what, 0)}")
    if launches != found.launches:
        old, new = (NO_LIMIT if number is None else number for number in (found.launches, launches))
        yield Change("limit", about=f"{name}.{LAUNCHES} {old} -> {new}")
