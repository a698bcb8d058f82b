"""One job's way through every task, as spans of time: waiting, ready, starting, running, retrying, ended.

In: a log and a job. Out: a `Timeline`, a lane a task, each a row of spans without gaps from the job's first
appearance in what the task reads. The spans are not guessed from events: the job's own events, and those of the
jobs that it translates to, are folded by the one fold there is, and what the state says at each batch boundary is
what the span says. That costs the index of one job, not the log. `timeline` draws and prints it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from datatask.adapters.history.states import beginning
from datatask.adapters.history.timeline import EVENTS_MAX, Lane, Phase, Span, Timeline
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.expressions import leaves_of
from datatask.engine.core.fold import apply
from datatask.engine.core.state import State
from datatask.engine.core.tasks import TaskState
from datatask.engine.ports import Filters
from datatask.schema import events as e
from datatask.schema.errors import UnknownNameError

FOLLOWED_JOBS_MAX = 64

_SECONDS = 600.0
_FRAME = ("PipelineDefined", "Renamed", "RepositoryReset")
_DEFINING = ("PipelineDefined", "Renamed")


def timeline(reader: LogReader, state: State, job: str) -> Timeline:
    """Return the job's time line up to the state's position; `UnknownNameError` where the log has no such job."""
    if job not in state.job_index:
        raise UnknownNameError(f"there is no job {job} in the log", remedy="list jobs with `datatask ls`")
    events, cut = _story(reader, state, job)
    return Timeline(
        job=job,
        position=state.position,
        until=state.at,
        lanes=_lanes(events, beginning(reader), state, job),
        cut=cut,
    )


# --- which events ---------------------------------------------------------------------------------------


def _story(reader: LogReader, state: State, job: str) -> tuple[list[e.Recorded], bool]:
    """Return the events that the job's way follows from, in order, and whether there are more."""
    followed, found, cut = [job], list[e.Recorded](), False
    for name in followed:  # grows: what a job translates to may translate in turn
        for event in reader.read(reader.header.base, state.position, filters=Filters(jobs=(name,))):
            if len(found) >= EVENTS_MAX:
                cut = True
                break
            found.append(event)
            target = _target(event.event)
            if target is not None and target not in followed:
                if len(followed) < FOLLOWED_JOBS_MAX:
                    followed.append(target)
                else:
                    cut = True
    found.sort(key=lambda recorded: recorded.position)
    frame = _frame(reader, state, found[0].position) if found else []
    return sorted([*frame, *found], key=lambda recorded: recorded.position), cut


def _target(event: e.Event) -> str | None:
    """Return the job that this evaluation says its job stands for in a translated repository."""
    if not isinstance(event, e.Evaluated) or event.what != "translation" or not event.value:
        return None
    value = msgspec.json.decode(event.value)
    return value if isinstance(value, str) else None


def _frame(reader: LogReader, state: State, first: int) -> list[e.Recorded]:
    """Return what concerns all jobs: the definition in force at `first`, and what changed it or emptied stores.

    A log without changes since `first` is asked for one event by its position; else the events about no job at
    all are looked through, which the index finds apart from the millions about one.
    """
    positions = [state.defined_at]
    if state.defined_at > first:
        before = _jobless(reader, _DEFINING[:1], 0, first, only_last=True)
        positions = before + _jobless(reader, _DEFINING, first, state.position)
    if state.defined_at > first or any(leaf.ephemeral for leaf in state.definition.repositories):
        positions += _jobless(reader, ("RepositoryReset",), first, state.position)
    positions = sorted({position for position in positions if position})
    return [
        e.Recorded(position, event)
        for position, event in zip(positions, reader.fetch(positions), strict=True)
        if type(event).__name__ in _FRAME
    ]


def _jobless(
    reader: LogReader, kinds: tuple[str, ...], after: int, until: int, *, only_last: bool = False
) -> list[int]:
    """Return the positions of events of these kinds, which are about no job, in (after, until]."""
    sql = (
        "SELECT position FROM log WHERE job IS NULL AND position > ? AND position <= ? AND kind IN"
        f" (SELECT id FROM names WHERE text IN ({', '.join('?' * len(kinds))})) ORDER BY position"
    )
    sql += " DESC LIMIT 1" if only_last else ""
    return [row[0] for row in reader.query(sql, (after, until, *kinds), timeout_seconds=_SECONDS).rows]


# --- what the state says after each ---------------------------------------------------------------------


class _Pen:
    """Draws one lane: closes a span when the phase changes, and opens the next."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.open: Span | None = None

    def move(self, span: Span | None, now: int) -> None:
        """From `now` on the job is in this span's phase; None: nowhere near the task."""
        before = self.open
        if before is not None and span is not None and _same(before, span):
            return
        self.close(now)
        self.open = span

    def close(self, now: int, **more: Any) -> None:
        """End the open span; one in which no time passed is kept only where a run ended in it."""
        if self.open is None:
            return
        if now > self.open.began_at or more:
            self.spans.append(msgspec.structs.replace(self.open, ended_at=now, **more))
        self.open = None


def _same(one: Span, other: Span) -> bool:
    return one.phase == other.phase and one.run == other.run and one.outcome == other.outcome


