"""The invariants, as far as a log can show them, batch by batch: `Checker`.

In: the state before a batch, and its events (`before`, ahead of folding); the state after it (`after`). Out: divergences;
nothing is changed, so property tests, simulation and `verify` use the same rules. Which invariants there are, and which
of them no log can show, is in docs/architecture.md. Single states and rounds are checked in `consistency`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from datatask.engine.audit.consistency import Planned, admissible
from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.troubles import Divergence

Key = tuple[str, str]
"""(task, job)"""


class Followed(NamedTuple):
    """An open run, as the checker follows it."""

    task: str
    job: str
    attempt: int
    quota: str | None
    resources: dict[str, int]


def decisions_of(batch: Sequence[e.Event]) -> list[e.LaunchDecided]:
    """Return the launches that a batch decides."""
    return [event for event in batch if isinstance(event, e.LaunchDecided)]


class Checker:
    """Follows a log beside the fold; keeps one entry for each open run and the launches that count in windows."""

    def __init__(self) -> None:
        self._position = 0
        self._at = 0
        self._epoch = 0
        self._alive = False
        self._open: dict[int, Followed] = {}
        self._busy: dict[Key, int] = {}
        self._used: dict[str, dict[str, int]] = {}
        self._launches: dict[str, deque[int]] = {}
        self._touched: set[int] = set()
        self._events: Sequence[e.Event] = ()
        self._first = 0
        self._made: _InBatch | None = None

    @classmethod
    def on(cls, state: State) -> Checker:
        """Return a checker that goes on from a state in the middle of a log."""
        checker = cls()
        checker._position, checker._at = state.position, state.at
        checker._epoch = state.engine.epoch if state.engine is not None else 0
        checker._alive = state.engine is not None and not state.closed
        for run in state.open_runs.values():
            followed = Followed(run.task, state.jobs[run.job], run.attempt, run.quota, run.resources)
            checker._follow(run.run, followed)
        for name, quota in state.quotas.items():
            if quota.launches is not None:
                checker._launches[name] = deque(quota.recent)
        checker._touched.clear()
        return checker

    def before(self, state: State, batch: Sequence[e.Event]) -> list[Divergence]:
        """Check a batch against the state that it follows on."""
        found: list[Divergence] = []
        position, at = self._position, self._at
        if state.position != position:
            found.append(Divergence(position + 1, "the state before the batch", position, state.position))
        self._events, self._first, self._made = batch, position + 1, None
        self._touched.clear()
        rules = _RULES
        for event in batch:
            position += 1
            if event.at < at:
                found.append(Divergence(position, "time", f"at least {at}", event.at))
            else:
                at = event.at
            cause = event.cause
            if cause is not None and not 0 < cause < position:
                found.append(Divergence(position, "cause", f"a position before {position}", cause))
            rule = rules.get(type(event))
            if rule is not None:
                found += rule(self, state, position, event)
            self._at = at
        self._position = position
        return found

    def after(self, state: State) -> list[Divergence]:
        """Check that the folded state agrees with what was followed; costs O(runs and quotas of the batch)."""
        found: list[Divergence] = []
        runs = state.open_runs
        if not self._touched and len(runs) == len(self._open):
            return found
        if len(runs) != len(self._open) or runs.keys() & self._touched != self._open.keys() & self._touched:
            for run in sorted(set(runs) ^ set(self._open)):
                expected, recorded = ("open", "closed") if run in self._open else ("closed", "open")
                found.append(Divergence(self._position, f"run {run} in the state", expected, recorded))
        if self._used:
            for name, used in self._used.items():
                quota = state.quotas.get(name)
                there = {part: n for part, n in quota.used.items() if n} if quota is not None else used
                if there != used:
                    found.append(Divergence(self._position, f"usage of {name}", repr(used), repr(there)))
        return found

    @property
    def _batch(self) -> _InBatch:
        if self._made is None:
            self._made = _InBatch(self._events, self._first)
        return self._made

    # --- runs that are followed -------------------------------------------------------------------

    def _follow(self, run: int, followed: Followed) -> None:
        self._open[run] = followed
        self._busy[followed.task, followed.job] = run
        self._touched.add(run)
        if followed.quota is not None:
            self._account(followed, 1)

    def _account(self, followed: Followed, sign: int) -> None:
        used = self._used.setdefault(followed.quota or "", {})
        for part, amount in followed.resources.items():
            left = used.get(part, 0) + sign * amount
            if left:
                used[part] = left
            else:
                used.pop(part, None)

    # --- rules, one a kind ------------------------------------------------------------------------

    def _opened(self, state: State, position: int, event: e.EngineOpened) -> list[Divergence]:
        found = []
        if event.epoch <= self._epoch:
            found.append(Divergence(position, "epoch", f"more than {self._epoch}", event.epoch))
        if event.last_sign is not None and event.last_sign != self._at:
            found.append(Divergence(position, "the last sign of life before", self._at, event.last_sign))
        self._epoch, self._alive = max(self._epoch, event.epoch), True
        return found

    def _closed(self, state: State, position: int, event: e.EngineClosed) -> list[Divergence]:
        self._alive = False
        if event.epoch == self._epoch:
            return []
        return [Divergence(position, "the epoch that closes", self._epoch, event.epoch)]

    def _defined(self, state: State, position: int, event: e.PipelineDefined) -> list[Divergence]:
        digest = event.definition.digest()
        return [] if digest == event.digest else [Divergence(position, "definition", event.digest, digest)]

    def _renamed(self, state: State, position: int, event: e.Renamed) -> list[Divergence]:
        if event.what == "task":
            for run, followed in list(self._open.items()):
                if followed.task == event.old:
                    del self._busy[followed.task, followed.job]
                    self._open[run] = renamed = followed._replace(task=event.new)
                    self._busy[renamed.task, renamed.job] = run
        return []

    def _round(self, state: State, position: int, event: e.DecisionRound) -> list[Divergence]:
        found = []
        if event.state != position - 1 or position != self._batch.first:
            found.append(Divergence(position, "the state decided on", self._batch.first - 1, event.state))
        derived = sum(1 for one in self._batch.launches() if one.origin == "derived")
        if derived != event.decisions:
            found.append(Divergence(position, "decisions of the round", event.decisions, derived))
        return found + self._engine(position, "a round")

    def _engine(self, position: int, what: str) -> list[Divergence]:
        if self._alive:
            return []
        return [Divergence(position, f"{what} while", "an engine holds the log", "none does")]

    def _launch(self, state: State, position: int, event: e.LaunchDecided) -> list[Divergence]:
        key = (event.task or "", event.job or "")
        batch, found = self._batch, self._engine(position, "a launch")
        if key in self._busy:
            found.append(Divergence(position, f"{key[0]} {key[1]}: open run", None, f"run {self._busy[key]}"))
        if event.origin == "derived" and not batch.is_round:
            found.append(
                Divergence(position, f"{key[0]} {key[1]}: derived launch", "in a round", "by itself")
            )
        found += admissible(state, position, event, batch.planned)
        task = state.tasks.get(key[0])
        if task is None:
            return found
        quota = task.definition.quota
        batch.planned.take(task, event)
        self._follow(position, Followed(key[0], key[1], event.attempt, quota, event.resources))
        return found if quota is None else found + self._rate(state, position, quota, event)

    def _rate(self, state: State, position: int, name: str, event: e.LaunchDecided) -> list[Divergence]:
        """Recount the launch window from the events alone; it counts from when the limit was set."""
        quota = state.quotas[name]
        if quota.launches is None:
            return []
        recent = self._launches.setdefault(quota.definition.name, deque())
        while recent and recent[0] <= event.at - quota.definition.window:
            recent.popleft()
        recent.append(event.at)
        if event.over_quota or len(recent) <= quota.launches:
            return []
        limit = f"at most {quota.launches}"
        return [Divergence(position, f"launches of {name} in its window", limit, len(recent))]

    def _resized(self, state: State, position: int, event: e.RunResized) -> list[Divergence]:
        followed = self._open.get(event.run)
        if followed is not None:
            resized = self._open[event.run] = followed._replace(resources=event.resources)
            self._touched.add(event.run)
            if followed.quota is not None:
                self._account(followed, -1)
                self._account(resized, 1)
        return self._about_run(state, position, event)

    def _about_run(self, state: State, position: int, event: Any) -> list[Divergence]:
        followed = self._open.get(event.run)
        if followed is None:
            return [Divergence(position, f"{type(event).__name__} of run {event.run}", "an open run", "none")]
        if event.job == followed.job and event.task == followed.task:
            return []
        expected = f"{followed.task} {followed.job}"
        return [Divergence(position, f"run {event.run} is of", expected, f"{event.task} {event.job}")]

    def _end(self, state: State, position: int, event: e.RunEnded) -> list[Divergence]:
        found = self._about_run(state, position, event)
        followed = self._open.pop(event.run or 0, None)
        if followed is None:
            return found
        self._busy.pop((followed.task, followed.job), None)
        self._touched.add(event.run or 0)
        if followed.quota is not None:
            self._account(followed, -1)
        batch = self._batch
        batch.ended[event.run or 0] = followed.attempt
        behind = batch.written.get(event.run or 0, 0)
        if behind > position:
            found.append(Divergence(behind, f"what run {event.run} wrote", "before its end", "behind it"))
        scheduled = event.run in batch.scheduled
        if event.final is scheduled:
            retry = ("no retry", "a retry") if event.final else ("a retry", "none")
            found.append(Divergence(position, f"run {event.run} ends, final {event.final}", *retry))
        return found

    def _retry(self, state: State, position: int, event: e.RetryScheduled) -> list[Divergence]:
        attempt = self._batch.ended.get(event.run or 0)
        if attempt is None:
            return [Divergence(position, f"retry of run {event.run}", "with its end", "without")]
        found = []
        if event.attempt != attempt + 1:
            found.append(Divergence(position, f"attempt after run {event.run}", attempt + 1, event.attempt))
        if event.not_before < event.at:
            found.append(Divergence(position, "time of the retry", f"from {event.at} on", event.not_before))
        return found

    def _late(self, state: State, position: int, event: e.LateFact) -> list[Divergence]:
        run = state.open_runs.get(event.run)
        if event.run not in self._open or (run is not None and run.settling is not None):
            return []  # over, or over at its target while its outputs travel
        return [Divergence(position, f"LateFact of run {event.run}", "a closed run", "an open one")]


class _InBatch:
    """Facts about the batch at hand, made when the first rule asks."""

    __slots__ = ("ended", "events", "first", "is_round", "planned", "scheduled", "written")

    def __init__(self, events: Sequence[e.Event], first: int) -> None:
        """Read the batch once, unless it is a round: the last value that each run wrote, and its retries."""
        self.events, self.first = events, first
        self.is_round = type(events[0]) is e.DecisionRound
        self.planned = Planned()
        self.ended: dict[int, int] = {}
        self.written: dict[int, int] = {}
        self.scheduled: set[int] = set()
        for position, event in enumerate(() if self.is_round else events, first):
            if event.run is None:
                continue
            if type(event) is e.ValuePut:
                self.written[event.run] = position
            elif type(event) is e.RetryScheduled:
                self.scheduled.add(event.run)

    def launches(self) -> list[e.LaunchDecided]:
        return decisions_of(self.events)


_RULES: dict[type[e.Event], Callable[[Checker, State, int, Any], list[Divergence]]] = {
    e.EngineOpened: Checker._opened,
    e.EngineClosed: Checker._closed,
    e.PipelineDefined: Checker._defined,
    e.Renamed: Checker._renamed,
    e.DecisionRound: Checker._round,
    e.LaunchDecided: Checker._launch,
    e.RunStarted: Checker._about_run,
    e.RunAdopted: Checker._about_run,
    e.RunUnreachable: Checker._about_run,
    e.RunReachable: Checker._about_run,
    e.RunResized: Checker._resized,
    e.StopDecided: Checker._about_run,
    e.RunEnded: Checker._end,
    e.RetryScheduled: Checker._retry,
    e.LateFact: Checker._late,
}
