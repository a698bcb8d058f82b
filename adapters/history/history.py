"""One door to a log's past: `History(place)`.

In: a log's URL or path; points in time as positions, ISO times, ages or Python's own. Out: states, explanations and
tables. Every answer is about a batch boundary and cites positions. Nothing is written into the log, no engine is
needed, and none is in the way.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload

from datatask.adapters.clock import SystemClock
from datatask.adapters.history import shapes
from datatask.adapters.history.compare import Declaring, LogComparison, Progress, compare, other_definition
from datatask.adapters.history.events import Selection, select
from datatask.adapters.history.explain import surroundings, table_of, with_events
from datatask.adapters.history.lineage import Direction, Lineage
from datatask.adapters.history.lineage_search import LIMIT, Lineages, start_of
from datatask.adapters.history.moments import Moment, When, parse_when, position_of
from datatask.adapters.history.printed import printed_by, run_of
from datatask.adapters.history.runs import RUN_FIELDS, RunFilter, find_runs, group_runs
from datatask.adapters.history.shapes import Table
from datatask.adapters.history.stale import Causes, find_stale
from datatask.adapters.history.stale import shape as stale_shape
from datatask.adapters.history.states import fold
from datatask.adapters.history.timeline import Timeline
from datatask.adapters.history.timeline_spans import timeline
from datatask.adapters.history.waits import USUAL, WaitQuery, find_intervals, sum_up
from datatask.adapters.log.locate import locate
from datatask.adapters.log.log_file import Parameters
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.state import State
from datatask.engine.explain import why as explaining
from datatask.engine.explain.explanations import Explanation
from datatask.engine.ports import Filters
from datatask.engine.waits.intervals import Interval
from datatask.schema.definition import PipelineDef
from datatask.schema.events import Recorded
from datatask.schema.messages import Printed
from datatask.schema.units import iso, nanoseconds
from datatask.schema.values import check_job

if TYPE_CHECKING:
    from datatask.adapters.history.export.files import Format, Written

"""A position, an ISO time or an age such as `-2h`, a time, an age as a timedelta; None is the head."""

Names = str | Sequence[str]
"""One name, or several of which one must hold; none does not restrict."""


class History:
    """What a log remembers. Close it, or use it in a `with`; states that it returns are not to be changed."""

    def __init__(self, place: str | Path, *, archives: bool = False) -> None:
        """Open the log at a URL or path, read only, with `archives` as if nothing of it had been archived.

        `CallerError` when there is none, or an archive is missing.
        """
        self.reader = _whole(place) if archives else LogReader(place)
        self._last: State | None = None

    @property
    def url(self) -> str:
        """Where the log is."""
        return self.reader.url

    @property
    def head(self) -> int:
        """The last durable position."""
        return self.reader.head

    def position(self, at: Moment = None) -> int:
        """Return the batch boundary that `at` means."""
        return position_of(self.reader, _when(at))

    def state(self, at: Moment = None) -> State:
        """Return the state at a batch boundary; the last one is kept for the next question."""
        until = self.position(at)
        if self._last is None or self._last.position != until:
            self._last = fold(self.reader, until)
        return self._last

    def status(self, at: Moment = None) -> shapes.Status:
        """Return the counts per task and link, a dict in the shape of `status --json`; a notebook shows tables."""
        state = self.state(at)
        about = {"url": self.url, "head": state.position, "at": iso(state.at or None)}
        return shapes.Status({"log": about, **shapes.status(state)})

    def logs(self, task: str, job: str, run: int | None = None) -> list[Printed]:
        """Return what a job's last run in a task printed, or another run, by stream; empty where nothing is kept."""
        state = self.state()
        shapes.find_task(state, task)
        number = run_of(self.reader, state, task, check_job(job), run)
        return printed_by(self.reader, [number]).get(number, [])

    def stale(self, at: Moment = None) -> Table:
        """Return the results that are out of date, a row each: task, job, and what made it so."""
        state = self.state(at)
        found = find_stale(self.reader, state)
        causes = Causes(self.reader, state, found)
        rows = (
            (task, state.jobs[job], stale_shape(causes.of(state.tasks[task], job)))
            for task, jobs in found.stale.items()
            for job in jobs
        )
        return Table(("task", "job", "causes"), rows)

    @overload
    def why(self, task: str, job: str, at: Moment = None) -> Explanation: ...
    @overload
    def why(self, task: str, job: None = None, at: Moment = None) -> Table: ...
    def why(self, task: str, job: str | None = None, at: Moment = None) -> Explanation | Table:
        """Return all that holds a job back, or held it back at `at`, and the smallest set that would let it run.

        `events` of the answer are those that it cites. Without `job` the task's waiting jobs by reason, a row each.
        """
        state = self.state(at)
        shapes.find_task(state, task)
        around = surroundings(self.reader, state, past=at is not None)._asdict()
        if job is None:
            return table_of(explaining.explain_all(state, task, **around))
        found = explaining.explain(state, task, check_job(job), **around)
        return with_events(self.reader, state, found)

    def trace(self, job: str, at: Moment = None) -> Timeline:
        """Return a job's way through every task as a time line; a notebook draws it."""
        return timeline(self.reader, self.state(at), job)

    def lineage(
        self,
        what: str | int,
        at: Moment = None,
        *,
        direction: Direction = "both",
        depth: int | None = None,
        limit: int = LIMIT,
        whole: bool | None = None,
    ) -> Lineage:
        """Return what `JOB`, `JOB@REPOSITORY` or the value or run at a position came from, and what came from it.

        At most `depth` runs away and `limit` values and runs. `whole` looks through the log for readers of other
        jobs; None does where the log behind is short.
        """
        state = self.state(at)
        start = start_of(self.reader, state, what)
        following = Lineages(self.reader, state)
        return following.follow(start, direction, depth=depth, limit=limit, whole=whole)

    def waiting(
        self,
        task: str | None = None,
        job: str | None = None,
        *,
        by: Names = USUAL,
        since: Moment = None,
        at: Moment = None,
    ) -> Table:
        """Return where the time went that jobs waited: a row for each combination of `by` that occurs.

        `by` are some of `task`, `host`, `day` (UTC), `job` and `cause`. The other columns: `seconds`, and exact
        `nanoseconds`; `share` of what else is the same; `episodes`, and how many of them are `open`; and `mean`,
        `p50`, `p95`, `max` over episodes, in seconds: of the cause where causes are told apart, else of all but
        `running` and `collecting`. What is open counts up to `at`. `UnknownNameError` for names that are none.
        """
        return sum_up(self.reader, WaitQuery(task, job, _when(since), _when(at)), _names(by)).rows

    def intervals(self, task: str | None, job: str, at: Moment = None) -> list[Interval]:
        """Return what a job's time went to, for one task or (None) for each, by task and time, without gaps.

        Every interval has one cause, its nanoseconds, and the positions of the events that begin and end it;
        `ended` is None where it still goes on at `at`.
        """
        return find_intervals(self.reader, WaitQuery(task, job, at=_when(at)))

    def events(
        self,
        *,
        task: Names = (),
        job: Names = (),
        repository: Names = (),
        kind: Names = (),
        run: int | Sequence[int] = (),
        actor: Names = (),
        text: str = "",
        since: Moment = None,
        until: Moment = None,
        caused_by: int | None = None,
        causes_of: int | None = None,
        last: int | None = None,
        newest_first: bool = False,
    ) -> Iterator[Recorded]:
        """Yield events, oldest first; what is given must hold, of several names one (`datatask log` has the same).

        An `actor` is `engine`, a user, `user@host`, or all of `user@host: command`; `caused_by` and `causes_of` are
        positions whose consequences or causes are asked for, however indirect.
        """
        filters = _filters(kind, task, repository, job, run, actor, text)
        span = _when(since), _when(until)
        return select(self.reader, Selection(filters, *span, None, caused_by, causes_of, last, newest_first))

    def runs(
        self,
        *,
        task: Names = (),
        job: Names = (),
        state: Names = (),
        where: Names = (),
        since: Moment = None,
        until: Moment = None,
        active_between: tuple[Moment, Moment] | None = None,
        at: Moment = None,
        by: Names = (),
        sort: str | None = None,
        last: int | None = None,
        newest_first: bool = False,
    ) -> Table:
        """Return runs, or with `by` groups of them, in the shape of `runs --json`; times are ISO, durations seconds.

        `where` takes patterns (`node-*`); `active_between` asks for what was going on then, `at` for what was
        known then. `CallerError` names what can be sorted or grouped by.
        """
        tasks, jobs, states, places = map(_names, (task, job, state, where))
        wanted = RunFilter(tasks, jobs, states, places, _when(since), _when(until))
        if active_between is not None:
            begin, end = map(_when, active_between)
            wanted = wanted._replace(active=(begin or When(position=1), end or When(position=self.head)))
        wanted = wanted._replace(at=_when(at))
        order: dict[str, Any] = {"last": last, "newest_first": newest_first}
        if by:
            return Table(*group_runs(self.reader, wanted, by=_names(by), sort=sort, **order))
        found = find_runs(self.reader, wanted, sort=sort or "decided", **order)
        return Table(RUN_FIELDS, (tuple(row.values()) for row in found))

    def against(
        self, other: PipelineDef | Declaring | str | Path, at: Moment = None, progress: Progress | None = None
    ) -> LogComparison:
        """Return what would have been different under another definition: a value, a pipeline, a JSON file, a log.

        A pipeline is declared, not run. `differences` has the shape of `replay --json`.
        """
        return compare(self.reader, other_definition(other), self.position(at), progress)

    def export(
        self,
        target: str | Path,
        *,
        format: Format | None = None,
        tables: Names = (),
        task: Names = (),
        job: Names = (),
        repository: Names = (),
        kind: Names = (),
        run: int | Sequence[int] = (),
        actor: Names = (),
        text: str = "",
        since: Moment = None,
        until: Moment = None,
        at: Moment = None,
        force: bool = False,
    ) -> list[Written]:
        """Write the log as Parquet, CSV, JSON lines or OpenLineage, each file whole or not at all; return which.

        Without a `format` the target's name says it, without `tables` all of Parquet are written, else the events.
        """
        from datatask.adapters.history.export.files import Order, export
        from datatask.adapters.history.export.tables import Wanted as Rows

        filters = _filters(kind, task, repository, job, run, actor, text)
        wanted = Rows(filters, _when(since), _when(until))
        order = Order(str(target), format, _names(tables), wanted, force)
        return export(self.reader, self.state(at), order)

    def query(self, sql: str, parameters: Parameters = (), *, timeout_seconds: float = 60.0) -> Table:
        """Answer one SELECT over the views `events`, `runs`, `values_now` and `lineage`.

        `parameters` are a sequence for `?` or a mapping for `:name`; `TimeLimitError` when it takes too long. It works in this
        process: bounded are the time between two steps of SQLite, one value (64 MiB) and the answer (1 GiB), not memory.
        """
        answer = self.reader.query(sql, parameters, timeout_seconds=timeout_seconds)
        return Table(answer.columns, answer.rows)

    def close(self) -> None:
        """Let go of the file; again is fine."""
        self.reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<History of {self.reader.pipeline}: {self.url}, head {self.head}>"