def _lanes(events: Iterable[e.Recorded], start: State, state: State, job: str) -> tuple[Lane, ...]:
    part, pens = start, dict[str, _Pen]()
    endings: dict[str, e.RunEnded] = {}
    _look(part, job, pens, endings, part.position)
    for position, moment in _moments(events):
        for recorded in moment:
            if _is_gone(part, recorded.event):
                continue
            _rename(recorded.event, pens, endings)
            part.position = recorded.position - 1
            apply(part, recorded.position, recorded.event)
            if isinstance(recorded.event, e.RunEnded) and recorded.event.job == job:
                endings[recorded.event.task] = recorded.event
                _end(pens, recorded)
        _look(part, job, pens, endings, position)
    lanes = []
    for task in state.definition.tasks:
        pen = pens.get(task.name, _Pen())
        spans = [*pen.spans, *([pen.open] if pen.open is not None else [])]
        lanes.append(Lane(task=task.name, spans=tuple(spans)))
    return tuple(lanes)


def _moments(events: Iterable[e.Recorded]) -> Iterator[tuple[int, list[e.Recorded]]]:
    """Yield events that belong together, with the last position: consecutive ones of the same time.

    What a run's events say of it is looked at after each, or a run that took no time would not be seen.
    """
    together: list[e.Recorded] = []
    for recorded in events:
        last = together[-1] if together else None
        if last is not None and (
            recorded.position != last.position + 1
            or recorded.event.at != last.event.at
            or isinstance(last.event, e.LaunchDecided | e.RunStarted | e.RunAdopted)
        ):
            yield last.position, together
            together = []
        together.append(recorded)
    if together:
        yield together[-1].position, together


def _is_gone(part: State, event: e.Event) -> bool:
    """Whether this is about a task or repository of before the first definition here: gone, and in no lane."""
    if event.repository is not None:
        return event.repository not in part.leaves
    return event.task is not None and event.task not in part.tasks


def _rename(event: e.Event, pens: dict[str, _Pen], endings: dict[str, e.RunEnded]) -> None:
    """A renamed task goes on in the same lane."""
    if isinstance(event, e.Renamed) and event.what == "task":
        if event.old in pens:
            pens[event.new] = pens.pop(event.old)
        if event.old in endings:
            endings[event.new] = endings.pop(event.old)


def _end(pens: dict[str, _Pen], recorded: e.Recorded) -> None:
    """Give the running span what its ending says."""
    event = recorded.event
    assert isinstance(event, e.RunEnded)
    pen = pens.setdefault(event.task, _Pen())
    if pen.open is not None and pen.open.run == event.run:
        more: dict[str, Any] = {
            "outcome": event.outcome,
            "exit_code": event.exit_code,
            "error": _words(event.error),
        }
        source = (event.detail or {}).get(e.REUSED)
        more["reused"] = None if source is None else int(source)
        pen.close(event.at, **more, where=event.where or pen.open.where)


def _words(error: e.ErrorInfo | None) -> str | None:
    return None if error is None else f"{error.type}: {error.message}"


def _look(
    part: State, job: str, pens: dict[str, _Pen], endings: dict[str, e.RunEnded], position: int
) -> None:
    index = part.job_index.get(job)
    if index is None:
        return
    for name, task in part.tasks.items():
        span = _span(part, task, index, endings.get(name), position)
        if span is not None and span.phase == "ready":
            endings.pop(name, None)  # a new episode: what ends it now is another ending
        pens.setdefault(name, _Pen()).move(span, part.at)
    for name, pen in pens.items():
        if name not in part.tasks:  # a definition without the task, until one has it again
            pen.move(None, part.at)


def _span(part: State, task: TaskState, job: int, ending: e.RunEnded | None, position: int) -> Span | None:
    """Return the span that begins now, as the state has the job in this task."""
    began: dict[str, Any] = {"began_at": part.at, "ended_at": None, "position": position}
    episode = task.episodes.get(job)
    if episode is not None and episode.run:
        run = part.open_runs[episode.run]
        phase: Phase = "starting" if run.started_at is None else "running"
        own = run.identities or None
        return Span(phase=phase, run=run.run, attempt=run.attempt, where=run.where, identities=own, **began)
    if episode is not None:
        return Span(phase="retrying", **began)
    if job in task.queue or job in task.awaiting:
        return Span(phase="ready", **began)
    mask = part.masks[job]
    if mask & (task.claim | task.outcomes) or (ending is not None and mask & _bits(part, task).done):
        if ending is None:  # cancelled while it waited
            return Span(phase="ended", outcome="cancelled", **began)
        error = _words(ending.error)
        return Span(
            phase="ended",
            run=ending.run,
            outcome=ending.outcome,
            exit_code=ending.exit_code,
            error=error,
            **began,
        )
    return Span(phase="waiting", **began) if mask & _bits(part, task).reads else None


class _Bits(NamedTuple):
    """The leaves in which a job shows up for a task (inputs and what it requires), and its own `done`."""

    reads: int
    done: int


def _bits(part: State, task: TaskState) -> _Bits:
    reads = 0
    for link in task.definition.links:
        if link.is_input or link.required_for_start:
            for name in leaves_of(link.expr):
                reads |= part.leaves[name].bit
    done = task.definition.done
    return _Bits(reads, part.leaves[done].bit if done is not None else 0)
