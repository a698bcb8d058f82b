"""A pipeline and a scenario prepared for stepping, and the worlds in which simulated runs run.

Per task a `Profile` gives durations, outcomes and outputs; arrivals and machines are here too. Times are nanoseconds, jobs
integers in order of arrival, tasks integers in order of the definition. A `Model` serves one simulation: its samplers
advance. A world takes `start` and `stop`, and returns timed things by `push`, immediate starts by `begin`. `Plain` has
unlimited capacity; those of `machines` have limits. Models are made in `modelling`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, overload

import msgspec

from datatask.schema.definition import PipelineDef
from datatask.schema.events import ABSENT, Ending, ErrorInfo, Outcome
from datatask.schema.messages import Write

BEGINNING = 1_700_000_000 * 1_000_000_000
"""When a simulation begins, unless it goes on from a log."""

VALUE = msgspec.Raw(b'{"simulated":true}')

NEVER = 1 << 62

STARTED, ENDED, CALLED = range(3)
"""Kinds of due entries: a run begins at its target, ends there, or the world has asked to be called."""


class SimRun(msgspec.Struct, gc=False):
    """One run on its way; `fate` is the index of its ending, `fill` of the outputs that it makes when it succeeds."""

    run: int
    task: int
    job: int
    attempt: int
    lost: int
    ready_at: int
    decided_at: int
    ready: int
    started_at: int = 0
    duration: int = 0
    fate: int = 0
    fill: int = 0
    over: bool = False
    stopping: bool = False
    where: str = ""
    forgiven: int = 0


class Fate(msgspec.Struct, frozen=True):
    """A way in which runs of a task end."""

    outcome: Outcome
    exit_code: int | None = None
    message: str = ""

    def ending(self, started_at: int | None, ended_at: int, where: str = "") -> Ending:
        """Return how such a run ended, as its runner would tell it."""
        error = ErrorInfo(type="Simulated", message=self.message) if self.message else None
        return Ending(
            outcome=self.outcome,
            exit_code=self.exit_code,
            error=error,
            started_at=started_at,
            ended_at=ended_at,
            where=where,
        )


@dataclass(slots=True)
class Profile:
    """How the runs of one task go. Of two functions for one thing, the one with a job's name is asked where it is there.

    `duration_of` gets the attempt and the fate too; `durations`, where there are any, are by fate.

    `fates` are by the index of `OUTCOMES`; `fills` are the sets of repositories that a run may fill, the usual
    one first; `spawns` are (repository, number of new jobs).
    """

    name: str
    duration: Callable[[], int]
    duration_of: Callable[[str, int, int], int] | None = None
    durations: tuple[Callable[[], int], ...] = ()
    fate: Callable[[], int] | None = None
    fate_of: Callable[[str, int], int] | None = None
    latency: Callable[[], int] | None = None
    fates: tuple[Fate, ...] = ()
    fills: tuple[tuple[str, ...], ...] = ((),)
    fill: Callable[[], int] | None = None
    fill_of: Callable[[str], int] | None = None
    spawns: tuple[tuple[str, Callable[[], int]], ...] = ()
    priority: Callable[[str], float] | None = None


SUCCEEDED, TIMED_OUT, LOST, FAILED, CANCELLED = range(5)
OUTCOMES: tuple[Outcome, ...] = (
    "succeeded",
    "timed_out",
    "lost",
    "failed",
    "cancelled",
    "refused",
    "handed_over",
)
"""A fate is the index of its outcome here."""

SUCCESSES = ("succeeded", "handed_over")
"""After these a run has filled its outputs."""


def fates(shape: str) -> tuple[Fate, ...]:
    """Return all fates of a task whose `done` entries have this shape, by index."""
    codes = {"succeeded": 0, "failed": 1} if shape == "process" else {}
    said = {
        "timed_out": "the run outlived its timeout",
        "lost": "the machine is gone",
        "failed": "the run fails in this simulation",
    }
    return tuple(Fate(outcome, codes.get(outcome), said.get(outcome, "")) for outcome in OUTCOMES)


class Names(Sequence[str]):
    """The jobs' names: given, or made by number, so that a million of them need not exist."""

    def __init__(self, names: Sequence[str] = (), count: int = 0) -> None:
        self._names = list(names)
        self._count = max(count, len(self._names))
        self._width = max(len(str(max(self._count - 1, 0))), 1)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, job: int) -> str: ...
    @overload
    def __getitem__(self, job: slice) -> Sequence[str]: ...
    def __getitem__(self, job: int | slice) -> str | Sequence[str]:
        if isinstance(job, slice):
            return [self[one] for one in range(*job.indices(self._count))]
        if not -self._count <= job < self._count:
            raise IndexError(job)
        job %= self._count
        return self._names[job] if job < len(self._names) else f"job-{job:0{self._width}d}"


