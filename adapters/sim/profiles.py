"""A task's `Profile`: the durations, outcomes and outputs of its runs, from a scenario and a recording.

In: a task, a `Recording` or None, a `Scenario`, and random streams. Out: the task's profile. The scenario goes before
the recording; a task without a duration in either is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from datatask.adapters.sim.distributions import (
    Chance,
    Distribution,
    Empirical,
    Sampler,
    as_distribution,
    chooser,
)
from datatask.adapters.sim.model import OUTCOMES, SUCCEEDED, Profile, fates
from datatask.adapters.sim.recording import Recording, TaskRecord
from datatask.adapters.sim.scenario import Scenario
from datatask.schema.definition import In, PipelineDef, TaskDef
from datatask.schema.errors import InvalidValueError, UnknownNameError, one_of
from datatask.schema.units import SECOND

T = TypeVar("T")

FILLS_MAX = 10
"""The most outputs with a likelihood each: their combinations are still few."""


def known(name: str, those: Mapping[str, T], what: str, scenario: Scenario) -> T:
    """Return the value of a name; `UnknownNameError` lists the names."""
    if name not in those:
        raise UnknownNameError(
            f"there is no {what} {name}",
            where=f"scenario {scenario.name}",
            remedy=one_of(those, name),
        )
    return those[name]


class ProfileBuilder:
    """Builds the profile of one task."""

    def __init__(
        self,
        definition: PipelineDef,
        task: TaskDef,
        recording: Recording | None,
        scenario: Scenario,
        streams: Callable[[str, str], Chance],
    ) -> None:
        self.definition, self.task, self.scenario = definition, task, scenario
        self.declared = scenario.of(task.name)
        self.record = TaskRecord() if recording is None else recording.tasks.get(task.name, TaskRecord())
        self.stored = {leaf.id: leaf for leaf in definition.repositories if leaf.derived is None}
        self._streams = streams

    def chance(self, purpose: str) -> Chance:
        return self._streams(self.task.name, purpose)

    def profile(self) -> Profile:
        """Return it; `CallerError` where its runs have no duration."""
        profile = Profile(self.task.name, _unknown, fates=fates(self.task.done_shape))
        self._fates(profile)
        self._durations(profile)
        self._latency(profile)
        self._fills(profile)
        own = self.declared.spawns or self._spawned()
        for name, count in own.items():
            known(name, self.stored, "stored repository", self.scenario)
            profile.spawns += ((name, _counted(as_distribution(count), self.chance(f"spawn {name}"))),)
        if self.record.priorities:
            priorities = self.record.priorities
            profile.priority = lambda job: priorities.get(job, 0.0)
        return profile

    def _fates(self, profile: Profile) -> None:
        declared, seconds = self.declared.weights(), self.record.seconds
        by_log = {outcome: float(len(those)) for outcome, those in seconds.items() if outcome != "cancelled"}
        weights = declared or by_log
        if self.declared.duration is not None and not declared:
            weights = {}
        found = tuple(weights.get(outcome, 0.0) for outcome in OUTCOMES)
        if any(found[1:]):
            profile.fate = chooser(found, self.chance("outcome"))
        if self.scenario.own and self.record.own and not declared:
            own, otherwise = self.record.own, profile.fate or (lambda: SUCCEEDED)

            def fate_of(job: str, attempt: int) -> int:
                runs = own.get(job)
                return OUTCOMES.index(runs[min(attempt, len(runs)) - 1][0]) if runs else otherwise()

            profile.fate_of = fate_of

    def _durations(self, profile: Profile) -> None:
        declared, record = self.declared.duration, self.record
        if isinstance(declared, Distribution | int | float):
            profile.duration = as_distribution(declared).sampler(self.chance("duration"))
            return
        usual = record.seconds.get("succeeded") or [
            each for those in record.seconds.values() for each in those
        ]
        if usual:
            profile.duration = Empirical(tuple(usual)).sampler(self.chance("duration"))
            if len(record.seconds) > 1:
                profile.durations = self._by_fate(profile.duration)
        if isinstance(declared, Mapping):
            profile.duration_of = _by_job(self.task.name, declared, bool(usual), profile)
        elif not usual and not self.task.disabled:
            raise InvalidValueError(
                f"there is no duration for {self.task.name}",
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
        if self.declared.latency is not None:
            profile.latency = as_distribution(self.declared.latency).sampler(self.chance("latency"))
        elif self.record.latencies and self.declared.duration is None and not self.scenario.machines:
            profile.latency = Empirical(tuple(self.record.latencies)).sampler(self.chance("latency"))

    def _fills(self, profile: Profile) -> None:
        declared = self.declared.outputs
        if isinstance(declared, Mapping):
            names = [self._repository(name) for name in declared]
            if len(names) > FILLS_MAX:
                raise InvalidValueError(
                    f"{self.task.name}: {len(names)} outputs with a likelihood each",
                    remedy=f"at most {FILLS_MAX}",
                )
            shares, chance = list(declared.values()), self.chance("outputs")
            profile.fills = tuple(
                tuple(name for bit, name in enumerate(names) if index >> bit & 1)
                for index in range(1 << len(names))
            )
            profile.fill = lambda: sum((chance() < share) << bit for bit, share in enumerate(shares))
        elif declared is not None:
            profile.fills = (tuple(self._repository(name) for name in declared),)
        elif self.record.fills:
            possible = {
                fill: count
                for fill, count in self.record.fills.items()
                if all(name in self.stored for name in fill)
            }
            ordered = sorted(possible.items(), key=lambda each: (-each[1], each[0])) or [(self._usual(), 1)]
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
            remedy=one_of(self._usual(), name),
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
    task: str, declared: Mapping[str, float], usual: bool, profile: Profile
) -> Callable[[str, int, int], int]:
    seconds = {job: int(float(each) * SECOND + 0.5) for job, each in declared.items()}

    def duration_of(job: str, attempt: int, fate: int) -> int:
        found = seconds.get(job)
        if found is not None:
            return found
        if not usual:
            raise InvalidValueError(
                f"there is no duration for {task} of {job}",
                remedy="add the job to the table of durations",
            )
        return profile.duration()

    return duration_of


def _own_durations(record: TaskRecord, profile: Profile) -> Callable[[str, int, int], int]:
    def duration_of(job: str, attempt: int, fate: int) -> int:
        runs = record.own.get(job)
        return int(runs[min(attempt, len(runs)) - 1][1] * SECOND + 0.5) if runs else profile.duration()

    return duration_of
