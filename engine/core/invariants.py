"""The invariants of the design, as far as events and state show them.

`check(state)` looks at one state; `Checker` follows a log batch by batch and sees what one state cannot: that a
run ends once, that a decision was admissible where it stands, that `done` comes before `RunEnded`. `rederive`
asks the decider once more what a recorded round decided. All three tell what is wrong in words and change nothing,
so the property tests, simulation and `verify` use the same ones.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from datatask.engine.core.decide import DECIDER_VERSION, decide
from datatask.engine.core.members import get_at
from datatask.engine.core.state import State
from datatask.engine.core.tasks import TaskState
from datatask.schema import events as e

Key = tuple[str, str]
"""(task, job)"""

TOLD_MAX = 1000
SHIPPED = frozenset({DECIDER_VERSION})
"""The decider versions that are still shipped, for `rederive`."""


# --- one state --------------------------------------------------------------------------------------


def check(state: State) -> list[str]:
    """Return what does not hold in this state, in words; costs O(jobs * leaves), for tests and `verify`."""
    found: list[str] = []
    found += _check_members(state)
    found += _check_runs(state)
    found += _check_usage(state)
    for task in state.tasks.values():
        found += _check_task(state, task)
    return found[:TOLD_MAX]


def _check_members(state: State) -> list[str]:
    found = []
    for leaf in state.leaves.values():
        by_mask = [job for job, mask in enumerate(state.masks) if mask & leaf.bit]
        if leaf.count != len(by_mask):
            found.append(f"{leaf.id} counts {leaf.count} members and has {len(by_mask)}")
        if list(leaf.members(state.masks)) != by_mask:
            found.append(f"the bitmap of {leaf.id} is not what the masks say")
    return found


def _check_runs(state: State) -> list[str]:
    pairs = Counter((run.task, run.job) for run in state.open_runs.values())
    found = [
        f"{task} has {number} open runs for {state.jobs[job]}"
        for (task, job), number in pairs.items()
        if number > 1
    ]
    for run in state.open_runs.values():
        episode = state.tasks[run.task].episodes.get(run.job)
        if episode is None or episode.run != run.run:
            found.append(f"run {run.run} is open, and its episode does not say so")
        counted = get_at(state.tasks[run.task].episode_count, run.job)
        if run.episode != counted:
            found.append(f"run {run.run} is of episode {run.episode}, its job is in episode {counted}")
    return found


def _check_usage(state: State) -> list[str]:
    used: Counter[tuple[str, str]] = Counter()
    for run in state.open_runs.values():
        for name, amount in run.resources.items() if run.quota is not None else ():
            used[run.quota or "", name] += amount
    told = {(name, part): n for name, quota in state.quotas.items() for part, n in quota.used.items() if n}
    summed = {key: amount for key, amount in used.items() if amount}
    return [] if told == summed else [f"quotas say that {told} is used, open runs hold {summed}"]


def _check_task(state: State, task: TaskState) -> list[str]:
    found = []
    live = task.live.members(state.masks)
    open_here = {run.job for run in state.open_runs.values() if run.task == task.name}
    if set(live) != open_here or task.open_runs != len(open_here):
        found.append(
            f"{task.name}: live says {len(live)}, counted {task.open_runs}, open are {len(open_here)}"
        )
    for job, mask in enumerate(state.masks):
        ready, claimed = task.condition.test(mask), mask & task.claim != 0
        waits = (job in task.queue) + (job in task.awaiting)
        if waits > 1 or (waits and claimed) or (waits and not ready) or (ready and not claimed and not waits):
            found.append(
                f"{task.name} {state.jobs[job]}: ready {ready}, claimed {claimed}, in {waits} queues: one must follow"
                " from the others"
            )
        if job in task.episodes and not claimed:
            found.append(f"{task.name} {state.jobs[job]} is in an episode that nothing claims")
    return found


# --- a log, batch by batch --------------------------------------------------------------------------


class Checker:
    """Call `before(state, batch)` ahead of folding a batch and `after(state)` behind it; both tell what is wrong.

    It keeps one entry for each open run and, per (task, job), the last episode and attempt.
    """

    def __init__(self) -> None:
        self._position = 0
        self._open: dict[int, Key] = {}
        self._busy: dict[Key, int] = {}
        self._last: dict[Key, tuple[int, int]] = {}
        self._launches: dict[str, deque[int]] = {}
        self._epoch = 0
        self._at = 0

    @classmethod
    def on(cls, state: State) -> Checker:
        """Return a checker that goes on from a state in the middle of a log."""
        checker = cls()
        checker._position, checker._at = state.position, state.at
        checker._epoch = state.engine.epoch if state.engine is not None else 0
        for run in state.open_runs.values():
            key = (run.task, state.jobs[run.job])
            checker._open[run.run], checker._busy[key] = key, run.run
            checker._last[key] = (run.episode, run.attempt)
        return checker

    def before(self, state: State, batch: Sequence[e.Event]) -> list[str]:
        """Check a batch against the state that it follows on."""
        found: list[str] = []
        if state.position != self._position:
            found.append(f"position {self._position + 1}: the state stands at {state.position}")
        planned = _Planned()
        for position, event in enumerate(batch, self._position + 1):
            told = self._envelope(event)
            match event:
                case e.LaunchDecided():
                    told += self._launch(state, position, event, planned)
                case e.RunEnded():
                    told += self._end(state, event, batch)
                case e.PipelineDefined() | e.Renamed():
                    told += self._renamed(event)
                case e.RetryScheduled():
                    told += self._retry(event)
                case (
                    e.RunStarted() | e.RunAdopted() | e.RunUnreachable() | e.RunReachable() | e.StopDecided()
                ):
                    if event.run not in self._open:
                        told.append(f"{type(event).__name__} is about run {event.run}, which is not open")
            found += [f"position {position}: {text}" for text in told]
        self._position += len(batch)
        return found

    def after(self, state: State) -> list[str]:
        """Check that the folded state agrees with what was followed; cheap, O(open runs)."""
        if set(state.open_runs) == set(self._open):
            return []
        return [
            f"position {self._position}: open runs are {sorted(self._open)}, the state has {sorted(state.open_runs)}"
        ]

    def _envelope(self, event: e.Event) -> list[str]:
        found = []
        if event.at < self._at:
            found.append(f"time goes back from {self._at} to {event.at}")
        self._at = max(self._at, event.at)
        if isinstance(event, e.EngineOpened):
            if event.epoch <= self._epoch:
                found.append(f"an engine opens under epoch {event.epoch} after {self._epoch}")
            self._epoch = max(self._epoch, event.epoch)
        return found

    def _launch(self, state: State, position: int, event: e.LaunchDecided, planned: _Planned) -> list[str]:
        key = (event.task or "", event.job or "")
        found = []
        if key in self._busy:
            found.append(f"{key[0]} {key[1]} is launched while its run {self._busy[key]} is open")
        episode, attempt = self._last.get(key, (0, 0))
        if not ((event.episode == episode and event.attempt == attempt + 1) or event.episode > episode):
            found.append(
                f"{key[0]} {key[1]}: episode {event.episode} attempt {event.attempt} follows on"
                f" episode {episode} attempt {attempt}"
            )
        if event.episode > episode and event.attempt != 1:
            found.append(f"{key[0]} {key[1]}: episode {event.episode} begins with attempt {event.attempt}")
        self._open[position], self._busy[key], self._last[key] = key, position, (event.episode, event.attempt)
        if event.origin == "derived":
            found += admissible(state, event, planned)
        planned.take(state, event)
        return found + self._rate(state, event)

    def _rate(self, state: State, event: e.LaunchDecided) -> list[str]:
        """Recount the launch window from the events alone; it counts from when the limit was set."""
        task = state.tasks.get(event.task or "")
        quota = state.quotas.get(task.definition.quota or "") if task is not None else None
        if quota is None or quota.launches is None:
            return []
        recent = self._launches.setdefault(quota.definition.name, deque())
        while recent and recent[0] <= event.at - quota.definition.window:
            recent.popleft()
        recent.append(event.at)
        if event.origin != "derived" or len(recent) <= quota.launches:
            return []
        return [f"{quota.definition.name} allows {quota.launches} launches a window and has {len(recent)}"]

    def _end(self, state: State, event: e.RunEnded, batch: Sequence[e.Event]) -> list[str]:
        key = self._open.pop(event.run or 0, None)
        if key is None:
            return [f"run {event.run} ends and is not open"]
        self._busy.pop(key, None)
        found = [] if key == (event.task, event.job) else [f"run {event.run} is of {key}"]
        task = state.tasks.get(key[0])
        done = task.definition.done if task is not None else None
        late = False
        for other in batch:
            late = late or other is event
            if late and isinstance(other, e.ValuePut) and other.run == event.run and other.repository == done:
                found.append(f"run {event.run} writes done behind its end")
        scheduled = any(isinstance(other, e.RetryScheduled) and other.run == event.run for other in batch)
        if event.final is scheduled:
            found.append(f"run {event.run}: final is {event.final}, a retry scheduled {scheduled}")
        return found

    def _retry(self, event: e.RetryScheduled) -> list[str]:
        key = (event.task or "", event.job or "")
        _, attempt = self._last.get(key, (0, 0))
        found = (
            []
            if event.attempt == attempt + 1
            else [f"{key} is to be tried a {event.attempt}. time after {attempt}"]
        )
        return found if event.not_before >= event.at else [*found, f"{key} is scheduled for the past"]

    def _renamed(self, event: e.PipelineDefined | e.Renamed) -> list[str]:
        """A removed task forgets its episodes; a renamed one takes them along."""
        if isinstance(event, e.PipelineDefined):
            names = {task.name for task in event.definition.tasks} | {task for task, _ in self._busy}
            self._last = {key: last for key, last in self._last.items() if key[0] in names}
        elif event.what == "task":

            def renamed(key: Key) -> Key:
                return (event.new, key[1]) if key[0] == event.old else key

            self._busy = {renamed(key): run for key, run in self._busy.items()}
            self._last = {renamed(key): last for key, last in self._last.items()}
            self._open = {run: renamed(key) for run, key in self._open.items()}
        return []


# --- decisions --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Planned:
    """What the launches of one batch have taken so far."""

    used: Counter[tuple[str, str]] = field(default_factory=Counter)
    running: Counter[str] = field(default_factory=Counter)

    def take(self, state: State, event: e.LaunchDecided) -> None:
        task = state.tasks.get(event.task or "")
        if task is None:
            return
        self.running[task.name] += 1
        if task.definition.quota is not None:
            for name, amount in event.resources.items():
                self.used[task.definition.quota, name] += amount


def admissible(state: State, event: e.LaunchDecided, planned: _Planned | None = None) -> list[str]:
    """Return why this launch could not be decided on this state, after the ones planned; empty if it could."""
    planned = planned or _Planned()
    task, job = state.tasks.get(event.task or ""), state.job_index.get(event.job or "")
    if task is None or job is None:
        return [f"{event.task} {event.job} is not known"]
    who, found = f"{event.task} {event.job}", []
    episode = task.episodes.get(job)
    if not task.condition.test(state.masks[job]):
        found.append(f"{who} is not ready")
    if episode is None and job not in task.queue:
        found.append(f"{who} does not wait")
    if episode is not None and (episode.run or episode.not_before is None or episode.not_before > event.at):
        found.append(f"{who} is not due: run {episode.run}, not before {episode.not_before}")
    if event.episode != get_at(task.episode_count, job):
        found.append(f"{who} is in episode {get_at(task.episode_count, job)}, not {event.episode}")
    if task.paused or task.definition.disabled:
        found.append(f"{task.name} is paused or disabled")
    found += [f"{leaf.id} is not known yet" for leaf in task.reads if not leaf.synced]
    limit = task.definition.concurrency
    if limit is not None and task.open_runs + planned.running[task.name] >= limit:
        found.append(f"{task.name} has {limit} runs already")
    if task.definition.quota is not None:
        found += _within(state, task.definition.quota, event, planned)
    return found


def _within(state: State, name: str, event: e.LaunchDecided, planned: _Planned) -> list[str]:
    quota = state.quotas[name]
    found = []
    for part, amount in event.resources.items():
        taken = quota.used.get(part, 0) + planned.used[name, part]
        if amount and taken + amount > quota.limits.get(part, 0):
            found.append(f"{name}.{part} would be {taken + amount} of {quota.limits.get(part, 0)}")
    return found


def rederive(state: State, event: e.DecisionRound, decisions: Sequence[e.LaunchDecided]) -> list[str]:
    """Decide a recorded round again; return what is missing, extra or otherwise. `state` is the one before it."""
    if event.decider not in SHIPPED:
        return []
    if state.position != event.state:
        return [f"the round was decided at {event.state}, the state stands at {state.position}"]
    again = decide(
        state, event.now, bound=event.bound, unavailable=frozenset(event.unavailable), actor=event.actor
    )
    found = []
    told, recorded = {_pair(d): d for d in again.decisions}, {_pair(d): d for d in decisions}
    found += [f"missing: {task} {job}" for task, job in told if (task, job) not in recorded]
    found += [f"extra: {task} {job}" for task, job in recorded if (task, job) not in told]
    for key in told.keys() & recorded.keys():
        for name in e.LaunchDecided.__struct_fields__:
            fresh, old = getattr(told[key], name), getattr(recorded[key], name)
            if fresh != old and not (name == "cause" and old is None):  # not told by earlier versions
                found.append(f"{key[0]} {key[1]}: {name} is {old!r}, derived again {fresh!r}")
    if not found and list(told) != list(recorded):
        found.append("the order of the decisions is another one")
    if again.constraints != event.constraints:
        found.append(f"constraints are {event.constraints!r}, derived again {again.constraints!r}")
    return found


def _pair(decision: e.LaunchDecided) -> tuple[str, str]:
    return (decision.task or "", decision.job or "")
