"""Who watches a life: every batch against the promises, and at the end the world against the log."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from datatask.engine.audit import consistency, invariants
from datatask.engine.core.checkpoints import fingerprint
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import State
from datatask.schema import events as e
from tests.simulation.plans import Plan
from tests.simulation.stores import SimLog
from tests.simulation.target import Target


class Oracle:
    """Folds what is durable once more, batch by batch, and keeps what is wrong in `found`."""

    def __init__(self) -> None:
        self.state = State()
        self.checker = invariants.Checker()
        self.found: list[str] = []
        self.held: dict[int, tuple[str, dict[str, int]]] = {}

    def look(self, log: SimLog) -> None:
        """Check the batches that have become durable since the last look."""
        for batch in log._batches[self._index(log) :]:
            if batch.last > log.head:
                break
            self._check(batch)

    def _index(self, log: SimLog) -> int:
        return log._index(self.state.position + 1)

    def _check(self, batch: e.Batch) -> None:
        state = self.state
        self.found += map(str, self.checker.before(state, batch.events))
        first = batch.events[0]
        if isinstance(first, e.DecisionRound):
            decisions = [event for event in batch.events if isinstance(event, e.LaunchDecided)]
            self.found += map(str, consistency.rederive(state, first, decisions))
        apply_all(state, batch.first, batch.events)
        self.found += map(str, self.checker.after(state))
        self._quotas(batch)

    def _quotas(self, batch: e.Batch) -> None:
        """No derived launch takes more than is left, counted from the events alone."""
        for position, event in enumerate(batch.events, batch.first):
            if isinstance(event, e.RunEnded):
                self.held.pop(event.run, None)
            elif isinstance(event, e.LaunchDecided):
                quota = self.state.tasks[event.task].definition.quota
                if quota is None:
                    continue
                self.held[position] = quota, event.resources
                for part, limit in self.state.quotas[quota].limits.items():
                    used = sum(taken.get(part, 0) for name, taken in self.held.values() if name == quota)
                    if used > limit and event.origin == "derived":
                        self.found.append(f"position {position}: {used} of {limit} {quota}.{part}")

    def conclude(self, log: SimLog, target: Target, stores: Mapping[str, Collection[str]]) -> list[str]:
        """Return all that is wrong once everything is quiet; `stores` are the members that stores really have."""
        self.look(log)
        found = [*self.found, *target.wrong, *map(str, consistency.check(self.state))]
        again = State()
        for batch in log._batches:
            if batch.last <= log.head:  # what came after an engine's last word may not be on the disk yet
                apply_all(again, batch.first, batch.events)
        if fingerprint(again) != fingerprint(self.state):
            found.append("folding from empty gives another state")
        found += [f"run {run} is open at the end" for run in self.state.open_runs]
        found += [f"{pair} still runs at the end" for pair in target.alive]
        found += self._unknown(log, target) + self._twice(target)
        found += self._apart(stores) + self._forgotten()
        return found + (self._undisturbed(target.plan) if _is_calm(target.plan) else [])

    def _apart(self, stores: Mapping[str, Collection[str]]) -> list[str]:
        """What the log says of a store is what the store says."""
        found = []
        for name, members in stores.items():
            told = set(self.state.members(name))
            if told != set(members):
                found.append(f"{name} holds {sorted(members)}, the log says {sorted(told)}")
        return found

    def _forgotten(self) -> list[str]:
        """Nothing waits that could go on, and nothing is half done."""
        state = self.state
        found = [
            f"{len(task.queue)} jobs wait for {task.name}" for task in state.tasks.values() if task.queue
        ]
        found += [f"a write of {key} was intended and never done" for key in state.intents]
        return found + [f"{key} is to be evaluated" for key in state.pending]

    def _undisturbed(self, plan: Plan) -> list[str]:
        """Where nothing fails by itself and nobody meddles, crashes and faults make no difference."""
        jobs = {f"j{number}" for number in range(plan.jobs)}
        names = [f"{what}{n}" for n in range(len(plan.stages)) for what in ("done", "out")]
        leaves = self.state.leaves
        return [
            f"{name} has {sorted(self.state.members(name))} at the end, not {sorted(jobs)}"
            for name in names
            if not leaves[name].definition.ephemeral and set(self.state.members(name)) != jobs
        ]

    def _unknown(self, log: SimLog, target: Target) -> list[str]:
        """Everything that ran was decided, durably."""
        decided = {
            position
            for position, event in enumerate(log._events[: log.head], 1)
            if isinstance(event, e.LaunchDecided)
        }
        return [
            f"{process.spec.identity} ran and is not in the log"
            for process in target.processes.values()
            if process.spec.run not in decided
        ]

    def _twice(self, target: Target) -> list[str]:
        return [
            f"{identity} took effect {count} times" for identity, count in target.effects.items() if count > 1
        ]


def _is_calm(plan: Plan) -> bool:
    """Whether every job must come through; a mirror starts empty with each engine, so what reads it may wait."""
    steady = all(
        not stage.fails and stage.timeout is None and stage.home != "mirror" for stage in plan.stages
    )
    return steady and not plan.actions and len(plan.crashes) <= 4 and not plan.faults.disk_full
