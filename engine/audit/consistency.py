"""What does not hold in a state, or in a recorded decision, as `Divergence` values.

In: a state, and the events of the next batch. Out: counts, bitmaps, queues and usage that do not follow from the rest
(`check`: from scratch, O(jobs * (leaves + tasks)), so `verify` asks at the end and now and then); decisions that could not
be taken there by any version (`admissible`); and what this version's decider decides otherwise (`rederive`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from datatask.engine.core.cells import get_at
from datatask.engine.core.decide import DECIDER_VERSION, decide
from datatask.engine.core.state import State
from datatask.engine.core.tasks import TaskState
from datatask.schema import events as e
from datatask.schema.troubles import Divergence

REPORTED_MAX = 1000


def check(state: State) -> list[Divergence]:
    """Return what does not hold in this state."""
    found = _members(state) + _runs(state) + _usage(state)
    for task in state.tasks.values():
        found += _task(state, task)
    return found[:REPORTED_MAX]


def _members(state: State) -> list[Divergence]:
    found = []
    for leaf in state.leaves.values():
        bit = leaf.bit
        by_mask = [job for job, mask in enumerate(state.masks) if mask & bit]
        if leaf.count != len(by_mask):
            found.append(
                Divergence(state.position, f"{leaf.id}: number of members", len(by_mask), leaf.count)
            )
        if list(leaf.members(state.masks)) != by_mask:
            found.append(Divergence(state.position, f"{leaf.id}: members", "those of the masks", "others"))
    return found


def _runs(state: State) -> list[Divergence]:
    found = []
    pairs = Counter((run.task, run.job) for run in state.open_runs.values())
    for (task, job), number in pairs.items():
        if number > 1:
            what = f"{task} {state.jobs[job]}: open runs"
            found.append(Divergence(state.position, what, 1, number))
    for run in state.open_runs.values():
        episode = state.tasks[run.task].episodes.get(run.job)
        recorded = None if episode is None else episode.run
        if recorded != run.run:
            what = f"the run of the episode of run {run.run}"
            found.append(Divergence(state.position, what, run.run, recorded))
        counted = get_at(state.tasks[run.task].episode_count, run.job)
        if run.episode != counted:
            found.append(Divergence(state.position, f"the episode of run {run.run}", counted, run.episode))
    return found


def _usage(state: State) -> list[Divergence]:
    used: Counter[tuple[str, str]] = Counter()
    for run in state.open_runs.values():
        for name, amount in run.resources.items() if run.quota is not None else ():
            used[run.quota or "", name] += amount
    recorded = {
        (name, part): n for name, quota in state.quotas.items() for part, n in quota.used.items() if n
    }
    summed = {key: amount for key, amount in used.items() if amount}
    found = []
    if summed != recorded:
        found.append(Divergence(state.position, "usage of quotas", repr(summed), repr(recorded)))
    return found + _identities(state)


def _identities(state: State) -> list[Divergence]:
    owners: dict[tuple[str, str, str], list[int]] = {}
    for run in state.open_runs.values():
        for part, own in run.identities.items():
            for identity in own:
                owners.setdefault((run.quota or "", part, identity), []).append(run.run)
    held = {
        (name, part, identity)
        for name, quota in state.quotas.items()
        for part, own in quota.held.items()
        for identity in own
    }
    found = [
        Divergence(state.position, f"runs that have {name}.{part} {identity}", 1, repr(runs))
        for (name, part, identity), runs in owners.items()
        if len(runs) > 1
    ]
    if held != owners.keys():
        found.append(
            Divergence(
                state.position, "identities that are given out", repr(sorted(owners)), repr(sorted(held))
            )
        )
    return found


def _task(state: State, task: TaskState) -> list[Divergence]:
    found = []
    live = task.live.members(state.masks)
    open_here = {run.job for run in state.open_runs.values() if run.task == task.name}
    if set(live) != open_here or task.open_runs != len(open_here):
        found.append(
            Divergence(state.position, f"{task.name}: live", len(open_here), f"{len(live)}, {task.open_runs}")
        )
    test, claim, queue, awaiting = task.condition.test, task.claim, task.queue, task.awaiting
    for job, mask in enumerate(state.masks):
        waits = (job in queue) + (job in awaiting)
        expected = int(test(mask) and not mask & claim)
        if waits != expected:
            what = f"{task.name} {state.jobs[job]}: places in queues"
            found.append(Divergence(state.position, what, expected, waits))
        if job in task.episodes and not mask & claim:
            what = f"{task.name} {state.jobs[job]}: claim of its episode"
            found.append(Divergence(state.position, what, "claimed", "not claimed"))
    return found


SHIPPED = frozenset({DECIDER_VERSION})
"""The decider versions that are still shipped, for `rederive`."""


@dataclass(slots=True)
class Planned:
    """What the launches of one batch have taken so far."""

    used: dict[tuple[str, str], int] = field(default_factory=dict)
    running: dict[str, int] = field(default_factory=dict)
    held: set[tuple[str, str, str]] = field(default_factory=set)

    def take(self, task: TaskState, event: e.LaunchDecided) -> None:
        """Account for a launch."""
        self.running[task.name] = self.running.get(task.name, 0) + 1
        quota = task.definition.quota
        if quota is not None:
            for name, amount in event.resources.items():
                self.used[quota, name] = self.used.get((quota, name), 0) + amount
            for name, own in event.identities.items():
                self.held.update((quota, name, identity) for identity in own)


def admissible(
    state: State, position: int, event: e.LaunchDecided, planned: Planned | None = None
) -> list[Divergence]:
    """Return why this launch could not be decided on this state, after the ones planned; empty if it could.

    A forced launch need not be ready, a launch by hand may be of a paused task, and `over_quota` is a person's word
    that limits do not count; everything else holds for all.
    """
    task, job = state.tasks.get(event.task or ""), state.job_index.get(event.job or "")
    if task is None or (job is None and event.origin != "forced"):
        what = f"{event.task} {event.job}: who is launched"
        return [Divergence(position, what, "a known task and job", "unknown")]
    found = [] if job is None else _episode(state, position, event, task, job)
    if event.origin == "derived" and (
        task.paused or task.definition.disabled or not all(leaf.synced for leaf in task.reads)
    ):
        pair = f"{event.task} {event.job}"
        if task.paused or task.definition.disabled:
            status = "paused" if task.paused else "disabled"
            found.append(Divergence(position, f"{pair}: its task", "open for launches", status))
        found += [
            Divergence(position, f"{pair}: reads {leaf.id}", "synced", "not known yet")
            for leaf in task.reads
            if not leaf.synced
        ]
    if not event.over_quota:
        found += _limits(state, position, event, task, planned or Planned())
    if event.identities:
        found += _own(state, position, event, task, planned or Planned())
    return found


def _episode(
    state: State, position: int, event: e.LaunchDecided, task: TaskState, job: int
) -> list[Divergence]:
    """Check that the job waits (or is forced), and that episode and attempt go on from the last."""
    episode, count = task.episodes.get(job), get_at(task.episode_count, job)
    waits = job in task.queue
    if episode is None and waits and (event.episode, event.attempt) == (count, 1):
        if event.origin == "forced" or task.condition.test(state.masks[job]):
            return []  # by far the most
    found, pair = [], f"{event.task} {event.job}"
    if event.origin != "forced":
        if not task.condition.test(state.masks[job]):
            found.append(Divergence(position, f"{pair}: condition", "ready", "not ready"))
        if episode is None and not waits:
            found.append(Divergence(position, f"{pair}: place", "in the queue", "does not wait"))
    if episode is not None and episode.run:
        found.append(Divergence(position, f"{pair}: open run", None, f"run {episode.run}"))
    elif episode is not None and event.origin == "derived":
        if episode.not_before is None or episode.not_before > event.at:
            due = (
                "no retry is scheduled" if episode.not_before is None else f"not before {episode.not_before}"
            )
            found.append(Divergence(position, f"{pair}: retry", due, f"at {event.at}"))
    opens = episode is None and not waits and job not in task.awaiting
    expected = (count + opens, 1 if episode is None else episode.attempt + 1)
    if (event.episode, event.attempt) != expected:
        recorded = f"{event.episode}.{event.attempt}"
        found.append(
            Divergence(position, f"{pair}: episode and attempt", f"{expected[0]}.{expected[1]}", recorded)
        )
    return found


def _limits(
    state: State, position: int, event: e.LaunchDecided, task: TaskState, planned: Planned
) -> list[Divergence]:
    found: list[Divergence] = []
    limit, name = task.definition.concurrency, task.definition.quota
    if limit is not None:
        running = task.open_runs + planned.running.get(task.name, 0) + 1
        if running > limit:
            what = f"{event.task} {event.job}: runs of {task.name}"
            found.append(Divergence(position, what, f"at most {limit}", running))
    if name is None:
        return found
    quota = state.quotas[name]
    for part, amount in event.resources.items():
        taken = quota.used.get(part, 0) + planned.used.get((name, part), 0) + amount
        allowed = quota.limits.get(part, 0)
        if amount and taken > allowed:
            what = f"{event.task} {event.job}: {name}.{part}"
            found.append(Divergence(position, what, f"at most {allowed}", taken))
    return found


def _own(
    state: State, position: int, event: e.LaunchDecided, task: TaskState, planned: Planned
) -> list[Divergence]:
    """Check that each identity is one of the quota's, and no other run's."""
    name = task.definition.quota
    quota = None if name is None else state.quotas[name]
    found = []
    for part, own in event.identities.items():
        known = () if quota is None else quota.definition.identities.get(part, ())
        held = () if quota is None else quota.held.get(part, ())
        for identity in own:
            what = f"{event.task} {event.job}: {name}.{part} {identity}"
            if identity not in known:
                found.append(Divergence(position, what, "one of the quota's", "unknown"))
            elif identity in held or (name, part, identity) in planned.held or own.count(identity) > 1:
                found.append(Divergence(position, what, "free", "given out already"))
    return found


def rederive(state: State, event: e.DecisionRound, decisions: Sequence[e.LaunchDecided]) -> list[Divergence]:
    """Decide a recorded round again; return what is missing, extra or otherwise. `state` is the one before it."""
    if event.decider not in SHIPPED:
        return []
    position = state.position + 1
    if state.position != event.state:
        return [Divergence(position, "the state that the round was decided on", state.position, event.state)]
    again = decide(
        state,
        event.now,
        bound=event.bound,
        unavailable=frozenset(event.unavailable),
        actor=event.actor,
        selection=event.selection,
    )
    found = [] if again.decisions == list(decisions) else _compared(again.decisions, decisions, position)
    if again.recorded != event.constraints:
        found.append(Divergence(position, "constraints", repr(again.recorded), repr(event.constraints)))
    return found


def _compared(
    derived: Sequence[e.LaunchDecided], recorded: Sequence[e.LaunchDecided], position: int
) -> list[Divergence]:
    """Return how the decisions that follow on a round at `position` differ from those derived again."""
    places = {_pair(one): place for place, one in enumerate(recorded, position + 1)}
    there, by_pair = {_pair(one) for one in derived}, {_pair(one): one for one in recorded}
    found = [
        Divergence(position, f"decision missing: {one.task} {one.job}", _in_words(one), None)
        for one in derived
        if _pair(one) not in by_pair
    ]
    found += [
        Divergence(places[pair], f"decision extra: {one.task} {one.job}", None, _in_words(one))
        for pair, one in by_pair.items()
        if pair not in there
    ]
    for one in derived:
        old = by_pair.get(_pair(one))
        if old is not None:
            found += _fields(one, old, places[_pair(one)])
    if not found and list(map(_pair, derived)) != list(map(_pair, recorded)):
        orders = (" ".join(one.job or "" for one in some[:10]) for some in (derived, recorded))
        found.append(Divergence(position, "the order of the decisions", *orders))
    return found


def _fields(fresh: e.LaunchDecided, old: e.LaunchDecided, position: int) -> list[Divergence]:
    if fresh == old:
        return []
    return [
        Divergence(position, f"{old.task} {old.job}: {name}", _plain(getattr(fresh, name)), _plain(value))
        for name in e.LaunchDecided.__struct_fields__
        if (value := getattr(old, name)) != getattr(fresh, name)
        and not (name == "cause" and value is None)  # earlier versions do not record it
    ]


def _pair(decision: e.LaunchDecided) -> tuple[str, str]:
    return (decision.task or "", decision.job or "")


def _in_words(decision: e.LaunchDecided) -> str:
    return f"launch of {decision.task} {decision.job}, episode {decision.episode}.{decision.attempt}"


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, str | int | float) else repr(value)