@dataclass(slots=True)
class Model:
    """Everything that a simulation needs; `arrivals` yields (time, first job, number of jobs), in order of time.

    `present` is the state to go on from, as a checkpoint. `entries` are the repositories that an arriving job enters; `entries_of`, where it is there, by a job's name.
    """

    definition: PipelineDef
    profiles: tuple[Profile, ...]
    names: Names
    arrivals: Iterator[tuple[int, int, int]]
    entries: tuple[str, ...]
    entries_of: Callable[[str], tuple[str, ...]] | None = None
    chance: Callable[[], float] = lambda: 0.5
    begin: int = BEGINNING
    until: int = NEVER
    runs_max: int = 1 << 40
    uuid: str = "simulated"
    present: bytes | None = None
    filters: dict[str, Callable[[str], bool]] = field(default_factory=dict)
    translations: dict[str, Callable[[str], str | None]] = field(default_factory=dict)


def output(repository: str, job: str, medium: str) -> Write:
    """Return the write of a simulated output."""
    if medium == "foreign":
        return Write(repository=repository, job=job, value=ABSENT, version="simulated")
    return Write(repository=repository, job=job, value=VALUE)


def parent(job: str) -> str:
    """Return the job that a spawned one came from; any other stands for itself."""
    head, dash, tail = job.rpartition("-")
    return head if dash and tail.isdigit() and head else job


COLUMNS = 9
RECENT_MAX = 2048 * COLUMNS


class Records:
    """What became of the runs, in columns: 48 bytes each. Times are nanoseconds; `ready` and `run` are positions.

    The latest ones stand in a list, row after row, for the columns take many at once faster: `flush` before reading.
    """

    def __init__(self) -> None:
        self._recent: list[int] = []
        self.run = array("q")
        self.task = array("H")
        self.job = array("I")
        self.attempt = array("H")
        self.ready_at = array("q")
        self.decided_at = array("q")
        self.started_at = array("q")
        self.ended_at = array("q")
        self.outcome = array("B")
        self.where: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.run) + len(self._recent) // COLUMNS

    def flush(self) -> None:
        """Take the latest runs into the columns."""
        rows = self._recent
        columns = (
            *(self.run, self.task, self.job, self.attempt),
            *(self.ready_at, self.decided_at, self.started_at, self.ended_at, self.outcome),
        )
        for index, column in enumerate(columns):
            column.fromlist(rows[index::COLUMNS])
        rows.clear()

    def adder(self) -> Callable[[SimRun, int], None]:
        """Return the function that remembers a run that is over now."""
        recent, where, flush = self._recent, self.where, self.flush
        keep = recent.extend

        def add(run: SimRun, now: int) -> None:
            if run.where:
                where[len(self)] = run.where
            begun = run.started_at or now
            keep(
                (run.run, run.task, run.job, run.attempt, run.ready_at, run.decided_at, begun, now, run.fate)
            )
            if len(recent) >= RECENT_MAX:
                flush()

        return add


