"""The state: memberships as masks, and everything that follows from a changed bit.

In: single changes of membership. Out: ready queues, episodes and counts kept up to date, at the cost of the
tasks that see the changed leaf. `wiring` puts definitions in force, `fold` turns events into changes, `decide`
reads the result. Nothing here reads a clock or draws by chance.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from typing import NamedTuple

from pyroaring import BitMap

from datatask.engine.core.cells import put_at
from datatask.engine.core.leaves import CHANGED_MAX, DerivedState, LeafState
from datatask.engine.core.quotas import QuotaState
from datatask.engine.core.tasks import Intent, OpenRun, TaskState
from datatask.schema.definition import Medium, PipelineDef, Selection
from datatask.schema.events import EngineOpened
from datatask.schema.units import SECOND

FOLD_VERSION = 1
REQUESTS_MAX = 4096
MARKS_MAX = 4096
MARK_EVERY = SECOND
MAX_TIME = 1 << 63


class PendingKey(NamedTuple):
    """What is to be evaluated: `owner` is a leaf id (filter, translation) or a task name (priority, resources)."""

    what: str
    owner: str
    job: int


class Pending(NamedTuple):
    """Since which position, and, after an error, what it said and when to try again."""

    position: int
    error: str = ""
    retry_at: int = 0


class State:
    """Folded from events, never written to by hand. Jobs, leaves and tasks are dense integers inside."""

    def __init__(self) -> None:
        self.position = 0
        self.at = 0
        self.log = ""
        self.pipeline = ""
        self.engine: EngineOpened | None = None
        self.definition = PipelineDef()
        self.defined_at = 0
        self.fingerprints: dict[str, list[tuple[int, str]]] = {}
        """By task: from which position on its runs have had which fingerprint, where any was recorded."""
        self.accepted: dict[str, dict[int, int]] = {}
        """By task and job: the position as of which a person accepted the result; of no account once the job has been run again."""
        self.selection: Selection | None = None
        """What the engine that works may launch, as of its last round."""
        self.named: dict[str, tuple[int, BitMap]] = {}
        """By pattern of names: how many jobs were matched with it, and those that fit (a cache)."""
        self.jobs: list[str] = []
        self.job_index: dict[str, int] = {}
        self.masks: list[int] = []
        self.leaves: dict[str, LeafState] = {}
        self.watchers: list[list[TaskState]] = []
        """By leaf index: the tasks whose conditions look at the leaf."""
        self.tasks: dict[str, TaskState] = {}
        self.quotas: dict[str, QuotaState] = {}
        self.open_runs: dict[int, OpenRun] = {}
        self.pending: dict[PendingKey, Pending] = {}
        self.intents: dict[tuple[str, int], Intent] = {}
        self.requests: OrderedDict[str, int] = OrderedDict()
        self.marks: list[tuple[int, int]] = []
        self.mark_every = MARK_EVERY
        self.closed = False
        self.bits = 0
        self._interned: dict[int, int] = {}
        self._later: list[tuple[LeafState, int, bool]] = []
        self._following = False

    def new_bit(self) -> int:
        """Return a bit that no leaf and no claim has had."""
        self.bits += 1
        return 1 << (self.bits - 1)

    # --- names and places -------------------------------------------------------------------------

    def intern(self, job: str) -> int:
        """Return the job's integer, a new one on first sight."""
        index = self.job_index.get(job)
        if index is None:
            index = self.job_index[job] = len(self.jobs)
            self.jobs.append(job)
            self.masks.append(0)
        return index

    def shared(self, mask: int) -> int:
        """Return the one integer object that stands for this mask: masks are many, and few of them differ."""
        return self._interned.setdefault(mask, mask)

    def take_masks(self, table: list[int], numbers: array[int]) -> None:
        """Take the masks of a checkpoint: the distinct ones, and for each job its number among them."""
        self._interned = dict(zip(table, table, strict=True))
        self.masks = list(map(table.__getitem__, numbers))

    def contains(self, leaf: str, job: str) -> bool:
        """Whether the job is in the leaf (unknown ones are in none)."""
        index = self.job_index.get(job)
        return index is not None and self.masks[index] & self.leaves[leaf].bit != 0

    def medium(self, leaf: str) -> Medium:
        """Return where a leaf's values live."""
        return self.leaves[leaf].definition.medium

    def members(self, leaf: str) -> list[str]:
        """Return the jobs in a leaf, or in a group of one (`group_id`), in the order of their first appearance in the log."""
        if leaf not in self.leaves and leaf.startswith("group("):
            gathered, _, job = leaf.removeprefix("group(").removesuffix(")").rpartition("/")
            derived, index = self.leaves[gathered].derived, self.job_index.get(job)
            if derived is None or derived.gathering is None or index is None:
                return []
            return [self.jobs[member] for member in derived.gathering.gathered(index)]
        return [self.jobs[job] for job in self.leaves[leaf].members(self.masks)]

    def hold_identities(self) -> None:
        """Work out from the open runs which identities are given out."""
        for quota in self.quotas.values():
            quota.held.clear()
        for run in self.open_runs.values():
            if run.quota is not None and run.identities:
                self.quotas[run.quota].hold(run.identities)

    def time_of(self, position: int) -> int:
        """Return when the event at `position` was written, or up to `mark_every` before, from sparse marks."""
        index = bisect_right(self.marks, (position, MAX_TIME)) - 1
        return self.marks[index][1] if index >= 0 else self.at

    def mark_due(self) -> int:
        """Return the time from which on the next event is to be marked."""
        return self.marks[-1][1] + self.mark_every if self.marks else 0

    def mark(self, position: int, at: int) -> None:
        """Remember when a position was written, sparsely: halved in number, doubled in distance when full."""
        self.marks.append((position, at))
        if len(self.marks) > MARKS_MAX:
            self.marks = self.marks[::2]
            self.mark_every *= 2

    # --- one changed bit --------------------------------------------------------------------------

    def flip(self, leaf: LeafState, job: int, present: bool, position: int) -> bool:
        """Set a job's membership and let everything follow; return whether it changed.

        What follows for other bits waits in `_later`, so that each change is complete before the next one
        begins: edges of one job are then seen in the order in which its mask took its values.
        """
        masks, bit = self.masks, leaf.bit
        before = masks[job]
        if present == (before & bit != 0):
            return False
        after = before ^ bit
        masks[job] = after = self._interned.setdefault(after, after)
        leaf.count += 1 if present else -1
        leaf.changed.append(job)
        if len(leaf.changed) > CHANGED_MAX:
            leaf.members(masks)
        for task in self.watchers[leaf.index]:
            care, want, predicate = task.condition
            if predicate is None:
                was, now = before & care == want, after & care == want
            else:
                was, now = predicate(before), predicate(after)
            if was is now:
                continue
            if now:
                if not after & task.claim:
                    self._enter(task, job, position)
                    if after & task.outcomes:
                        self._later += [(task.succeeded, job, False), (task.failed, job, False)]
            elif after & task.claim:
                self.release(task, job)
            else:
                self.dequeue(task, job)
        if leaf.feeds:
            self._feed(leaf, job, before, after, position)
        if leaf.translates:
            for derived in leaf.translates:
                self._retranslate(derived, job, before, after, position)
        if leaf.gathers:
            for derived in leaf.gathers:
                self._gather(derived, job, before, after, position)
        if self._later and not self._following:
            self._follow(position)
        return True

    def _follow(self, position: int) -> None:
        """Make the changes that wait in `_later`, and those that they lead to."""
        self._following = True
        try:
            for leaf, job, present in self._later:  # grows meanwhile
                self.flip(leaf, job, present, position)
        finally:
            self._later.clear()
            self._following = False

    def open_episode(self, task: TaskState, job: int, position: int) -> None:
        """The job has become ready: count the episode, queue the job, clear what the last episode left."""
        self._enter(task, job, position)
        self.clear_outcomes(task, job, position)

    def _enter(self, task: TaskState, job: int, position: int) -> None:
        try:
            task.episode_count[job] += 1
        except IndexError:
            put_at(task.episode_count, job, 1)
        self.enqueue(task, job, position)

    def enqueue(self, task: TaskState, job: int, position: int) -> None:
        """Let a job wait that became ready at `position`; where priorities count, until its own is known."""
        if task.definition.priority:
            task.awaiting[job] = position
            self.pending[PendingKey("priority", task.name, job)] = Pending(position)
        else:
            task.queue.push(job, 0.0, position)

    def clear_outcomes(self, task: TaskState, job: int, position: int) -> None:
        """A new episode has opened: the last one's outcome is no longer shown."""
        if self.masks[job] & task.outcomes:
            self.flip(task.succeeded, job, False, position)
            self.flip(task.failed, job, False, position)

    def dequeue(self, task: TaskState, job: int) -> None:
        """The job no longer waits for this task: its episode ends without a run."""
        if not task.queue.discard(job) and task.awaiting.pop(job, None) is not None:
            self.pending.pop(PendingKey("priority", task.name, job), None)

    def release(self, task: TaskState, job: int) -> None:
        """The conditions of a claimed job have ceased: unless a run is open, the next edge counts anew."""
        episode = task.episodes.get(job)
        if episode is not None:
            if episode.run:
                return
            del task.episodes[job]
        self.set_claim(task, job, False)

    def set_claim(self, task: TaskState, job: int, present: bool) -> None:
        """Set or clear the in-flight bit of the episode."""
        mask = self.masks[job]
        mask = mask | task.claim if present else mask & ~task.claim
        self.masks[job] = self._interned.setdefault(mask, mask)

    # --- derived leaves ---------------------------------------------------------------------------

    def _feed(self, leaf: LeafState, job: int, before: int, after: int, position: int) -> None:
        for derived in leaf.feeds:
            was, now = derived.base.test(before), derived.base.test(after)
            if was is now:
                continue
            if derived.translator is not None:
                self._later += [(derived.leaf, key, now) for key in sorted(derived.reverse.get(job, ()))]
            elif now:
                self.pending[PendingKey("filter", derived.leaf.id, job)] = Pending(position)
            else:
                self.pending.pop(PendingKey("filter", derived.leaf.id, job), None)
                self._later.append((derived.leaf, job, False))

    def _retranslate(self, derived: DerivedState, job: int, before: int, after: int, position: int) -> None:
        assert derived.translator is not None
        was, now = derived.translator.test(before), derived.translator.test(after)
        if now and not was:
            self.pending[PendingKey("translation", derived.leaf.id, job)] = Pending(position)
        elif was and not now:
            self.pending.pop(PendingKey("translation", derived.leaf.id, job), None)
            derived.bind(job, None)
            self._later.append((derived.leaf, job, False))

    def _gather(self, derived: DerivedState, job: int, before: int, after: int, position: int) -> None:
        gathering = derived.gathering
        if gathering is None or derived.translator is None:
            return
        was, now = derived.translator.test(before), derived.translator.test(after)
        through = now and derived.base.test(after)
        if gathering.rule.key == "asked":
            if now and (not was or gathering.reads(before, after)):
                self._ask_key(derived, job, position)
            elif was and not now:
                self.pending.pop(PendingKey("translation", derived.leaf.id, job), None)
        if was is not now or through is not (was and derived.base.test(before)):
            changes = gathering.update(self, job, now, through)
            self._later += [(derived.leaf, group, present) for group, present in changes]

    def _ask_key(self, derived: DerivedState, job: int, position: int) -> None:
        self.pending[PendingKey("translation", derived.leaf.id, job)] = Pending(position)
        if derived.gathering is not None:
            derived.gathering.ask(job)

    def gather_anew(self, derived: DerivedState, position: int) -> None:
        """A gathered leaf's rule is new or another one: its groups are made from all jobs."""
        gathering, translator, leaf = derived.gathering, derived.translator, derived.leaf
        if gathering is None or translator is None:
            return
        gathering.clear()
        for job in range(len(self.masks)):
            self.pending.pop(PendingKey("translation", leaf.id, job), None)
            expected = translator.test(self.masks[job])
            if expected and gathering.rule.key == "asked":
                self._ask_key(derived, job, position)
            if expected:
                gathering.update(self, job, expected, False)
        for job in range(len(self.masks)):  # not before all are expected: none of them is late
            if translator.test(self.masks[job]) and derived.base.test(self.masks[job]):
                gathering.update(self, job, True, True)
        complete = BitMap(gathering.complete())
        for job in leaf.members(self.masks) | complete:
            self.flip(leaf, job, job in complete, position)

    def put_into_group(self, derived: DerivedState, job: int, key: str | None, position: int) -> None:
        """User code has told a job's key, or that it has none."""
        gathering, translator = derived.gathering, derived.translator
        if gathering is not None and translator is not None:
            expected = translator.test(self.masks[job])
            through = expected and derived.base.test(self.masks[job])
            for group, present in gathering.assign(self, job, key, expected, through):
                self.flip(derived.leaf, group, present, position)

    def value_changed(self, leaf: LeafState, job: int, position: int) -> None:
        """A member's value is another one: what was evaluated from it is due again."""
        mask = self.masks[job]
        for derived in leaf.feeds:
            if derived.translator is None and derived.base.test(mask):
                self.pending[PendingKey("filter", derived.leaf.id, job)] = Pending(position)
        for derived in leaf.translates:
            if derived.translator is not None and derived.translator.test(mask):
                self.pending[PendingKey("translation", derived.leaf.id, job)] = Pending(position)
        for derived in leaf.gathers:
            asked = derived.gathering is not None and derived.gathering.reads(leaf.bit, 0)
            if asked and derived.translator is not None and derived.translator.test(mask):
                self._ask_key(derived, job, position)

    def translate(self, derived: DerivedState, job: int, target: int | None, position: int) -> None:
        """Let job stand for `target` (None: for nothing) in a translated leaf."""
        derived.bind(job, target)
        holds = target is not None and derived.base.test(self.masks[target])
        self.flip(derived.leaf, job, holds, position)
