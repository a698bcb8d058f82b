"""Where a lineage is looked for: from a job, one of its values, or a position, upstream and downstream.

In: a log, its state, and a start. Out: a `Lineage`. Upstream is complete: a run's decision pins what it was decided
on, its end tells what it really read, and what it wrote stands right before that end. Downstream the readers are found
among the runs of the same job, and of jobs that stand for it in a translated repository, by the log's one index; any
other run may have read the value too, and only a look through the log behind it tells (`whole`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from datatask.adapters.history import shapes
from datatask.adapters.history.lineage import (
    Direction,
    Lineage,
    LineageRun,
    LineageValue,
    Written,
    digest_of,
    reads_of,
    size_of,
)
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.cells import get_at
from datatask.engine.core.decide import value_position
from datatask.engine.core.expressions import leaves_of
from datatask.engine.core.state import State
from datatask.engine.ports import Filters
from datatask.schema import events as e
from datatask.schema.errors import NotPossibleError, UnknownNameError

LIMIT = 1000
WHOLE_EVENTS_MAX = 100_000
"""The log is searched by default where at most this number of events follow the values."""

_KINDS = ("LaunchDecided", "RunStarted", "RunAdopted", "RunEnded", "ValuePut")
_JOB_EVENTS_MAX = 100_000
_SCAN_SECONDS = 3600.0
_WINDOW = 64


# --- where to start -----------------------------------------------------------------------------------


class Start(msgspec.Struct, frozen=True):
    """What is asked about: in words, and the positions of values and runs, or a job and all of its."""

    about: str
    positions: tuple[int, ...]
    job: str | None = None


def start_of(reader: LogReader, state: State, what: str | int) -> Start:
    """Return where a question about `JOB`, `JOB@REPOSITORY` or a position starts; `UnknownNameError` for what is not there."""
    if isinstance(what, int):
        return Start(f"position {what}", (_subject(reader, state, what),))
    job, _, repository = what.partition("@")
    if job not in state.job_index:
        raise UnknownNameError(f"there is no job {job} in the log", remedy="list jobs with `datatask ls`")
    if not repository:
        return Start(job, (), job)
    expr = shapes.find_link(state, repository)
    found = {_last_put(reader, state, leaf, job) for leaf in leaves_of(expr)} - {0}
    if not found:
        raise UnknownNameError(
            f"{job} has had no value in {repository}", remedy=f"see its values: datatask lineage {job}"
        )
    return Start(what, tuple(sorted(found)))


def _subject(reader: LogReader, state: State, position: int) -> int:
    """Return the value or run that the event at a position is about: its own position, or that of its run."""
    if not 0 < position <= state.position:
        raise UnknownNameError(
            f"there is no event at position {position}", remedy=f"name one from 1 to {state.position}"
        )
    (event,) = reader.fetch([position])
    if isinstance(event, e.ValuePut | e.LaunchDecided):
        return position
    if event.run is not None:
        return event.run
    raise NotPossibleError(
        f"the {type(event).__name__} at position {position} is about no value and no run",
        remedy="name the position of a ValuePut, or of an event of a run",
    )


def _last_put(reader: LogReader, state: State, leaf: str, job: str) -> int:
    """Return the position of the value that the job has in a leaf, else of the last one that it had; 0 for none."""
    now = value_position(state.leaves[leaf], state.job_index[job])
    if now:
        return now
    filters = Filters(kinds=("ValuePut",), repositories=(leaf,), jobs=(job,))
    return max((found.position for found in reader.read(until=state.position, filters=filters)), default=0)


# --- following ----------------------------------------------------------------------------------------


class Lineages:
    """Follows one question through a log; what was read of a job once is kept until the question is answered."""

    def __init__(self, reader: LogReader, state: State) -> None:
        self._reader, self._state = reader, state
        self._jobs: set[str] = set()
        self._runs: dict[int, LineageRun] = {}
        self._values: dict[int, LineageValue] = {}
        self._readers: dict[int, set[int]] = {}
        self._cut = False

    def follow(
        self,
        start: Start,
        direction: Direction = "both",
        *,
        depth: int | None = None,
        limit: int = LIMIT,
        whole: bool | None = None,
    ) -> Lineage:
        """Return what is upstream, downstream, or both, at most `depth` runs away and `limit` values and runs."""
        positions = start.positions or self._positions_of(start.job or "", limit)
        seen: dict[int, int] = {}
        looked_through = True
        if direction != "down":
            self._spread(positions, seen, self._above, depth, limit)
        if direction != "up":
            downward: dict[int, int] = {}
            looked_through = self._down(positions, downward, depth, limit, whole)
            seen |= downward
        kept = set(sorted(seen, key=lambda node: (seen[node], node))[:limit])
        cut = self._cut or len(kept) < len(seen)
        return self._graph(start.about, direction, positions, kept, looked_through, cut)

    def _positions_of(self, job: str, limit: int) -> tuple[int, ...]:
        self._learn(job)
        found = sorted(node for table in (self._runs, self._values) for node in table)
        self._cut = self._cut or len(found) > limit
        return tuple(found[:limit])

    def _spread(
        self,
        positions: Iterable[int],
        seen: dict[int, int],
        next_to: Any,
        depth: int | None,
        limit: int,
    ) -> None:
        """Breadth first from `positions`; `seen` gets each node's distance, which counts runs."""
        queue = deque(sorted(positions))
        for node in queue:
            seen.setdefault(node, 0)
        while queue:
            node = queue.popleft()
            for found in next_to(node):
                distance = seen[node] + (1 if self._is_run(found) else 0)
                if depth is not None and distance > depth:
                    continue
                if found in seen and seen[found] <= distance:
                    continue
                if len(seen) >= limit and found not in seen:
                    self._cut = True
                    continue
                seen[found] = distance
                queue.append(found)

    def _down(
        self,
        positions: tuple[int, ...],
        seen: dict[int, int],
        depth: int | None,
        limit: int,
        whole: bool | None,
    ) -> bool:
        """Spread downstream; then look through the log for more readers, and spread from these, until there are none."""
        self._spread(positions, seen, self._below, depth, limit)
        behind = self._state.position - min((node for node in seen if not self._is_run(node)), default=0)
        if not (behind <= WHOLE_EVENTS_MAX if whole is None else whole):
            return False
        asked: set[int] = set()
        while fresh := {node for node in seen if not self._is_run(node)} - asked:
            asked |= fresh
            if not self._scan(fresh) or len(seen) >= limit:
                break
            self._spread(list(seen), seen, self._below, depth, limit)
        return True

    # --- neighbours -------------------------------------------------------------------------------

    def _above(self, node: int) -> list[int]:
        if self._is_run(node):
            run = self._runs[node]
            return sorted({*run.inputs.values(), *run.reads.values()} & self._known(run))
        value = self._values.get(node)
        return [value.run] if value is not None and value.run is not None and self._run(value.run) else []

    def _below(self, node: int) -> list[int]:
        if self._is_run(node):
            return self._written_by(self._runs[node])
        value = self._values.get(node)
        if value is None:
            return []
        for job in self._relatives(value.job):
            self._learn(job)
        return sorted(self._readers.get(node, ()))

    def _known(self, run: LineageRun) -> set[int]:
        """Return the values that a run names and the log still has."""
        return {
            position
            for position in (*run.inputs.values(), *run.reads.values())
            if self._value(position) is not None
        }

    def _relatives(self, job: str) -> Iterator[str]:
        """Yield the job, and those that stand for it in a translated repository, one through the other."""
        index = self._state.job_index.get(job)
        found = [] if index is None else [index]
        for other in found:  # grows
            for leaf in self._state.leaves.values():
                if leaf.derived is not None and leaf.derived.translator is not None:
                    found += [key for key in leaf.derived.standing_for(other) if key not in found]
            if len(found) > LIMIT:
                self._cut = True
                break
        yield from (self._state.jobs[number] for number in found[:LIMIT])

    def _written_by(self, run: LineageRun) -> list[int]:
        """Return what a run wrote: its values stand right before its end, one after the other."""
        found = {put.position for put in self._values.values() if put.run == run.run}
        if run.end_position is None:
            return sorted(found)
        window, end = _WINDOW, run.end_position
        while True:
            first = max(run.run, end - 1 - window)
            puts = self._reader.read(first, end - 1, Filters(runs=(run.run,)))
            rows = [row for row in puts if not isinstance(row.event, e.LaunchDecided)]
            full = len(rows) == window and first > run.run
            if not full or window >= _JOB_EVENTS_MAX:
                break
            window *= 8
        for row in rows:
            if isinstance(row.event, e.ValuePut):
                self._keep_value(row.position, row.event)
                found.add(row.position)
        return sorted(found)

    # --- what the log says ------------------------------------------------------------------------

    def _is_run(self, node: int) -> bool:
        return node in self._runs or (node not in self._values and self._load(node) and node in self._runs)

    def _load(self, node: int) -> bool:
        """Read the event at a position that was not read before."""
        event = next(iter(self._reader.read(node - 1, node)), None)
        if event is None:
            return False
        if isinstance(event.event, e.LaunchDecided):
            self._learn(event.event.job)
        elif isinstance(event.event, e.ValuePut):
            self._keep_value(node, event.event)
        return True

    def _run(self, run: int) -> LineageRun | None:
        return self._runs[run] if self._is_run(run) else None

    def _value(self, position: int) -> LineageValue | None:
        if position not in self._values:
            self._load(position)
        return self._values.get(position)

    def _learn(self, job: str) -> None:
        """Read a job's runs and values, once, by the index."""
        if job in self._jobs:
            return
        self._jobs.add(job)
        filters = Filters(kinds=_KINDS, jobs=(job,))
        for number, (position, event) in enumerate(
            self._reader.read(until=self._state.position, filters=filters)
        ):
            if number >= _JOB_EVENTS_MAX:
                self._cut = True
                return
            match event:
                case e.ValuePut():
                    self._keep_value(position, event)
                case e.LaunchDecided():
                    self._decided(position, event)
                case e.RunStarted() | e.RunAdopted():
                    self._update(event.run, state="running", where=event.where)
                case e.RunEnded():
                    self._ended(position, event)

    def _decided(self, position: int, event: e.LaunchDecided) -> None:
        self._runs[position] = LineageRun(
            run=position,
            task=event.task,
            job=event.job,
            attempt=event.attempt,
            state="decided",
            decided_at=event.at,
            ended_at=None,
            where="",
            inputs=event.inputs,
            reads={},
            end_position=None,
        )
        for value in event.inputs.values():
            self._readers.setdefault(value, set()).add(position)

    def _ended(self, position: int, event: e.RunEnded) -> None:
        reads = event.reads or {}
        for value in reads.values():
            self._readers.setdefault(value, set()).add(event.run)
        more = {"ended_at": event.at, "end_position": position, "reads": reads}
        self._update(event.run, state=event.outcome, where=event.where, **more)

    def _update(self, run: int, *, where: str, **more: Any) -> None:
        known = self._runs.get(run)
        if known is not None:
            self._runs[run] = msgspec.structs.replace(known, where=where or known.where, **more)

    def _keep_value(self, position: int, event: e.ValuePut) -> None:
        if position in self._values:
            return
        leaf, index = self._state.leaves.get(event.repository), self._state.job_index.get(event.job)
        current = leaf is not None and index is not None and get_at(leaf.positions, index) == position
        self._values[position] = LineageValue(
            position=position,
            repository=event.repository,
            job=event.job,
            at=event.at,
            actor=event.actor,
            origin=event.origin,
            run=event.run,
            digest=digest_of(event),
            size=size_of(event),
            version=event.version,
            current=current,
        )

    def _scan(self, wanted: set[int]) -> bool:
        """Look through the log for runs that were decided on or read these values; return whether there are new ones."""
        first, values = min(wanted), sorted(wanted)
        names = "SELECT id FROM names WHERE text IN ('LaunchDecided', 'RunEnded')"
        sql = (
            "SELECT l.run FROM log l, json_each(l.payload, CASE WHEN json_type(l.payload, '$.reads') IS NULL"
            " THEN '$.inputs' ELSE '$.reads' END) i"
            f" WHERE l.position > ? AND l.position <= ? AND l.kind IN ({names})"
            " AND i.value IN (SELECT value FROM json_each(?))"
        )
        if len(values) <= 4:  # a look at the text is quicker than one at the document
            near = " OR ".join(f"instr(l.payload, ':{v},') OR instr(l.payload, ':{v}}}')" for v in values)
            sql += f" AND ({near})"
        listed = msgspec.json.encode(values).decode()
        rows = self._reader.query(sql, (first, self._state.position, listed), timeout_seconds=_SCAN_SECONDS)
        fresh = {row[0] for row in rows.rows if row[0] is not None} - self._runs.keys()
        for run in sorted(fresh):
            self._is_run(run)
        return bool(fresh)

    # --- the answer -------------------------------------------------------------------------------

    def _graph(
        self,
        about: str,
        direction: Direction,
        start: tuple[int, ...],
        kept: set[int],
        whole: bool,
        cut: bool,
    ) -> Lineage:
        runs = {node: self._runs[node] for node in sorted(kept) if node in self._runs}
        values = {node: self._values[node] for node in sorted(kept) if node in self._values}
        return Lineage(
            about=about,
            position=self._state.position,
            direction=direction,
            start=start,
            values=values,
            runs=runs,
            reads=tuple(read for run in runs.values() for read in reads_of(run) if read.position in values),
            writes=tuple(
                Written(run=value.run, position=value.position)
                for value in values.values()
                if value.run in runs
            ),
            whole=whole,
            cut=cut,
        )