class Simulator(Protocol):
    """The part of a simulator that a world calls."""

    now: int

    def name(self, job: int) -> str:
        """Return a job's name."""

    def push(self, at: int, what: int, about: object) -> None:
        """Let something come at a time: a run begins or ends, or the world is called."""

    def begin(self, run: SimRun) -> None:
        """Tell that a run begins now."""


class World(Protocol):
    """Where runs go."""

    def open(self, simulator: Simulator, profiles: tuple[Profile, ...]) -> None:
        """Begin: what comes by itself is pushed from here on."""

    def start(self, run: SimRun) -> None:
        """Take a run that was launched."""

    def resume(self, run: SimRun) -> None:
        """Take a run that was going when the simulation began; `started_at` is set."""

    def stop(self, run: SimRun, fate: int) -> None:
        """Let a run end now, with this fate."""

    def ended(self, run: SimRun) -> None:
        """A run is over; its amounts are free."""

    def busy(self, now: int) -> dict[str, tuple[float, float]]:
        """Return, by pool of machines, the machine-nanoseconds that were in use and those that there were."""

    def stuck(self) -> tuple[str, ...]:
        """Return, a line each, what can never begin."""


def draw(profile: Profile, run: SimRun, simulator: Simulator) -> None:
    """Decide how a run will go."""
    if profile.fate_of is not None:
        run.fate = profile.fate_of(simulator.name(run.job), run.attempt)
    elif profile.fate is not None:
        run.fate = profile.fate()
    if profile.duration_of is not None:
        run.duration = profile.duration_of(simulator.name(run.job), run.attempt, run.fate)
    elif profile.durations:
        run.duration = profile.durations[run.fate]()
    else:
        run.duration = profile.duration()
    if profile.fill_of is not None:
        run.fill = profile.fill_of(simulator.name(run.job))
    elif profile.fill is not None:
        run.fill = profile.fill()


TRIES, TRIES_BY_JOB = 1000, 50
"""Draws before a duration longer than the time so far is given up: fewer where it depends on the job and hardly varies."""


def draw_rest(profile: Profile, run: SimRun, simulator: Simulator) -> None:
    """Decide how a run goes on that has been going for a while: as those go that take longer than that.

    One that outlives all of them ends at once.
    """
    elapsed = simulator.now - run.started_at
    for _ in range(TRIES if profile.duration_of is None else TRIES_BY_JOB):
        draw(profile, run, simulator)
        if run.duration > elapsed:
            break
    run.duration = max(0, run.duration - elapsed)


def latency_left(latency: Callable[[], int], run: SimRun, simulator: Simulator) -> int:
    """Return the latency that is left; a run launched a while ago is as those that took longer than that."""
    elapsed = simulator.now - run.decided_at
    if not elapsed:
        return latency()
    return max(0, next((drawn for _ in range(TRIES) if (drawn := latency()) > elapsed), elapsed) - elapsed)


class Plain:
    """Unlimited capacity."""

    def open(self, simulator: Simulator, profiles: tuple[Profile, ...]) -> None:
        self._simulator, self._profiles = simulator, profiles

    def start(self, run: SimRun) -> None:
        simulator, profile = self._simulator, self._profiles[run.task]
        draw(profile, run, simulator)
        if profile.latency is None:
            simulator.begin(run)
            simulator.push(simulator.now + run.duration, ENDED, run)
            return
        at = simulator.now + latency_left(profile.latency, run, simulator)
        simulator.push(at, STARTED, run)
        simulator.push(at + run.duration, ENDED, run)

    def resume(self, run: SimRun) -> None:
        draw_rest(self._profiles[run.task], run, self._simulator)
        self._simulator.push(self._simulator.now + run.duration, ENDED, run)

    def stop(self, run: SimRun, fate: int) -> None:
        run.fate = fate
        self._simulator.push(self._simulator.now, ENDED, run)

    def ended(self, run: SimRun) -> None:
        """Nothing was taken."""

    def busy(self, now: int) -> dict[str, tuple[float, float]]:
        return {}

    def stuck(self) -> tuple[str, ...]:
        return ()
