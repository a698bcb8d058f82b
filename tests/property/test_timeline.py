"""Time lines of random lives say at each moment what the whole state said: the few events of a job are enough."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings

from datatask.adapters.history.states import fold
from datatask.adapters.history.timeline import Timeline
from datatask.adapters.history.timeline_spans import timeline
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.expressions import leaves_of
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import State
from datatask.engine.core.tasks import TaskState
from datatask.schema import events as e
from datatask.schema.definition import PipelineDef
from tests.property.logs import write_log
from tests.property.test_state import families
from tests.property.test_waiting import lived, lives
from tests.property.world import Action

RUNNING = ("starting", "running")


def seen(state: State, task: TaskState, job: int) -> str | None:
    """The slow twin: the phase that the whole state shows, None where nothing says it for certain."""
    episode = task.episodes.get(job)
    if episode is not None and episode.run:
        return "running" if state.open_runs[episode.run].started_at is not None else "starting"
    if episode is not None:
        return "retrying"
    if job in task.queue or job in task.awaiting:
        return "ready"
    if state.masks[job] & task.outcomes:
        return "ended"
    if state.masks[job] & task.claim or any(task.last_run[job : job + 1]):
        return None  # it has ended here before: whether that still counts is the time line's to say
    if all(task.name != one.name for one in state.definition.tasks):
        return "absent"  # its open runs are all that is left of it
    read = [link for link in task.definition.links if link.is_input or link.required_for_start]
    names = {name for link in read for name in leaves_of(link.expr)}
    return "waiting" if any(state.contains(name, state.jobs[job]) for name in names) else "absent"


def at(line: Timeline, task: str, moment: int) -> str:
    """Return the phase right after a moment."""
    (lane,) = [lane for lane in line.lanes if lane.task == task]
    for span in lane.spans:
        if span.began_at <= moment and (span.ended_at is None or span.ended_at > moment):
            return span.phase
    return "absent"


def moments(batches: list[tuple[e.Event, ...]]) -> Iterator[State]:
    """Yield the state after the last batch of each time."""
    state = State()
    for batch, following in zip(batches, [*batches[1:], ()], strict=True):
        apply_all(state, state.position + 1, batch)
        if not following or following[0].at != state.at:
            yield state


@settings(max_examples=settings().max_examples // 3)  # each writes a log to disk
@given(families(), lives)
def test_a_time_line_says_at_each_moment_what_the_state_said(
    family: tuple[PipelineDef, list[PipelineDef]], life: list[Action]
) -> None:
    """For every job, task and time of a life: definitions change on the way, stores are reset, engines die.

    Spans follow on each other, and each run of the log ends in one, with its outcome.
    """
    batches = lived(family, life)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.db"
        write_log(path, batches)
        with LogReader(path) as reader:
            final = fold(reader, reader.head)
            lines = {job: timeline(reader, final, job) for job in final.jobs}
    current = [task.name for task in final.definition.tasks]
    for state in moments(batches):
        for task in (state.tasks[name] for name in current if name in state.tasks):
            for job, index in state.job_index.items():
                expected = seen(state, task, index)
                if expected is not None:
                    assert at(lines[job], task.name, state.at) == expected, (job, task.name, state.position)
    spans = [lane.spans for line in lines.values() for lane in line.lanes]
    for lane in spans:
        for before, after in pairwise(lane):
            assert before.ended_at is not None
            assert before.ended_at <= after.began_at
    assert {
        span.run: span.outcome for lane in spans for span in lane if span.phase in RUNNING and span.outcome
    } == {
        event.run: event.outcome
        for batch in batches
        for event in batch
        if isinstance(event, e.RunEnded) and event.task in current
    }
