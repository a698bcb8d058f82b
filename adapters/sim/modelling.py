"""A model from a definition, a scenario and a recording: every input is looked up and checked here.

In: a `PipelineDef`, a `Recording` or None, a `Scenario`. Out: the definition with the scenario's changes (`changed`), and
for each replication a `Model` whose samplers have streams of their own (`random_streams`). Names that the pipeline
lacks, and tasks without any duration, are refused in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import TypeVar

import msgspec

from datatask.adapters.sim.distributions import (
    Chance,
    Exponential,
    chooser,
    stream,
)
from datatask.adapters.sim.model import (
    BEGINNING,
    NEVER,
    Model,
    Names,
    parent,
)
from datatask.adapters.sim.profiles import ProfileBuilder, known
from datatask.adapters.sim.recording import Recording
from datatask.adapters.sim.scenario import Amounts, Scenario, TaskScenario
from datatask.engine.core.expressions import leaves_of
from datatask.schema.definition import DerivedDef, PipelineDef, QuotaDef, TaskDef
from datatask.schema.errors import InvalidValueError
from datatask.schema.resources import check_identities, parse_amount, to_nano
from datatask.schema.units import NANO, SECOND

T = TypeVar("T")

RUNS_MIN, RUNS_A_JOB = 1_000_000, 1_000


# --- the definition ---------------------------------------------------------------------------------


def changed(definition: PipelineDef, scenario: Scenario) -> PipelineDef:
    """Return the definition with the scenario's changes; `UnknownNameError` for a name that it lacks."""
    tasks = {task.name: task for task in definition.tasks}
    quotas = {quota.name: quota for quota in definition.quotas}
    for name in scenario.tasks:
        known(name, tasks, "task", scenario)
    for name, limits in scenario.quotas.items():
        quota = known(name, quotas, "quota", scenario)
        quotas[name] = _limited(quota, limits)
    for name, task in tasks.items():
        tasks[name] = _task(task, scenario.of(name))
        if task.repeat and not task.disabled and scenario.until is None:
            raise InvalidValueError(
                f"{name} repeats for ever, so the simulation would never end", remedy="give `until`"
            )
    return msgspec.structs.replace(definition, tasks=tuple(tasks.values()), quotas=tuple(quotas.values()))


def amounts(declared: Amounts, where: str) -> dict[str, int]:
    """Return amounts in billionths; `CallerError` for one that is negative or no quantity."""
    found = {}
    for name, amount in declared.items():
        number = len(amount) * NANO if isinstance(amount, list) else to_nano(parse_amount(name, amount))
        if number < 0:
            raise InvalidValueError(
                f"{name} is {amount}, which is negative", where=where, remedy="give 0 or more"
            )
        found[name] = number
    return found


def _limited(quota: QuotaDef, limits: Amounts) -> QuotaDef:
    declared = dict(limits)
    launches = declared.pop("launches", quota.launches)
    new = {**quota.limits, **amounts(declared, f"quota {quota.name}")}
    listed = {name: check_identities(name, own) for name, own in declared.items() if isinstance(own, list)}
    kept = {
        name: own
        for name, own in quota.identities.items()
        if name not in declared or new[name] <= len(own) * NANO
    }
    return msgspec.structs.replace(
        quota,
        limits=new,
        launches=None if launches is None else int(launches),  # type: ignore[arg-type]
        identities=kept | listed,
    )


def _task(task: TaskDef, declared: TaskScenario) -> TaskDef:
    retry = task.retry
    if declared.attempts is not None:
        retry = msgspec.structs.replace(retry, attempts=declared.attempts)
    more: dict[str, object] = {"retry": retry}
    if declared.concurrency is not None:
        more["concurrency"] = declared.concurrency
    if declared.timeout is not None:
        more["timeout"] = int(declared.timeout * SECOND)
    if declared.resources is not None:
        own = amounts(declared.resources, task.name)
        more["resources"] = {**task.resources, **own}
        more["later"] = tuple({**request, **own} for request in task.later)
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
        ProfileBuilder(definition, task, recording, scenario, streams).profile() for task in definition.tasks
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
    declared = scenario.jobs
    if declared is None and recording is None:
        raise InvalidValueError("the number of jobs is missing", remedy="give jobs, or a log that has some")
    if declared is None:
        assert recording is not None
        declared = [job for _, job, _ in recording.arrivals]
    entered = {} if recording is None else {job: entries for _, job, entries in recording.arrivals}
    if scenario.entries is not None or not all(job in entered for job in declared):
        return Names(declared), None
    return Names(declared), entered.__getitem__


def _entries(
    definition: PipelineDef, recording: Recording | None, scenario: Scenario
) -> list[tuple[tuple[str, ...], int]]:
    """Return the sets of repositories that a job may enter when it comes, with how often."""
    stored = {leaf.id: leaf for leaf in definition.repositories if leaf.derived is None}
    if scenario.entries is not None:
        for name in scenario.entries:
            known(name, stored, "stored repository", scenario)
        return [(tuple(scenario.entries), 1)]
    counts: dict[tuple[str, ...], int] = {}
    for _, _, entries in [] if recording is None else recording.arrivals:
        entered = tuple(name for name in entries if name in stored)
        if entered:
            counts[entered] = counts.get(entered, 0) + 1
    return sorted(counts.items(), key=lambda each: (-each[1], each[0])) or [(_sources(definition), 1)]


def _sources(definition: PipelineDef) -> tuple[str, ...]:
    """Return the stored repositories that some task reads and none writes."""
    rules = {leaf.id: leaf.derived for leaf in definition.repositories}
    written: set[str | None] = set()
    read: dict[str, None] = {}

    def see(names: Iterable[str]) -> None:
        for name in names:
            rule = rules.get(name)
            if isinstance(rule, DerivedDef):
                see(leaves_of(*rule.conditions))
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
        raise InvalidValueError(
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
    declared = scenario.arrivals
    how = "at_once" if declared is None else declared.how
    if how == "recorded" and (recording is None or scenario.jobs is not None):
        raise InvalidValueError(
            "arrivals are recorded for the jobs of a log only", remedy="leave `jobs` out, or give a rate"
        )
    return _times(how, declared.per_second if declared else 0.0, recording, jobs, streams, begin)


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
