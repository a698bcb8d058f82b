"""Scenarios: plain, frozen values, checked as far as they can be without a pipeline.

In: numbers and names that a person chose. Out: a `Scenario`, to be simulated with a pipeline or a log (`simulate`), any
number of times. Durations are seconds throughout. Fields that are left out come from the log, and without a log from
the defaults that each field names; a task without any duration is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from datatask.adapters.sim.distributions import Distribution, as_distribution
from datatask.schema.errors import CallerError, InvalidValueError, one_of
from datatask.schema.events import Outcome
from datatask.schema.values import check_job

JOBS_MAX = 100_000_000
REPLICATIONS_MAX = 100_000

Amounts = Mapping[str, float | int | str | list[str]]
"""Amounts as in a pipeline: `{"cpu": 16, "mem": "4Gi"}`; of a quota also lists of identities: `{"gpu": ["0", "1"]}`."""


@dataclass(frozen=True)
class Arrivals:
    """When jobs come: all `at_once`, as `recorded` in the log, `even`ly or at random (`poisson`), at a rate."""

    how: Literal["at_once", "recorded", "even", "poisson"] = "at_once"
    per_second: float = 0.0

    def __post_init__(self) -> None:
        if self.how not in ("at_once", "recorded", "even", "poisson"):
            raise InvalidValueError(
                f"jobs cannot arrive {self.how!r}", remedy="use at_once, recorded, even or poisson"
            )
        if self.how in ("even", "poisson") and not self.per_second > 0:
            raise InvalidValueError(
                f"arrivals: {self.per_second:g} jobs a second never come", remedy="give a rate above 0"
            )


@dataclass(frozen=True)
class TaskScenario:
    """How runs of one task go.

    `duration`: a distribution, seconds, or seconds by job. `sized`: (seconds at size 0, seconds for each unit of size),
    with `sizes` by job; both are worked out from the log where it shows that size explains the durations.
    `failure`: the share of runs that fail. `outcomes`: weights by outcome, in its place; a list weighs each the same.
    `latency`: from the decision to the beginning of a run at its target. `outputs`: the repositories or links that a
    successful run fills (default: as recorded, else all that the task writes), or how likely each is. `spawns`: new
    jobs `JOB-0`, `JOB-1`, … for a repository, their number or its distribution. `attempts`, `concurrency`,
    `timeout`, `resources`: changes to the definition.
    """

    duration: Distribution | float | Mapping[str, float] | None = None
    failure: float | None = None
    outcomes: Mapping[str, float] | Sequence[str] | None = None
    latency: Distribution | float | None = None
    outputs: Sequence[str] | Mapping[str, float] | None = None
    spawns: Mapping[str, Distribution | int] = field(default_factory=dict)
    attempts: int | None = None
    concurrency: int | None = None
    timeout: float | None = None
    resources: Amounts | None = None
    machines: str | None = None

    def check(self, task: str) -> None:
        """Refuse what cannot be, naming the task."""
        try:
            self._check()
        except CallerError as error:
            raise InvalidValueError(f"{task}: {error.what}", where=error.where, remedy=error.remedy) from None

    def _check(self) -> None:
        for value in (self.duration, self.latency):
            if value is not None and not isinstance(value, Mapping):
                as_distribution(value)
        if isinstance(self.duration, Mapping):
            for job, seconds in self.duration.items():
                check_job(job)
                as_distribution(seconds)
        if self.failure is not None and not 0 <= self.failure <= 1:
            raise InvalidValueError(f"failure is {self.failure:g}", remedy="give a share between 0 and 1")
        if self.failure is not None and self.outcomes is not None:
            raise InvalidValueError("both failure and outcomes are given", remedy="give one of them")
        for outcome, weight in self.weights().items():
            if outcome not in get_args(Outcome):
                raise InvalidValueError(
                    f"{outcome!r} is not an outcome", remedy=one_of(get_args(Outcome), outcome)
                )
            if not weight >= 0:
                raise InvalidValueError(f"the weight of {outcome} is {weight:g}", remedy="give 0 or more")
        if self.outcomes is not None and not sum(self.weights().values()) > 0:
            raise InvalidValueError("no outcome has a weight", remedy="give at least one above 0")
        if isinstance(self.outputs, Mapping):
            for output, share in self.outputs.items():
                if not 0 <= share <= 1:
                    raise InvalidValueError(
                        f"output {output} is filled by {share:g} of the runs", remedy="0 to 1"
                    )
        for name, number in (("attempts", self.attempts), ("concurrency", self.concurrency)):
            if number is not None and number < 1:
                raise InvalidValueError(f"{name} is {number}", remedy="give 1 or more")
        if self.timeout is not None and not self.timeout > 0:
            raise InvalidValueError(f"timeout is {self.timeout:g}", remedy="give seconds above 0")

    def weights(self) -> dict[str, float]:
        """Return how often each outcome is."""
        if self.outcomes is None:
            return {} if self.failure is None else {"succeeded": 1 - self.failure, "failed": self.failure}
        if isinstance(self.outcomes, Mapping):
            return dict(self.outcomes)
        found: dict[str, float] = {}
        for outcome in self.outcomes:
            found[outcome] = found.get(outcome, 0.0) + 1
        return found


@dataclass(frozen=True)
class Machines:
    """A pool of machines: `count` of them with `amounts` each, or amounts for each (none given: one run at a time; cpu
    or mem not given: enough of it).

    A run takes what its task asks for (`resources`) from one machine, or waits at the target until one has it:
    Kubernetes' nodes, or SSH hosts. `start`: how long a machine takes to come up, the first time and after a failure.
    `latency`: from the launch to a place being sought (a scheduler's). `speed`: durations are divided by it.
    `mtbf` and `repair`: mean seconds between failures of one machine while it is up, and until it is up again.
    `preempted`: mean seconds after which a run is taken off. What ran there ends as `loss` and is tried again by policy.
    """

    name: str = "machines"
    count: int = 1
    amounts: Amounts | Sequence[Amounts] = field(default_factory=dict)
    start: Distribution | float = 0.0
    latency: Distribution | float = 0.0
    speed: float | Sequence[float] = 1.0
    mtbf: float | None = None
    repair: Distribution | float = 0.0
    preempted: float | None = None
    loss: Literal["lost", "failed"] = "lost"

    def check(self) -> None:
        """Refuse what cannot be, naming the pool."""
        try:
            for value in (self.start, self.latency, self.repair):
                as_distribution(value)
            if self.count < 1:
                raise InvalidValueError(f"there are {self.count} of them", remedy="give a count of 1 or more")
            if not isinstance(self.amounts, Mapping) and len(self.amounts) != self.count:
                raise InvalidValueError(
                    f"{len(self.amounts)} amounts are given for {self.count} of them",
                    remedy="give amounts once, or for each machine",
                )
            speeds = self.speeds()
            if len(speeds) != self.count or not all(speed > 0 for speed in speeds):
                raise InvalidValueError(
                    f"speed {self.speed!r} is not above 0 for each of {self.count}",
                    remedy="give one number, or one for each machine",
                )
            for name, number in (("mtbf", self.mtbf), ("preempted", self.preempted)):
                if number is not None and not number > 0:
                    raise InvalidValueError(f"{name} is {number:g}", remedy="give seconds above 0")
        except CallerError as error:
            raise InvalidValueError(f"machines {self.name}: {error.what}", remedy=error.remedy) from None

    def has(self, index: int) -> Amounts:
        """Return what one machine has."""
        return self.amounts if isinstance(self.amounts, Mapping) else self.amounts[index]

    def speeds(self) -> list[float]:
        """Return each machine's speed."""
        return [self.speed] * self.count if isinstance(self.speed, int | float) else list(self.speed)


@dataclass(frozen=True)
class Scenario:
    """One thing to try.

    `jobs`: how many, or which; None: those of the log. `entries`: the repositories that a job enters when it comes
    (default: as recorded, else all that are read and that no task writes). `tasks`: by name; `default` for those not
    named. `quotas`: new limits by quota. `machines`: pools; a task runs in the one it names, else in the first; none
    given: there is room for all. `until`: stop after this number of seconds. `own`: a job of the log takes as long as it took.
    """

    name: str = "scenario"
    jobs: int | Sequence[str] | None = None
    arrivals: Arrivals | None = None
    entries: Sequence[str] | None = None
    tasks: Mapping[str, TaskScenario] = field(default_factory=dict)
    default: TaskScenario = field(default_factory=TaskScenario)
    quotas: Mapping[str, Amounts] = field(default_factory=dict)
    machines: Sequence[Machines] = ()
    replications: int = 1
    seed: int = 0
    until: float | None = None
    own: bool = False

    def __post_init__(self) -> None:
        for name, task in self.tasks.items():
            task.check(name)
        self.default.check("default")
        for pool in self.machines:
            pool.check()
        names = [pool.name for pool in self.machines]
        if len(set(names)) != len(names):
            raise InvalidValueError(f"two pools of machines have one name: {names}", remedy="name each")
        if isinstance(self.jobs, int):
            if not 0 <= self.jobs <= JOBS_MAX:
                raise InvalidValueError(f"{self.jobs} jobs cannot be simulated", remedy=f"0 to {JOBS_MAX:,}")
        elif self.jobs is not None:
            if len({check_job(job) for job in self.jobs}) != len(self.jobs):
                raise InvalidValueError("a job is named twice", remedy="name each job once")
        if not 1 <= self.replications <= REPLICATIONS_MAX:
            raise InvalidValueError(
                f"{self.replications} replications", remedy=f"give 1 to {REPLICATIONS_MAX:,} of them"
            )
        if self.until is not None and not self.until > 0:
            raise InvalidValueError(f"until is {self.until:g}", remedy="give seconds above 0")

    def with_(self, **changes: Any) -> Scenario:
        """Return the scenario with other values for some fields."""
        return replace(self, **changes)

    def of(self, task: str) -> TaskScenario:
        """Return a task's own settings, or the default."""
        return self.tasks.get(task, self.default)
