"""The result of a simulation: tables for notebooks, the documented JSON, and the jobs that could not go on.

In: summaries of all replications, and the records of the first. Out: `Table`s, made when asked for. Times in tables are
seconds since the simulation began.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datatask.adapters.history.queries import Table
from datatask.adapters.sim.model import OUTCOMES, Records
from datatask.adapters.sim.scenario import Scenario
from datatask.adapters.sim.summary import Summary, in_short
from datatask.schema.definition import PipelineDef
from datatask.schema.units import SECOND

POINTS = 200
RUN_COLUMNS = (
    "run",
    "task",
    "job",
    "attempt",
    "state",
    "ready",
    "decided",
    "started",
    "ended",
    "wait",
    "duration",
    "where",
)


@dataclass
class Result:
    """One scenario, simulated; `notes` name the source of durations where there was a choice.

    `summaries` has one entry a replication, `records` the runs of the first one (None where they were not kept).
    `stuck` says, a line each, which jobs wait for what at its end, where it could not go on.
    """

    scenario: Scenario
    definition: PipelineDef
    begin: int
    summaries: list[Summary]
    records: Records | None = None
    names: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def stuck(self) -> tuple[str, ...]:
        """What the first replication ended on, where it could not go on."""
        return self.summaries[0].stuck

    @property
    def makespan(self) -> float:
        """The mean over replications, in seconds."""
        return sum(each.makespan for each in self.summaries) / len(self.summaries)

    @property
    def bottleneck(self) -> str:
        """What bound most often."""
        return str(in_short(self.summaries, "")["bottleneck"])

    def to_json(self) -> dict[str, Any]:
        """Return the object of `simulate --json` for this one scenario."""
        return results_json([self])

    def makespans(self) -> Table:
        """Return a row for each replication."""
        rows = [(each.replication, each.makespan, each.runs, each.bottleneck) for each in self.summaries]
        return Table(("replication", "makespan", "runs", "bottleneck"), rows)

    def tasks(self) -> Table:
        """Return a row for each task of the first replication: runs, waits and services in seconds."""
        columns = (
            "task",
            "runs",
            "succeeded",
            "failed",
            "wait_mean",
            "wait_p50",
            "wait_p95",
            "wait_max",
            "service_mean",
            "service_p50",
            "service_p95",
        )
        rows = [
            (name, *(getattr(task, column) for column in columns[1:]))
            for name, task in self.summaries[0].tasks.items()
        ]
        return Table(columns, rows)

    def runs(self) -> Table:
        """Return a row for each run of the first replication, in the order in which they ended."""
        records, tasks, begin = self._records(), [task.name for task in self.definition.tasks], self.begin
        return Table(
            RUN_COLUMNS,
            (
                (
                    records.run[index],
                    tasks[records.task[index]],
                    self.names[records.job[index]],
                    records.attempt[index],
                    OUTCOMES[records.outcome[index]],
                    (records.ready_at[index] - begin) / SECOND,
                    (records.decided_at[index] - begin) / SECOND,
                    (records.started_at[index] - begin) / SECOND,
                    (records.ended_at[index] - begin) / SECOND,
                    (records.started_at[index] - records.ready_at[index]) / SECOND,
                    (records.ended_at[index] - records.started_at[index]) / SECOND,
                    records.where.get(index, ""),
                )
                for index in range(len(records))
            ),
        )

    def resources(self, points: int = POINTS) -> Table:
        """Return the use of each limit over time: the mean in each of a number of equal spans."""
        rows = []
        records = self._records()
        for quota in self.definition.quotas:
            for name, limit in quota.limits.items():
                weights = [
                    task.resources.get(name, 0) / SECOND if task.quota == quota.name else 0.0
                    for task in self.definition.tasks
                ]
                used = self._levels(records.decided_at, records.ended_at, weights, points)
                rows += [(at, f"{quota.name}.{name}", level, limit / SECOND) for at, level in used]
        for index, task in enumerate(self.definition.tasks):
            if task.concurrency:
                one = [float(index == other) for other in range(len(self.definition.tasks))]
                used = self._levels(records.decided_at, records.ended_at, one, points)
                rows += [
                    (at, f"{task.name}.concurrency", level, float(task.concurrency)) for at, level in used
                ]
        return Table(("at", "resource", "used", "limit"), rows)

    def queues(self, points: int = POINTS) -> Table:
        """Return the length of each task's queue over time: the mean in each of a number of equal spans."""
        rows = []
        records = self._records()
        for index, task in enumerate(self.definition.tasks):
            one = [float(index == other) for other in range(len(self.definition.tasks))]
            waiting = self._levels(records.ready_at, records.decided_at, one, points)
            rows += [(at, task.name, level) for at, level in waiting]
        return Table(("at", "task", "waiting"), rows)

    def _levels(
        self, since: array[int], until: array[int], weights: list[float], points: int
    ) -> list[tuple[float, float]]:
        """Return the mean level in each span, of what counts with its task's weight between two times."""
        records = self._records()
        end = max(records.ended_at, default=self.begin)
        width = max((end - self.begin) / points, 1.0)
        whole, part = [0.0] * (points + 2), [0.0] * (points + 2)
        for task, first, last in zip(records.task, since, until, strict=True):
            weight = weights[task]
            if weight:
                for at, sign in ((first, weight), (last, -weight)):
                    place = max(0, at - self.begin) / width  # it may have begun before
                    span = min(int(place), points)
                    part[span] += sign * (span + 1 - place)
                    whole[span + 1] += sign
        levels, level = [], 0.0
        for span in range(points):
            level += whole[span]
            levels.append((span * width / SECOND, max(0.0, level + part[span])))
        return levels

    def _records(self) -> Records:
        assert self.records is not None, "the runs were not kept"
        return self.records


def results_json(results: Sequence[Result]) -> dict[str, Any]:
    """Return the object of `simulate --json`."""
    scenarios = [in_short(result.summaries, result.scenario.name) for result in results]
    return {"scenarios": scenarios, "seed": results[0].scenario.seed if results else 0}
