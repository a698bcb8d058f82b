"""A model from a definition, a scenario, and what a log tells: the place where every input is looked up and checked.

In: a `PipelineDef`, a `Recording` or None, a `Scenario`. Out: the definition with the scenario's changes (`changed`), and
for each replication a `Model` whose samplers have streams of their own (`chance`). What a scenario names and the
pipeline lacks is refused in one line, and so is a task of which nothing tells how long its runs take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import TypeVar

import msgspec

from datatask.adapters.sim.chance import Chance, stream
from datatask.adapters.sim.distributions import (
    Distribution,
    Empirical,
    Exponential,
    Sampler,
    as_distribution,
    chooser,
)
from datatask.adapters.sim.model import (
    BEGINNING,
    NEVER,
    OUTCOMES,
    SUCCEEDED,
    Model,
    Names,
    Profile,
    fates,
    parent,
)
from datatask.adapters.sim.recorded import Recording, TaskRecord
from datatask.adapters.sim.scenario import Amounts, Scenario, TaskScenario
from datatask.schema.definition import (
    SECOND,
    FilteredDef,
    In,
    PipelineDef,
    QuotaDef,
    TaskDef,
    TranslatedDef,
    leaves_of,
)
from datatask.schema.errors import CallerError, UnknownNameError
from datatask.schema.resources import parse_quantity, to_nano

T = TypeVar("T")

FILLS_MAX = 10
RUNS_MIN, RUNS_A_JOB = 1_000_000, 1_000


# --- the definition ---------------------------------------------------------------------------------


def changed(definition: PipelineDef, scenario: Scenario) -> PipelineDef:
    """Return the definition with what the scenario changes; `UnknownNameError` for what is not there."""
    tasks = {task.name: task for task in definition.tasks}
    quotas = {quota.name: quota for quota in definition.quotas}
    for name in scenario.tasks:
        _known(name, tasks, "task", scenario)
    for name, limits in scenario.quotas.items():
        quota = _known(name, quotas, "quota", scenario)
        quotas[name] = _limited(quota, limits)
    for name, task in tasks.items():
        tasks[name] = _task(task, scenario.of(name))
        if task.repeat and not task.disabled and scenario.until is None:
            raise CallerError(
                f"{name} repeats for ever, so the simulation would never end", remedy="give `until`"
            )
    return msgspec.structs.replace(definition, tasks=tuple(tasks.values()), quotas=tuple(quotas.values()))


def _known(name: str, known: Mapping[str, T], what: str, scenario: Scenario) -> T:
    if name not in known:
        raise UnknownNameError(
            f"there is no {what} {name}",
            where=f"scenario {scenario.name}",
            remedy="use one of: " + ", ".join(sorted(known)),
        )
    return known[name]


def amounts(told: Amounts, where: str) -> dict[str, int]:
    """Return amounts in billionths; `CallerError` for one that is negative or no quantity."""
    found = {}
    for name, amount in told.items():
        number = to_nano(parse_quantity(amount))
        if number < 0:
            raise CallerError(f"{name} is {amount}, which is negative", where=where, remedy="give 0 or more")
        found[name] = number
    return found


def _limited(quota: QuotaDef, limits: Amounts) -> QuotaDef:
    told = dict(limits)
    launches = told.pop("launches", quota.launches)
    new = {**quota.limits, **amounts(told, f"quota {quota.name}")}
    return msgspec.structs.replace(quota, limits=new, launches=None if launches is None else int(launches))


def _task(task: TaskDef, told: TaskScenario) -> TaskDef:
    retry = task.retry
    if told.attempts is not None:
        retry = msgspec.structs.replace(retry, attempts=told.attempts)
    more: dict[str, object] = {"retry": retry}
    if told.concurrency is not None:
        more["concurrency"] = told.concurrency
    if told.timeout is not None:
        more["timeout"] = int(told.timeout * SECOND)
    if told.resources is not None:
        more["resources"] = {**task.resources, **amounts(told.resources, task.name)}
    return msgspec.structs.replace(task, **more)


# --- the model --------------------------------------------------------------------------------------


def model_of(
    definition: PipelineDef,
    recording: Recording | None,
    scenario: Scenario,
    replication: int,
    present: bytes | None = None,
    begin: int = BEGINNING,
) -> Model:
    """Return the model of one replication; `definition` has been `changed`.

    `present` is the state to go on from, at `begin`: then no jobs come but those that the scenario tells of.
    """
    if present is not None and scenario.jobs is None:
        scenario = scenario.with_(jobs=0)
    names, entries_of = _jobs(recording, scenario)

    def streams(owner: str, purpose: str) -> Chance:
        return stream(scenario.seed, replication, owner, purpose)

    profiles = tuple(
        _Profiling(definition, task, recording, scenario, streams).profile() for task in definition.tasks
    )
    entries = _entries(definition, recording, scenario)
    if len(entries) == 1:
        usual = entries[0][0]
        by_chance = None
    else:
        usual = entries[0][0]
        choose = chooser(tuple(float(weight) for _, weight in entries), streams("", "entries"))
        by_chance = lambda name: entries[choose()][0]  # noqa: E731
    jobs = len(names)
    tag = f"{definition.digest()}/{scenario.name}/{scenario.seed}/{replication}/{jobs}"
    return Model(
        definition,
        profiles,
        names,
        _arrivals(recording, scenario, jobs, streams, begin),
        usual,
        entries_of or by_chance,
        chance=streams("", "backoff"),
        begin=begin,
        present=present,
        until=NEVER if scenario.until is None else begin + int(scenario.until * SECOND),
        runs_max=max(RUNS_MIN, RUNS_A_JOB * jobs * max(len(profiles), 1)),
        uuid=blake2b(tag.encode(), digest_size=16).hexdigest(),
        filters={} if recording is None else _asked(recording.filters, True),
        translations={}
        if recording is None
        else {leaf: _translating(those) for leaf, those in recording.translations.items()},
    )


def _asked(answers: dict[str, dict[str, T]], otherwise: T) -> dict[str, Callable[[str], T]]:
    """Return what user code answers, by repository: as recorded, for other jobs `otherwise`."""

    def of(those: dict[str, T]) -> Callable[[str], T]:
        return lambda job: those.get(job, otherwise)

    return {leaf: of(those) for leaf, those in answers.items()}


def _translating(those: dict[str, str | None]) -> Callable[[str], str | None]:
    return lambda job: those[job] if job in those else parent(job)


def _jobs(
    recording: Recording | None, scenario: Scenario
) -> tuple[Names, Callable[[str], tuple[str, ...]] | None]:
    if isinstance(scenario.jobs, int):
        return Names(count=scenario.jobs), None
    told = scenario.jobs
    if told is None and recording is None:
        raise CallerError(
            "it is not told how many jobs there are", remedy="give jobs, or a log that has some"
        )
    if told is None:
        assert recording is not None
        told = [job for _, job, _ in recording.arrivals]
    entered = {} if recording is None else {job: entries for _, job, entries in recording.arrivals}
    if scenario.entries is not None or not all(job in entered for job in told):
        return Names(told), None
    return Names(told), entered.__getitem__


def _entries(
    definition: PipelineDef, recording: Recording | None, scenario: Scenario
) -> list[tuple[tuple[str, ...], int]]:
    """Return the sets of repositories that a job may enter when it comes, with how often."""
    stored = {leaf.id: leaf for leaf in definition.repositories if leaf.derived is None}
    if scenario.entries is not None:
        for name in scenario.entries:
            _known(name, stored, "stored repository", scenario)
        return [(tuple(scenario.entries), 1)]
    counts: dict[tuple[str, ...], int] = {}
    for _, _, entries in [] if recording is None else recording.arrivals:
        known = tuple(name for name in entries if name in stored)
        if known:
            counts[known] = counts.get(known, 0) + 1
    return sorted(counts.items(), key=lambda each: (-each[1], each[0])) or [(_sources(definition), 1)]


def _sources(definition: PipelineDef) -> tuple[str, ...]:
    """Return the stored repositories that some task reads and none writes."""
    rules = {leaf.id: leaf.derived for leaf in definition.repositories}
    written: set[str | None] = set()
    read: dict[str, None] = {}

    def see(names: Iterable[str]) -> None:
        for name in names:
            rule = rules.get(name)
            if isinstance(rule, FilteredDef | TranslatedDef):
                see(leaves_of(rule.base))
                if isinstance(rule, TranslatedDef):
                    see(leaves_of(rule.translator))
            elif name in rules:
                read[name] = None

    for task in definition.tasks:
        written |= {task.done, task.pids}
        for link in task.links:
            if link.is_output or link.is_status:
                written |= set(leaves_of(link.expr))
            elif link.is_input or link.required_for_start:
                see(leaves_of(link.expr))
    found = tuple(name for name in read if name not in written)
    if definition.tasks and not found:
        raise CallerError(
            "no repository is read that no task writes, so no job would ever come",
            remedy="say with `entries` which repositories a job enters",
        )
    return found


def _arrivals(
    recording: Recording | None,
    scenario: Scenario,
    jobs: int,
    streams: Callable[[str, str], Chance],
    begin: int,
) -> Iterator[tuple[int, int, int]]:
    """Yield (time, first job, number of jobs)."""
    told = scenario.arrivals
    how = "at_once" if told is None else told.how
    if how == "recorded" and (recording is None or scenario.jobs is not None):
        raise CallerError(
            "arrivals are recorded for the jobs of a log only", remedy="leave `jobs` out, or give a rate"
        )
    return _times(how, told.per_second if told else 0.0, recording, jobs, streams, begin)


def _times(
    how: str,
    rate: float,
    recording: Recording | None,
    jobs: int,
    streams: Callable[[str, str], Chance],
    begin: int,
) -> Iterator[tuple[int, int, int]]:
    if how == "at_once":
        if jobs:
            yield begin, 0, jobs
    elif how == "recorded":
        assert recording is not None
        for job, (seconds, _, _) in enumerate(recording.arrivals):
            yield begin + int(seconds * SECOND), job, 1
    elif how == "even":
        for job in range(jobs):
            yield begin + int(job / rate * SECOND), job, 1
    else:
        gap, at = Exponential(1.0 / rate).sampler(streams("", "arrivals")), begin
        for job in range(jobs):
            at += gap()
            yield at, job, 1


class _Profiling:
    """One task's profile in the making."""

    def __init__(
        self,
        definition: PipelineDef,
        task: TaskDef,
        recording: Recording | None,
        scenario: Scenario,
        streams: Callable[[str, str], Chance],
    ) -> None:
        self.definition, self.task, self.scenario = definition, task, scenario
        self.told = scenario.of(task.name)
        self.record = TaskRecord() if recording is None else recording.tasks.get(task.name, TaskRecord())
        self.stored = {leaf.id: leaf for leaf in definition.repositories if leaf.derived is None}
        self._streams = streams

    def chance(self, purpose: str) -> Chance:
        return self._streams(self.task.name, purpose)

    def profile(self) -> Profile:
        """Return it; `CallerError` where nothing tells how long runs take."""
        profile = Profile(self.task.name, _unknown, fates=fates(self.task.done_shape))
        self._fates(profile)
        self._durations(profile)
        self._latency(profile)
        self._fills(profile)
        own = self.told.spawns or self._spawned()
        for name, count in own.items():
            _known(name, self.stored, "stored repository", self.scenario)
            profile.spawns += ((name, _counted(as_distribution(count), self.chance(f"spawn {name}"))),)
        if self.record.priorities:
            priorities = self.record.priorities
            profile.priority = lambda job: priorities.get(job, 0.0)
        return profile

    def _fates(self, profile: Profile) -> None:
        told, seconds = self.told.weights(), self.record.seconds
        by_log = {outcome: float(len(those)) for outcome, those in seconds.items() if outcome != "cancelled"}
        weights = told or by_log
        if self.told.duration is not None and not told:
            weights = {}
        found = tuple(weights.get(outcome, 0.0) for outcome in OUTCOMES)
        if any(found[1:]):
            profile.fate = chooser(found, self.chance("outcome"))
        if self.scenario.own and self.record.own and not told:
            own, otherwise = self.record.own, profile.fate or (lambda: SUCCEEDED)

            def fate_of(job: str, attempt: int) -> int:
                runs = own.get(job)
                return OUTCOMES.index(runs[min(attempt, len(runs)) - 1][0]) if runs else otherwise()

            profile.fate_of = fate_of

    def _durations(self, profile: Profile) -> None:
        told, record = self.told.duration, self.record
        if isinstance(told, Distribution | int | float):
            profile.duration = as_distribution(told).sampler(self.chance("duration"))
            return
        usual = record.seconds.get("succeeded") or [
            each for those in record.seconds.values() for each in those
        ]
        if usual:
            profile.duration = Empirical(tuple(usual)).sampler(self.chance("duration"))
            if len(record.seconds) > 1:
                profile.durations = self._by_fate(profile.duration)
        if isinstance(told, Mapping):
            profile.duration_of = _by_job(self.task.name, told, bool(usual), profile)
        elif not usual and not self.task.disabled:
            raise CallerError(
                f"nothing tells how long {self.task.name} takes",
                where=f"scenario {self.scenario.name}",
                remedy="give the task a duration, or a log in which it has run",
            )
        elif self.scenario.own and record.own:
            profile.duration_of = _own_durations(record, profile)
        elif record.fit is not None and not isinstance(self.scenario.jobs, int):
            profile.duration_of = self._by_size(profile)

    def _by_fate(self, usual: Sampler) -> tuple[Sampler, ...]:
        samplers = []
        for outcome in OUTCOMES:
            own = self.record.seconds.get(outcome)
            if own and outcome != "succeeded":
                samplers.append(Empirical(tuple(own)).sampler(self.chance(f"duration {outcome}")))
            else:
                samplers.append(usual)
        return tuple(samplers)

    def _by_size(self, profile: Profile) -> Callable[[str, int, int], int]:
        """Return durations that follow the size of what a job's run reads."""
        fit, sizes = self.record.fit, self.record.sizes
        assert fit is not None
        ratio = Empirical(fit.ratios).sampler(self.chance("ratio"))
        usual, by_fate = profile.duration, profile.durations

        def duration_of(job: str, attempt: int, fate: int) -> int:
            size = sizes.get(job)
            if fate != SUCCEEDED or size is None:
                return by_fate[fate]() if by_fate else usual()
            return int(fit.seconds(size) * ratio())

        return duration_of

    def _latency(self, profile: Profile) -> None:
        if self.told.latency is not None:
            profile.latency = as_distribution(self.told.latency).sampler(self.chance("latency"))
        elif self.record.latencies and self.told.duration is None and not self.scenario.machines:
            profile.latency = Empirical(tuple(self.record.latencies)).sampler(self.chance("latency"))

    def _fills(self, profile: Profile) -> None:
        told = self.told.outputs
        if isinstance(told, Mapping):
            names = [self._repository(name) for name in told]
            if len(names) > FILLS_MAX:
                raise CallerError(
                    f"{self.task.name}: {len(names)} outputs with a likelihood each",
                    remedy=f"at most {FILLS_MAX}",
                )
            shares, chance = list(told.values()), self.chance("outputs")
            profile.fills = tuple(
                tuple(name for bit, name in enumerate(names) if index >> bit & 1)
                for index in range(1 << len(names))
            )
            profile.fill = lambda: sum((chance() < share) << bit for bit, share in enumerate(shares))
        elif told is not None:
            profile.fills = (tuple(self._repository(name) for name in told),)
        elif self.record.fills:
            known = {
                fill: count
                for fill, count in self.record.fills.items()
                if all(name in self.stored for name in fill)
            }
            ordered = sorted(known.items(), key=lambda each: (-each[1], each[0])) or [(self._usual(), 1)]
            profile.fills = tuple(fill for fill, _ in ordered)
            if len(ordered) > 1:
                weights = tuple(float(count) for _, count in ordered)
                profile.fill = chooser(weights, self.chance("outputs"))
        else:
            profile.fills = (self._usual(),)

    def _usual(self) -> tuple[str, ...]:
        """Return all that the task writes."""
        own = (self.task.done, self.task.pids)
        leaves = [link.expr.leaf for link in self.task.links if link.is_output and isinstance(link.expr, In)]
        return tuple(dict.fromkeys(leaf for leaf in leaves if leaf in self.stored and leaf not in own))

    def _repository(self, name: str) -> str:
        """Return the repository behind a link's name or its own."""
        links = {link.name: link.expr for link in self.task.links}
        expr = links.get(name)
        if isinstance(expr, In) and expr.leaf in self.stored:
            return expr.leaf
        if name in self.stored:
            return name
        raise UnknownNameError(
            f"{self.task.name} has no output {name}",
            where=f"scenario {self.scenario.name}",
            remedy="use one of: " + ", ".join(self._usual()),
        )

    def _spawned(self) -> dict[str, Distribution | int]:
        """Return how many new jobs a success makes, as recorded."""
        successes = sum(self.record.fills.values())
        found: dict[str, Distribution | int] = {}
        for name, counts in self.record.spawned.items():
            if name in self.stored:
                none = [0.0] * max(0, successes - len(counts))
                found[name] = Empirical(tuple([float(count) for count in counts] + none))
        return found


def _unknown() -> int:
    raise AssertionError("a run of a disabled task")


def _counted(distribution: Distribution, chance: Chance) -> Sampler:
    return lambda: int(distribution.seconds(chance()) + 0.5)


def _by_job(
    task: str, told: Mapping[str, float], usual: bool, profile: Profile
) -> Callable[[str, int, int], int]:
    seconds = {job: int(float(each) * SECOND + 0.5) for job, each in told.items()}

    def duration_of(job: str, attempt: int, fate: int) -> int:
        found = seconds.get(job)
        if found is not None:
            return found
        if not usual:
            raise CallerError(
                f"nothing tells how long {task} takes for {job}",
                remedy="add the job to the table of durations",
            )
        return profile.duration()

    return duration_of


def _own_durations(record: TaskRecord, profile: Profile) -> Callable[[str, int, int], int]:
    def duration_of(job: str, attempt: int, fate: int) -> int:
        runs = record.own.get(job)
        return int(runs[min(attempt, len(runs)) - 1][1] * SECOND + 0.5) if runs else profile.duration()

    return duration_of
