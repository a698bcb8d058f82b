"""A recording: durations, outcomes, sizes, outputs, arrivals, and answers of user code that a log has.

In: a log. Out: a `Recording`, plain numbers by task, made in one pass over the events. Only runs that ended count;
durations are from a run's start to its end by engine time. Where the size of a run's inputs explains its duration
(`sized`), the fit says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from datatask.adapters.log.reader import LogReader
from datatask.engine.ports import Filters
from datatask.schema import events as e
from datatask.schema.definition import PipelineDef

KINDS = (
    "PipelineDefined",
    "ValuePut",
    "LaunchDecided",
    "RunStarted",
    "RunAdopted",
    "RunEnded",
    "Evaluated",
)
FITTED_MIN = 8
EXPLAINED_MIN = 0.5
"""Size counts from this number of runs on, and where it explains at least this share of the durations' variance."""


class Fit(NamedTuple):
    """Durations by size: `intercept + slope * size` seconds, `explained` of the variance; `ratios` are real to fitted."""

    intercept: float
    slope: float
    explained: float
    ratios: tuple[float, ...]

    def seconds(self, size: float) -> float:
        """Return the expected duration."""
        return max(0.0, self.intercept + self.slope * size)


@dataclass
class TaskRecord:
    """One task's runs: seconds by outcome (of success too), and per success the repositories filled."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    exit_codes: dict[str, int | None] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    fills: dict[tuple[str, ...], int] = field(default_factory=dict)
    spawned: dict[str, list[int]] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)
    own: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    priorities: dict[str, float] = field(default_factory=dict)
    fit: Fit | None = None

    @property
    def runs(self) -> int:
        return sum(len(those) for those in self.seconds.values())


@dataclass
class Recording:
    """A whole log: tasks by name, and jobs with the seconds after the first at which they came, and where."""

    definition: PipelineDef
    tasks: dict[str, TaskRecord] = field(default_factory=dict)
    arrivals: list[tuple[float, str, tuple[str, ...]]] = field(default_factory=list)
    filters: dict[str, dict[str, bool]] = field(default_factory=dict)
    translations: dict[str, dict[str, str | None]] = field(default_factory=dict)


class _OpenRun(NamedTuple):
    task: str
    job: str
    decided_at: int
    inputs: dict[str, int]
    attempt: int


def read(reader: LogReader) -> Recording:
    """Read a log to its head."""
    recording = Recording(PipelineDef())
    opened: dict[int, _OpenRun] = {}
    started: dict[int, int] = {}
    filled: dict[int, list[tuple[str, str]]] = {}
    sizes: dict[int, int] = {}
    came: dict[str, tuple[int, list[str]]] = {}
    for position, event in reader.read(filters=Filters(kinds=KINDS)):
        match event:
            case e.PipelineDefined():
                recording.definition = event.definition
            case e.ValuePut():
                sizes[position] = event.size if event.size is not None else len(bytes(event.value))
                if event.run is not None:
                    filled.setdefault(event.run, []).append((event.repository, event.job))
                else:
                    entered = came.setdefault(event.job, (event.at, []))[1]
                    if event.repository not in entered:
                        entered.append(event.repository)
            case e.LaunchDecided():
                opened[position] = _OpenRun(event.task, event.job, event.at, event.inputs, event.attempt)
            case e.RunStarted() | e.RunAdopted() if event.run in opened:
                started.setdefault(event.run, event.at)
            case e.RunEnded() if event.run in opened:
                run = opened.pop(event.run)
                _ended(recording, run, event, started.pop(event.run, None), filled.pop(event.run, []), sizes)
            case e.Evaluated() if event.error is None:
                _evaluated(recording, event)
    first = min((at for at, _ in came.values()), default=0)
    recording.arrivals = [((at - first) / 1e9, job, tuple(entered)) for job, (at, entered) in came.items()]
    recording.arrivals.sort(key=lambda each: each[0])
    for record in recording.tasks.values():
        record.fit = fitted(record)
    return recording


def _ended(
    recording: Recording,
    run: _OpenRun,
    event: e.RunEnded,
    started_at: int | None,
    filled: Sequence[tuple[str, str]],
    sizes: dict[int, int],
) -> None:
    record = recording.tasks.setdefault(run.task, TaskRecord())
    if started_at is None or event.outcome == "conflicted":
        return  # it never began, or runs beside it decided its end: no measure of runs to come
    seconds = max(0, event.at - started_at) / 1e9
    record.seconds.setdefault(event.outcome, []).append(seconds)
    record.exit_codes.setdefault(event.outcome, event.exit_code)
    record.latencies.append(max(0, started_at - run.decided_at) / 1e9)
    record.own.setdefault(run.job, []).append((event.outcome, seconds))
    if run.inputs:
        record.sizes[run.job] = float(sum(sizes.get(position, 0) for position in run.inputs.values()))
    if event.outcome in ("succeeded", "handed_over"):
        own = _own(recording.definition, run.task)
        fill = tuple(sorted(leaf for leaf, job in filled if job == run.job and leaf not in own))
        record.fills[fill] = record.fills.get(fill, 0) + 1
        others: dict[str, int] = {}
        for leaf, job in filled:
            if job != run.job:
                others[leaf] = others.get(leaf, 0) + 1
        for leaf, count in others.items():
            record.spawned.setdefault(leaf, []).append(count)


def _own(definition: PipelineDef, name: str) -> set[str]:
    """Return the repositories that the engine itself fills for a task."""
    for task in definition.tasks:
        if task.name == name:
            return {leaf for leaf in (task.done, task.pids) if leaf is not None}
    return set()


def _evaluated(recording: Recording, event: e.Evaluated) -> None:
    value = msgspec.json.decode(event.value) if event.value else None
    if event.what == "filter" and event.repository:
        recording.filters.setdefault(event.repository, {})[event.job] = bool(value)
    elif event.what == "translation" and event.repository:
        target = value if isinstance(value, str) else None
        recording.translations.setdefault(event.repository, {})[event.job] = target
    elif event.what == "priority" and event.task:
        record = recording.tasks.setdefault(event.task, TaskRecord())
        record.priorities[event.job] = float(value or 0.0)


def fitted(record: TaskRecord) -> Fit | None:
    """Return the durations of successes by size, where size explains them."""
    pairs = [
        (record.sizes[job], seconds)
        for job, runs in record.own.items()
        if job in record.sizes
        for outcome, seconds in runs
        if outcome == "succeeded"
    ]
    if len(pairs) < FITTED_MIN:
        return None
    count = len(pairs)
    mean_x, mean_y = sum(x for x, _ in pairs) / count, sum(y for _, y in pairs) / count
    spread_x = sum((x - mean_x) ** 2 for x, _ in pairs)
    spread_y = sum((y - mean_y) ** 2 for _, y in pairs)
    if spread_x <= 0 or spread_y <= 0:
        return None
    together = sum((x - mean_x) * (y - mean_y) for x, y in pairs)
    slope, explained = together / spread_x, together * together / (spread_x * spread_y)
    if explained < EXPLAINED_MIN or slope <= 0:
        return None
    fit = Fit(mean_y - slope * mean_x, slope, explained, ())
    ratios = tuple(y / fit.seconds(x) for x, y in pairs if fit.seconds(x) > 0)
    return fit._replace(ratios=ratios) if ratios else None