def _whole(place: str | Path) -> LogReader:
    from datatask.adapters.log.maintenance.restored import WholeReader

    path = locate(place).path
    return LogReader(place) if path is None else WholeReader(path)


def _names(given: Names) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _filters(
    kind: Names, task: Names, repository: Names, job: Names, run: int | Sequence[int], actor: Names, text: str
) -> Filters:
    runs = (run,) if isinstance(run, int) else tuple(run)
    kinds, tasks, repositories, jobs, actors = map(_names, (kind, task, repository, job, actor))
    return Filters(kinds, tasks, repositories, jobs, runs, actors, text=text)


def _when(at: Moment) -> When | None:
    match at:
        case None | When():
            return at
        case int():
            return When(position=at)
        case str():
            return parse_when(at, SystemClock().now())
        case dt.datetime():
            return When(at=nanoseconds(at if at.tzinfo is not None else at.astimezone()))
        case dt.timedelta():
            return When(at=max(0, SystemClock().now() - abs(at) // dt.timedelta(microseconds=1) * 1000))


@overload
def why(place: str | Path, task: str, job: str, *, at: Moment = None) -> Explanation: ...
@overload
def why(place: str | Path, task: str, job: None = None, *, at: Moment = None) -> Table: ...
def why(place: str | Path, task: str, job: str | None = None, *, at: Moment = None) -> Explanation | Table:
    """Return why a job of the log at a URL or path does not run, and the least that would let it.

    Without `job` all waiting jobs of the task by reason, a row each: `what`, `count`, `explain`, `sample` (ids of a few),
    `until` (the ISO time at which the first is due, where time heals it). A notebook shows both. `CallerError` where there
    is no log, `UnknownNameError` for a task that is none.
    """
    with History(place) as history:
        return history.why(task, at=at) if job is None else history.why(task, job, at=at)
