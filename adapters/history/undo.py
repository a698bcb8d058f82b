"""What takes back the changes that a person made, as far as that can be: a plan, which changes nothing.

In: a log, its state, and which changes. Out: an `Undo`: values to put as they were, jobs to delete, tasks to pause or resume, limits to set;
and what cannot be taken back, in words. Only what is still as the person left it is taken back: what was changed since stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from datatask.adapters.history.events import actors_named
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.cells import get_at
from datatask.engine.core.redaction import is_redacted
from datatask.engine.core.state import State
from datatask.engine.ports import Blobs, Filters
from datatask.schema import events as e
from datatask.schema.errors import NotPossibleError, UnknownNameError
from datatask.schema.messages import Item

Key = tuple[str, str]
"""(repository, job)"""


class Undo(NamedTuple):
    """What takes changes back, in this order; `left` tells what cannot be taken back."""

    puts: dict[str, list[Item]]
    deletes: dict[str, list[str]]
    pauses: dict[str, bool]
    quotas: dict[str, tuple[dict[str, int], int | None]]
    accepted: dict[tuple[str, bool], list[str]]
    """Jobs whose results are to be accepted, or no more (True), by task."""
    left: list[str]


class Changes:
    """The changes of people in a log that are to be taken back, by what they are about."""

    def __init__(self, reader: LogReader, state: State, blobs: Blobs | None) -> None:
        self._reader, self._state, self._blobs = reader, state, blobs
        self._values: dict[Key, list[int]] = {}
        self._pauses: dict[str, list[int]] = {}
        self._quotas: dict[str, list[int]] = {}
        self._accepted: dict[Key, list[tuple[int, bool]]] = {}
        self._left: list[str] = []

    def at(self, position: int) -> Changes:
        """Take the change at a position, with all that the same request led to."""
        if not 0 < position <= self._state.position:
            raise UnknownNameError(
                f"there is no event at position {position}",
                remedy=f"name one from 1 to {self._state.position}",
            )
        (event,) = self._reader.fetch([position])
        if event.actor == e.ENGINE or event.run is not None:
            raise NotPossibleError(
                f"the {type(event).__name__} at position {position} is no change that a person made",
                remedy="`datatask log --actor NAME` lists those of a person",
            )
        request = getattr(event, "request", None)
        if request is None:
            self._take(position, event)
            return self
        for found in self._reader.read(0, self._state.position, Filters(actors=(event.actor,))):
            if getattr(found.event, "request", None) == request:
                self._take(found.position, found.event)
        return self

    def since(self, position: int, actor: str) -> Changes:
        """Take all changes behind a position by an actor: its whole name, `user@host`, or the user."""
        filters = Filters(actors=actors_named(self._reader, (actor,)))
        for found in self._reader.read(position, self._state.position, filters):
            if found.event.run is None:
                self._take(found.position, found.event)
        return self

    def _take(self, position: int, event: e.Event) -> None:
        match event:
            case e.ValuePut() | e.ValueDeleted():
                self._values.setdefault((event.repository, event.job), []).append(position)
            case e.TaskPaused() | e.TaskResumed():
                self._pauses.setdefault(event.task, []).append(position)
            case e.ResultAccepted():
                self._accepted.setdefault((event.task, event.job), []).append((position, event.withdrawn))
            case e.QuotaChanged():
                self._quotas.setdefault(event.quota, []).append(position)
            case e.RetryRequested() | e.LaunchDecided():
                self._ran(position, event)
            case e.CancelRequested():
                self._left.append(
                    f"{event.task} {event.job}: it was cancelled (position {position}): see `datatask retry`"
                )
            case e.PayloadRedacted() | e.RepositorySynced():
                self._left.append(f"the {type(event).__name__} at position {position}: what is gone is gone")
            case _:
                pass  # opening and closing change nothing that could be taken back

    def _ran(self, position: int, event: e.RetryRequested | e.LaunchDecided) -> None:
        state = self._state
        task, job = state.tasks.get(event.task), state.job_index[event.job]
        if task is not None and (run := get_at(task.last_run, job)) >= position:
            self._left.append(
                f"{event.task} {event.job}: run {run} has been launched since position {position}"
            )

    def undo(self) -> Undo:
        """Return what takes the changes back."""
        found = Undo({}, {}, {}, {}, {}, self._left)
        for key, positions in self._values.items():
            self._value(found, key, positions)
        for task, positions in self._pauses.items():
            self._pause(found, task, positions)
        for quota, positions in self._quotas.items():
            self._quota(found, quota, positions)
        for key, changes in self._accepted.items():
            self._acceptance(found, key, changes)
        return found

    def _value(self, found: Undo, key: Key, positions: list[int]) -> None:
        repository, job = key
        leaf = self._state.leaves.get(repository)
        if leaf is None:
            found.left.append(f"{repository} {job}: the pipeline no longer has {repository}")
            return
        now = get_at(leaf.positions, self._state.job_index[job])
        if abs(now) > positions[-1]:
            found.left.append(f"{repository} {job}: it was changed again at position {abs(now)}")
            return
        before = self._before(key, positions[0])
        if before is None:
            if now > 0:
                found.deletes.setdefault(repository, []).append(job)
        elif (item := self._item(before)) is not None:
            found.puts.setdefault(repository, []).append(item)
        else:
            found.left.append(f"{repository} {job}: the log does not have the value that it had before")

    def _before(self, key: Key, position: int) -> e.ValuePut | None:
        """Return the value before a position, None where there was none."""
        filters = Filters(kinds=("ValuePut", "ValueDeleted"), repositories=(key[0],), jobs=(key[1],))
        last = next(
            (one.event for one in self._reader.read_back(0, position - 1, filters, page_rows=1)), None
        )
        return last if isinstance(last, e.ValuePut) else None

    def _item(self, put: e.ValuePut) -> Item | None:
        if is_redacted(put):
            return None
        if put.value:
            return Item(job=put.job, value=put.value)
        if put.digest is None:
            return None
        if self._blobs is not None:
            try:
                self._blobs.path(put.digest)
            except UnknownNameError:
                return None  # retention has removed it
        return Item(job=put.job, digest=put.digest, size=put.size)

    def _pause(self, found: Undo, task: str, positions: list[int]) -> None:
        (first,) = self._reader.fetch([positions[0]])
        was = isinstance(first, e.TaskResumed)
        if task in self._state.tasks and bool(self._state.tasks[task].paused) is not was:
            found.pauses[task] = was

    def _acceptance(self, found: Undo, key: Key, changes: list[tuple[int, bool]]) -> None:
        (task, job), (position, withdrawn) = key, changes[-1]
        now = self._state.accepted.get(task, {}).get(self._state.job_index[job], 0)
        if task not in self._state.tasks or now >= position:
            found.left.append(f"{task} {job}: its result was accepted again, or is no more")
        elif bool(now) is not withdrawn:
            found.accepted.setdefault((task, not withdrawn), []).append(job)

    def _quota(self, found: Undo, quota: str, positions: list[int]) -> None:
        now = self._state.quotas.get(quota)
        if now is None:
            found.left.append(f"quota {quota}: the pipeline no longer has it")
            return
        filters = Filters(kinds=("QuotaChanged", "PipelineDefined"))
        last = next(self._limits(quota, self._reader.read_back(0, self._state.position, filters)), None)
        if last is not None and last[0] > positions[-1]:
            found.left.append(f"quota {quota}: it was changed again at position {last[0]}")
            return
        before = next(self._limits(quota, self._reader.read_back(0, positions[0] - 1, filters)), None)
        if before is not None:
            found.quotas[quota] = before[1], before[2]

    def _limits(
        self, quota: str, events: Iterator[e.Recorded]
    ) -> Iterator[tuple[int, dict[str, int], int | None]]:
        """Yield what events make of a quota's limits, the newest first."""
        for position, event in events:
            if isinstance(event, e.QuotaChanged) and event.quota == quota:
                yield position, event.limits, event.launches
            elif isinstance(event, e.PipelineDefined):
                for one in event.definition.quotas:
                    if one.name == quota:
                        yield position, one.limits, one.launches
