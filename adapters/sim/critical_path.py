"""The critical path of a simulated history: the chain of runs and waits that determines its makespan.

In: the records of one replication. Out: `Step`s that follow each other without a gap from the beginning to the last
end, so that their lengths add up to the makespan. Going back from the run that ended last, each run waited for: the
end of the run that freed capacity (a quota or its task's concurrency), the end of the run that made its job ready, or
its own previous attempt; where there is none, its job had not arrived.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datatask.adapters.history.queries import Table
from datatask.schema.units import SECOND

if TYPE_CHECKING:
    from datatask.adapters.sim.result import Result

LOOKED_AT_MAX = 100_000
"""Runs looked at when the cause of a wait is sought; it is nearly always among those that ended at that instant."""

COLUMNS = ("from", "to", "seconds", "what", "task", "job")


@dataclass(frozen=True)
class Step:
    """One stretch, seconds since the beginning: `what` is running, starting, waiting, backoff or arriving."""

    begin: float
    end: float
    what: str
    task: str
    job: str

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end - self.begin


def critical_path(result: Result) -> list[Step]:
    """Return the steps of the first replication's critical path, the first one first; none without runs."""
    steps = list(_Walk(result).steps())
    steps.reverse()
    return steps


def path_table(steps: list[Step]) -> Table:
    """Return a row for each step."""
    rows = [(step.begin, step.end, step.seconds, step.what, step.task, step.job) for step in steps]
    return Table(COLUMNS, rows)


def in_sum(steps: list[Step]) -> dict[str, float]:
    """Return the seconds of the path by what and task (`running fetch`), the largest first."""
    found: dict[str, float] = {}
    for step in steps:
        name = f"{step.what} {step.task}"
        found[name] = found.get(name, 0.0) + step.seconds
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


class _Walk:
    """Goes back through the records of a result."""

    def __init__(self, result: Result) -> None:
        assert result.records is not None, "the runs were not kept"
        self.records, self.names, self.begin = result.records, result.names, result.begin
        self.tasks = result.definition.tasks

    def steps(self) -> Iterator[Step]:
        """Yield the steps, the last one first."""
        records = self.records
        index: int | None = len(records) - 1
        while index is not None and index >= 0:
            ended, started = records.ended_at[index], records.started_at[index]
            decided, ready = records.decided_at[index], records.ready_at[index]
            yield from self._step("running", index, started, ended)
            yield from self._step("starting", index, decided, started)
            giver = self._giver(index) if decided > ready else None
            if giver is not None:
                index = giver
                continue
            yield from self._step("waiting", index, ready, decided)
            if records.attempt[index] > 1:
                before = self._attempt_before(index)
                if before is not None:
                    yield from self._step("backoff", index, records.ended_at[before], ready)
                    index = before
                    continue
            maker = self._maker(index)
            if maker is None:
                yield from self._step("arriving", index, self.begin, ready)
            index = maker

    def _step(self, what: str, index: int, begin: int, end: int) -> Iterator[Step]:
        begin = max(begin, self.begin)  # what was going on at the beginning counts from there
        if end > begin:
            records = self.records
            yield Step(
                (begin - self.begin) / SECOND,
                (end - self.begin) / SECOND,
                what,
                self.tasks[records.task[index]].name,
                self.names[records.job[index]],
            )

    def _ended_at(self, at: int, before: int) -> Iterator[int]:
        """Yield the runs that ended at an instant; records are in the order of their ends."""
        ends = self.records.ended_at
        index = bisect_left(ends, at)
        while index < len(ends) and ends[index] == at:
            if index != before:
                yield index
            index += 1

    def _giver(self, index: int) -> int | None:
        """Return the run whose end freed the capacity for this one."""
        records = self.records
        mine = self.tasks[records.task[index]]
        for other in self._ended_at(records.decided_at[index], index):
            task = self.tasks[records.task[other]]
            same_quota = mine.quota is not None and task.quota == mine.quota
            if (same_quota or (task is mine and mine.concurrency)) and self._is_earlier(other, index):
                return other
        return None

    def _maker(self, index: int) -> int | None:
        """Return the run whose end made this one's job ready: one of the same job, else one of a job it came from."""
        records = self.records
        ready, job = records.ready_at[index], self.names[records.job[index]]
        found = None
        for other in self._ended_at(ready, index):
            if not self._is_earlier(other, index):
                continue
            name = self.names[records.job[other]]
            if name == job:
                return other
            if found is None and (job.startswith(name) or name.startswith(job)):
                found = other
        return found

    def _attempt_before(self, index: int) -> int | None:
        records = self.records
        wanted = (records.task[index], records.job[index], records.attempt[index] - 1)
        last = bisect_left(records.ended_at, records.ready_at[index] + 1) - 1
        for other in range(last, max(-1, last - LOOKED_AT_MAX), -1):
            if (records.task[other], records.job[other], records.attempt[other]) == wanted:
                return other
        return None

    def _is_earlier(self, other: int, index: int) -> bool:
        """Whether going on there leads back: runs that take no time could otherwise explain each other."""
        records = self.records
        return (records.decided_at[other], records.run[other]) < (
            records.decided_at[index],
            records.run[index],
        )
