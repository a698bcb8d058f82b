"""`run` and `update`: the engine at work, how it is going, and what to look at afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from datatask.adapters.cli import progress as showing
from datatask.adapters.cli.asking import ANSWER_SECONDS
from datatask.adapters.cli.commands import Span, changing, choosing, command
from datatask.adapters.cli.errand import Change, Done, who
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.progress import Progress
from datatask.adapters.cli.settings import Settings, near
from datatask.adapters.history.verify.progress import UpTo, verified
from datatask.adapters.log.locate import locate
from datatask.adapters.log.reader import LogReader
from datatask.adapters.wiring.choosing import Choice
from datatask.adapters.wiring.event_loop import run_in_loop
from datatask.adapters.wiring.last_bound import guard
from datatask.adapters.wiring.rounds import BLOCKED, INTERRUPTED, SPARE_SECONDS, Interrupts
from datatask.engine.core.cells import get_at
from datatask.schema.errors import DatataskError, InvalidValueError, LeaseHeldError, TimeLimitError
from datatask.schema.messages import AcceptLoss
from datatask.schema.troubles import shown
from datatask.schema.units import duration_words

if TYPE_CHECKING:
    from datatask.adapters.wiring.pipeline import Pipeline
    from datatask.adapters.wiring.rounds import Outcome

TIMED_OUT = 7
CLOSING_SHARE = 0.9
"""The part of the grace that an orderly end after a time-out may take; the rest, and a second, is for a busy machine."""
TOLD_MAX = 5


@command(
    "run",
    example="datatask run\ndatatask run --forever\ndatatask -p pipeline.py run --timeout 3600 --failures-ok\n"
    "datatask run resize --jobs 'lab-* - resize.failed' --limit 10\ndatatask run --until train",
)
@choosing
@click.option("--accept-loss", multiple=True, metavar="REPO",
              help="Believe that what vanished from this repository, or with it, is gone.")  # fmt: skip
@click.option("--failures-ok", is_flag=True, help="Exit with 0 although the last run of some jobs failed.")
@click.option("--timeout", type=Span(min=0, min_open=True), metavar="S",
              help="Stop after this many seconds (exit code 7).")  # fmt: skip
@click.option("--grace", type=Span(min=0), metavar="S",
              help="Once it is to end, wait for what runs, and for what is slow, so many seconds at most (10).")  # fmt: skip
@click.option("--launch-once", is_flag=True, help="Launch what is ready now, and nothing after that.")
@click.option("--forever", is_flag=True, help="Do not stop when all is quiet: wait for more.")
@changing
def run(
    settings: Settings, forever: bool, launch_once: bool, timeout: float | None, grace: float | None,
    failures_ok: bool, accept_loss: tuple[str, ...], dry_run: bool, reason: str, exit_code: bool, choice: Choice,
) -> int:  # fmt: skip
    """Work until all is quiet: all tasks, or TASK..., or as chosen by --until, --jobs, --limit, which narrow each other.

    A first Ctrl-C launches nothing more and waits for what runs as long as --grace says, a second one abandons it. Exit codes: 0 done,
    1 jobs failed, 6 jobs wait for what cannot come, 7 time-out, 130 interrupted.
    """
    if forever and launch_once:
        raise InvalidValueError(
            "--forever and --launch-once contradict each other", remedy="leave out one of them"
        )
    pipeline = settings.load_pipeline()
    if dry_run:
        return _foretell(settings, pipeline, "run", exit_code, choice, accept_loss)
    if choice:
        from datatask.adapters.cli.recorded import declared_state

        choice.selection(declared_state(pipeline))  # a wrong name is refused before anything begins
    pipeline.accepted |= set(accept_loss)
    if grace is not None:
        pipeline.grace_seconds = grace
    work = _Work(settings, pipeline, failures_ok)
    try:
        return run_in_loop(work.run(timeout=timeout, choice=choice, forever=forever, launch_once=launch_once))
    except LeaseHeldError:
        _accept_elsewhere(pipeline, accept_loss, reason)
        raise


@command("update", example="datatask update\ndatatask update --dry-run")
@click.option("--failures-ok", is_flag=True, help="Exit with 0 although the last run of some jobs failed.")
@changing
def update(settings: Settings, failures_ok: bool, dry_run: bool, reason: str, exit_code: bool) -> int:
    """Work one round: look at the world, launch what may start, wait for what cannot run on by itself."""
    if dry_run:
        return _foretell(settings, settings.load_pipeline(), "update", exit_code, Choice())
    work = _Work(settings, settings.load_pipeline(), failures_ok)
    settings.load_pipeline().brief = True
    return run_in_loop(work.update())


def _foretell(
    settings: Settings,
    pipeline: Pipeline,
    verb: str,
    wanted: bool,
    choice: Choice,
    losses: Iterable[str] = (),
) -> int:
    """Tell what the first round would put in force and launch; `plan` tells more."""
    from datatask.adapters.cli.plan import foresee
    from datatask.adapters.cli.verbs import report

    foreseen = foresee(pipeline, choice, losses)
    changes = [
        Change("define", about=f"{found['op']} {found['what']} {found['name']}")
        for found in foreseen.differences
    ]
    changes += [
        Change("launch", task=decision.task, job=decision.job) for decision in foreseen.round.decisions
    ]
    return report(Output(settings), Done(changes, None, "none"), verb, True, wanted)


def _accept_elsewhere(pipeline: Pipeline, repositories: tuple[str, ...], reason: str) -> None:
    """Tell the engine that runs what it was to believe."""
    path = locate(pipeline.log_location()).path
    if not repositories or path is None:
        return
    from datatask.adapters.cli.errand import refused
    from datatask.adapters.log.inbox_client import ask

    for repository in repositories:
        request = AcceptLoss(**who("run", reason), repository=repository)
        reply = ask(path, request, timeout_seconds=ANSWER_SECONDS)
        if reply.refusal is not None:
            raise refused(reply.refusal)


class _Work:
    """One `run` or `update`: what it prints, and the exit code."""

    def __init__(self, settings: Settings, pipeline: Pipeline, failures_ok: bool) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._failures_ok = failures_ok
        self._output = Output(settings)
        self._choice = Choice()

    async def run(self, *, timeout: float | None, choice: Choice, **options: Any) -> int:
        """Open, work, tell, close. The time-out is for the work; opening may take half of the grace from the closing."""
        grace = self._pipeline.grace_seconds
        self._choice = choice
        options |= {name: getattr(choice, name) for name in ("tasks", "jobs", "until", "limit")}
        began = time.monotonic()
        if timeout is not None:
            seconds = timeout + grace + SPARE_SECONDS
            guard.within(seconds, TIMED_OUT, f"not ended {seconds:g} s after its start: {BLOCKED}")

        async def work(interrupts: Interrupts) -> int:
            if timeout is None:
                return await self._run(interrupts, options)
            late = time.monotonic() - began
            code = await self._run(
                interrupts, {**options, "timeout": min(timeout, timeout + grace / 2 - late)}, timeout
            )
            self._pipeline.hurry(began + timeout + CLOSING_SHARE * grace - time.monotonic())
            return code

        return await self._open(work, None if timeout is None else timeout + grace / 2)

    async def _open(self, work: Callable[[Interrupts], Awaitable[int]], seconds: float | None = None) -> int:
        """Open the pipeline, do the work, close it again; a signal ends each of these."""
        pipeline = self._pipeline
        with Interrupts(pipeline, self._output.say, guard=guard) as interrupts:
            try:
                try:
                    async with asyncio.timeout(seconds) as limit:
                        await pipeline.open()
                except TimeoutError:
                    if not limit.expired():
                        raise
                    raise TimeLimitError(
                        f"not open after {seconds:g} s", remedy="see `datatask doctor`"
                    ) from None
                try:
                    return await work(interrupts)
                finally:
                    await pipeline.close()
            except DatataskError:
                self._settings.interrupted = interrupts.count > 0
                raise
            except asyncio.CancelledError:
                interrupts.swallow()
                return INTERRUPTED

    async def _run(
        self, interrupts: Interrupts, options: dict[str, Any], timeout: float | None = None
    ) -> int:
        pipeline, progress = self._pipeline, Progress(self._pipeline)
        self._start()
        outcome: Outcome | None = None
        timed_out = False
        try:
            async with showing.shown(self._output, progress):
                outcome = await pipeline.run(**options)
        except TimeLimitError as limit:
            timed_out = True
            self._output.say(f"datatask: not quiet after {timeout:g} s; {limit.remedy}")
        except asyncio.CancelledError:
            interrupts.swallow()
        progress.close()
        outcome = outcome or pipeline.outcome()
        code = self._code(outcome, interrupted=interrupts.count > 0, timed_out=timed_out)
        self._tell(outcome, progress, code)
        return code

    async def update(self) -> int:
        """Open, work one round, wait for what would end with us, close."""
        return await self._open(self._update)

    async def _update(self, interrupts: Interrupts) -> int:
        pipeline = self._pipeline
        try:
            await pipeline.update()
            while pipeline.is_ending:
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            interrupts.swallow()
        failed = any(task.failed.count for task in pipeline.state.tasks.values())
        live = len(pipeline.state.open_runs)
        if self._output.json:
            self._output.document({"failed": failed, "live": live})
        return INTERRUPTED if interrupts.count else 1 if failed and not self._failures_ok else 0

    def _code(self, outcome: Outcome, *, interrupted: bool, timed_out: bool) -> int:
        if interrupted or outcome.interrupted:
            return INTERRUPTED
        if timed_out:
            return TIMED_OUT
        if outcome.failed and not self._failures_ok:
            return 1
        return 6 if outcome.stuck else 0

    def _start(self) -> None:
        if self._output.json or self._output.draws:
            return
        waiting = sum(len(task.queue) + len(task.awaiting) for task in self._pipeline.state.tasks.values())
        count = len(self._pipeline.tasks)
        self._output.progress(
            f"started: {count} task{'s' * (count != 1)}, {waiting} ready, log {self._place()}"
        )

    def _place(self) -> str:
        path = locate(self._pipeline.log_location()).path
        return "in memory" if path is None else near(path)

    def _tell(self, outcome: Outcome, progress: Progress, code: int) -> None:
        if self._output.json:
            self._output.document(self._shape(outcome, progress, code))
            return
        ended = sum(progress.ended.values())
        parts = [f"{count} {name}" for name, count in sorted(progress.ended.items())]
        if (known := self._verified()) is not None and known.is_far_behind:
            self._output.say(str(known))
        word = {INTERRUPTED: "interrupted", TIMED_OUT: "stopped", 6: "stuck"}.get(code, "done")
        runs = f"{ended} run{'s' * (ended != 1)}" + (f" ({', '.join(parts)})" if parts else "")
        self._output.line(f"{word} after {duration_words(progress.seconds)}: {runs}")
        for line in [*self._outputs(), *self._advice(outcome)]:
            self._output.line(shown(line))

    def _verified(self) -> UpTo | None:
        """Return how far the log is known to hold: by this engine, else by those before it."""
        path = locate(self._pipeline.log_location()).path
        if path is None:
            return None
        with LogReader(path) as reader:
            known = verified(reader)
        return known._replace(position=max(known.position, self._pipeline.verified))

    def _outputs(self) -> list[str]:
        """Return where the tasks' output files are: the newest one of each link, and how many more there are."""
        from datatask.adapters.store.files import FileRepositoryBase

        lines = []
        for name, task in self._pipeline.tasks.items():
            for link, repository in task.output.items():
                if isinstance(repository, FileRepositoryBase) and (newest := self._newest(repository.id)):
                    count = self._pipeline.state.leaves[repository.id].count
                    more = f" and {count - 1} more" if count > 1 else ""
                    lines.append(f"output: {name}.{link}: {near(repository.fullpath(newest))}{more}")
        return lines

    def _newest(self, repository: str) -> str | None:
        state = self._pipeline.state
        leaf = state.leaves[repository]
        newest = max(leaf.members(state.masks), key=lambda job: leaf.positions[job], default=None)
        return None if newest is None else state.jobs[newest]

    def _advice(self, outcome: Outcome) -> list[str]:
        """Return what is not as it should be, each with a command that explains it."""
        if locate(self._pipeline.log_location()).path is None:
            return [f"stuck: {reason}: {count} jobs" for reason, count in outcome.stuck.items()]
        state = self._pipeline.state
        lines = []
        selection = self._choice.selection(state)
        for name in self._pipeline.tasks:
            task = state.tasks[name]
            if selection is not None and selection.tasks and name not in selection.tasks:
                continue
            if task.failed.count:
                (first,) = [state.jobs[job] for job in list(task.failed.members(state.masks))[:1]]
                lines.append(f"failed: {name}: {task.failed.count} job{'s' * (task.failed.count != 1)}; see: "
                             + self._settings.command("why", name, first))  # fmt: skip
                lines += self._last_lines(name, first)
                lines.append(f"  what happened to it: {self._settings.command('trace', first)}")
                lines.append(f"  and when:            {self._settings.command('log', '--job', first)}")
        for reason, count in list(outcome.stuck.items())[:TOLD_MAX]:
            task_name = reason.partition(":")[0]
            see = f"; see: {self._settings.command('why', task_name)}" if task_name in state.tasks else ""
            lines.append(f"stuck: {reason}: {count} job{'s' * (count != 1)}{see}")
        lines += [f"{name} {line}" for name, line in self._outdated().items()]
        if state.open_runs:
            lines.append(f"still running: {len(state.open_runs)}; see: {self._settings.command('runs')}")
        return lines

    def _last_lines(self, task: str, job: str) -> list[str]:
        """Return the last lines that a job's last run printed."""
        from datatask.adapters.history.printed import last_lines, printed_by

        state, path = self._pipeline.state, locate(self._pipeline.log_location()).path
        run = get_at(state.tasks[task].last_run, state.job_index[job])
        assert path is not None, "a log in memory gives other advice"
        self._pipeline.engine.flush_printed()
        with LogReader(path) as reader:
            return [f"  | {line}" for line in last_lines(printed_by(reader, [run]).get(run, []))]

    def _outdated(self) -> dict[str, str]:
        """Return a sentence for each task that has results out of date."""
        from datatask.adapters.history.stale import counts, find_stale, stale_lines

        path = locate(self._pipeline.log_location()).path
        assert path is not None, "a log in memory gives other advice"
        with LogReader(path) as reader:
            return stale_lines(counts(find_stale(reader, self._pipeline.state)))

    def _shape(self, outcome: Outcome, progress: Progress, code: int) -> dict[str, Any]:
        return {
            "exit_code": code,
            "seconds": round(progress.seconds, 6),
            "launched": progress.launched,
            "ended": progress.ended,
            "failed": outcome.failed,
            "stuck": outcome.stuck,
            "interrupted": code == INTERRUPTED,
            "timed_out": code == TIMED_OUT,
            "log": self._pipeline.log_location(),
            "verified": None if (known := self._verified()) is None else known._asdict(),
        }
