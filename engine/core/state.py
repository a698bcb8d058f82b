"""The state: memberships as masks, and everything that follows from a changed bit.

In: the definition in force and single changes of membership. Out: ready queues, episodes and counts kept
up to date, at the cost of the tasks that see the changed leaf. `fold` turns events into these changes;
`decide` reads the result. Nothing here reads a clock or draws by chance.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from datatask.engine.core.conditions import compile_condition, without
from datatask.engine.core.members import DerivedState, LeafState, get_at, put_at
from datatask.engine.core.quotas import QuotaState
from datatask.engine.core.tasks import OpenRun, TaskState
from datatask.schema.definition import (
    VIEW_NAMES,
    FilteredDef,
    In,
    PipelineDef,
    RepositoryDef,
    TaskDef,
    TranslatedDef,
    ViewDef,
    leaves_of,
    view_id,
)
from datatask.schema.events import EngineOpened, StoreWriteIntended

FOLD_VERSION = 1
REQUESTS_MAX = 4096
MARKS_MAX = 4096
MARK_EVERY = 1_000_000_000


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


class Intent(NamedTuple):
    """A store write that was intended and is not yet recorded as done."""

    position: int
    event: StoreWriteIntended


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
        self.jobs: list[str] = []
        self.job_index: dict[str, int] = {}
        self.masks: list[int] = []
        self.leaves: dict[str, LeafState] = {}
        self.tasks: dict[str, TaskState] = {}
        self.quotas: dict[str, QuotaState] = {}
        self.open_runs: dict[int, OpenRun] = {}
        self.pending: dict[PendingKey, Pending] = {}
        self.intents: dict[tuple[str, int], Intent] = {}
        self.requests: OrderedDict[str, int] = OrderedDict()
        self.marks: list[tuple[int, int]] = []
        self.mark_every = MARK_EVERY
        self.closed = False
        self._interned: dict[int, int] = {}
        self._bits = 0

    # --- names and places -------------------------------------------------------------------------

    def intern(self, job: str) -> int:
        """Return the job's integer, a new one on first sight."""
        index = self.job_index.get(job)
        if index is None:
            index = self.job_index[job] = len(self.jobs)
            self.jobs.append(job)
            self.masks.append(0)
        return index

    def contains(self, leaf: str, job: str) -> bool:
        """Whether the job is in the leaf (unknown ones are in none)."""
        index = self.job_index.get(job)
        return index is not None and self.masks[index] & self.leaves[leaf].bit != 0

    def members(self, leaf: str) -> list[str]:
        """Return the jobs in a leaf, in the order of their first appearance in the log."""
        return [self.jobs[job] for job in self.leaves[leaf].members(self.masks)]

    def time_of(self, position: int) -> int:
        """Return a time not before that of the event at `position` (to about a second), from sparse marks."""
        low, high = 0, len(self.marks)
        while low < high:
            middle = (low + high) // 2
            if self.marks[middle][0] < position:
                low = middle + 1
            else:
                high = middle
        return self.marks[low][1] if low < len(self.marks) else self.at

    def mark(self, position: int, at: int) -> None:
        """Remember when a position was written, sparsely: halved in number, doubled in distance when full."""
        if not self.marks or at - self.marks[-1][1] >= self.mark_every:
            self.marks.append((position, at))
            if len(self.marks) > MARKS_MAX:
                self.marks = self.marks[1::2]
                self.mark_every *= 2

    # --- the definition ---------------------------------------------------------------------------

    def define(self, definition: PipelineDef, position: int) -> None:
        """Put a definition in force. Leaves keep their bits; changed tasks get their queues anew."""
        old = self.tasks
        self.definition, self.defined_at = definition, position
        for repository in definition.repositories:
            self._declare(repository)
        for task in definition.tasks:
            for view in VIEW_NAMES:
                leaf_id = view_id(task.name, view)
                self._declare(RepositoryDef(leaf_id, "view", "view", derived=ViewDef(task.name, view)))
        for leaf in self.leaves.values():
            leaf.watchers.clear()
            leaf.feeds.clear()
            leaf.translates.clear()
        bits = {leaf.id: leaf.bit for leaf in self.leaves.values()}
        for repository in definition.repositories:
            self._derive(repository, bits)
        self._define_quotas(definition)
        self.tasks = {task.name: self._task(task, old.get(task.name), bits) for task in definition.tasks}
        for name, gone in old.items():
            if name not in self.tasks and gone.open_runs:
                self.tasks[name] = gone
        self.pending = {key: why for key, why in self.pending.items() if key.owner in self.leaves or key.owner in self.tasks}
        for task_state in list(self.tasks.values()):
            before = old.get(task_state.name)
            if task_state is not before and (before is None or before.definition != task_state.definition):
                self._requeue(task_state, position)

    def _declare(self, definition: RepositoryDef) -> LeafState:
        leaf = self.leaves.get(definition.id)
        if leaf is None:
            leaf = LeafState(definition, len(self.leaves), self._new_bit())
            self.leaves[definition.id] = leaf
        leaf.definition = definition
        leaf.synced = leaf.synced or definition.medium in ("native", "derived", "view")
        return leaf

    def _new_bit(self) -> int:
        self._bits += 1
        return 1 << (self._bits - 1)

    def _derive(self, definition: RepositoryDef, bits: dict[str, int]) -> None:
        rule, leaf = definition.derived, self.leaves[definition.id]
        if not isinstance(rule, FilteredDef | TranslatedDef):
            return
        fresh = leaf.derived is None
        base = compile_condition(rule.base, bits)
        base_leaf = self.leaves[rule.base.leaf] if isinstance(rule.base, In) else None
        translator = compile_condition(rule.translator, bits) if isinstance(rule, TranslatedDef) else None
        state = leaf.derived or DerivedState(leaf, base, base_leaf)
        state.base, state.base_leaf, state.translator = base, base_leaf, translator
        leaf.derived = state
        for name in leaves_of(rule.base):
            self.leaves[name].feeds.append(state)
        for name in leaves_of(rule.translator) if isinstance(rule, TranslatedDef) else ():
            self.leaves[name].translates.append(state)
        if fresh:
            source = translator or base
            for job, mask in enumerate(self.masks):
                if source.test(mask):
                    self.pending[PendingKey(state.what, leaf.id, job)] = Pending(self.defined_at)

    def _define_quotas(self, definition: PipelineDef) -> None:
        old = self.quotas
        self.quotas = {}
        for quota in definition.quotas:
            kept = old.get(quota.name)
            if kept is not None and kept.definition == quota:
                self.quotas[quota.name] = kept
                continue
            fresh = self.quotas[quota.name] = QuotaState.of(quota)
            if kept is not None:
                fresh.used, fresh.recent = kept.used, kept.recent
        for name, kept in old.items():
            if name not in self.quotas and any(kept.used.values()):
                self.quotas[name] = kept

    def _task(self, task: TaskDef, old: TaskState | None, bits: dict[str, int]) -> TaskState:
        live = view_id(task.name, "live")
        expr = without(task.ready, live)
        condition = compile_condition(expr, bits)
        reads = tuple(self._stored_under(leaves_of(expr) + [n for link in task.links if link.is_input for n in leaves_of(link.expr)]))
        if old is None:
            views = [self.leaves[view_id(task.name, view)] for view in VIEW_NAMES]
            state = TaskState(task, len(self.tasks), condition, self._new_bit(), *views, reads)
            state.queue = state.new_queue()
        else:
            changed = old.definition.priority != task.priority
            old.condition, old.reads, state = condition, reads, old
            if old.definition != task:
                state = _copied(old)
                state.definition = task
                if changed:
                    state.queue, state.awaiting = state.new_queue(), {}
        for name in leaves_of(expr):
            self.leaves[name].watchers.append(state)
        return state

    def _stored_under(self, names: Iterable[str]) -> list[LeafState]:
        """Return the leaves that must be known before a task that looks at these may start, each once."""
        found: dict[str, LeafState] = {}
        for name in names:
            leaf = self.leaves[name]
            rule = leaf.definition.derived
            if name in found:
                continue
            found[name] = leaf
            if isinstance(rule, FilteredDef | TranslatedDef):
                below = leaves_of(rule.base)
                below += leaves_of(rule.translator) if isinstance(rule, TranslatedDef) else []
                found.update((leaf.id, leaf) for leaf in self._stored_under(below))
        return list(found.values())

    def _requeue(self, task: TaskState, position: int) -> None:
        """Compare every job with a new or changed condition; costs O(jobs), once per changed definition."""
        test, claim = task.condition.test, task.claim
        for job, mask in enumerate(self.masks):
            waits = job in task.queue or job in task.awaiting
            if test(mask):
                if not mask & claim and not waits:
                    self.open_episode(task, job, position)
            elif waits:
                self.dequeue(task, job)
            elif mask & claim:
                self._release(task, job)

    # --- one changed bit --------------------------------------------------------------------------

    def flip(self, leaf: LeafState, job: int, present: bool, position: int) -> bool:
        """Set a job's membership and let everything follow; return whether it changed."""
        masks, bit = self.masks, leaf.bit
        before = masks[job]
        if present == (before & bit != 0):
            return False
        after = before ^ bit
        masks[job] = after = self._interned.setdefault(after, after)
        leaf.count += 1 if present else -1
        leaf.touch(job, masks)
        opened: list[TaskState] | None = None
        for task in leaf.watchers:
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
                    if after & (task.succeeded.bit | task.failed.bit):
                        opened = opened or []
                        opened.append(task)
            elif after & task.claim:
                self._release(task, job)
            else:
                self.dequeue(task, job)
        if opened is not None:
            for task in opened:
                self._clear_views(task, job, position)
        if leaf.feeds:
            self._feed(leaf, job, before, after, position)
        if leaf.translates:
            for derived in leaf.translates:
                self._retranslate(derived, job, before, after, position)
        return True

    def open_episode(self, task: TaskState, job: int, position: int) -> None:
        """The job has become ready: count the episode, queue the job, clear what the last episode left."""
        self._enter(task, job, position)
        self._clear_views(task, job, position)

    def _enter(self, task: TaskState, job: int, position: int) -> None:
        put_at(task.episode_count, job, get_at(task.episode_count, job) + 1)
        if task.definition.priority:
            task.awaiting[job] = position
            self.pending[PendingKey("priority", task.name, job)] = Pending(position)
        else:
            task.queue.push(job, 0.0, position)

    def _clear_views(self, task: TaskState, job: int, position: int) -> None:
        for view in (task.succeeded, task.failed):
            if self.masks[job] & view.bit:
                self.flip(view, job, False, position)

    def dequeue(self, task: TaskState, job: int) -> None:
        """The job no longer waits for this task: its episode ends without a run."""
        if not task.queue.discard(job) and task.awaiting.pop(job, None) is not None:
            self.pending.pop(PendingKey("priority", task.name, job), None)
        self.pending.pop(PendingKey("resources", task.name, job), None)

    def _release(self, task: TaskState, job: int) -> None:
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
                for key in sorted(derived.reverse.get(job, ())):
                    self.flip(derived.leaf, key, now, position)
            elif now:
                self.pending[PendingKey("filter", derived.leaf.id, job)] = Pending(position)
            else:
                self.pending.pop(PendingKey("filter", derived.leaf.id, job), None)
                self.flip(derived.leaf, job, False, position)

    def _retranslate(self, derived: DerivedState, job: int, before: int, after: int, position: int) -> None:
        assert derived.translator is not None
        was, now = derived.translator.test(before), derived.translator.test(after)
        if now and not was:
            self.pending[PendingKey("translation", derived.leaf.id, job)] = Pending(position)
        elif was and not now:
            self.pending.pop(PendingKey("translation", derived.leaf.id, job), None)
            self.translate(derived, job, None, position)

    def value_changed(self, leaf: LeafState, job: int, position: int) -> None:
        """A member's value is another one: what was evaluated from it is due again."""
        mask = self.masks[job]
        for derived in leaf.feeds:
            if derived.translator is None and derived.base.test(mask):
                self.pending[PendingKey("filter", derived.leaf.id, job)] = Pending(position)
        for derived in leaf.translates:
            if derived.translator is not None and derived.translator.test(mask):
                self.pending[PendingKey("translation", derived.leaf.id, job)] = Pending(position)

    def translate(self, derived: DerivedState, job: int, target: int | None, position: int) -> None:
        """Let job stand for `target` (None: for nothing) in a translated leaf."""
        old = derived.forward.pop(job, None)
        if old is not None:
            keys = derived.reverse[old]
            keys.discard(job)
            if not keys:
                del derived.reverse[old]
        if target is None:
            self.flip(derived.leaf, job, False, position)
            return
        derived.forward[job] = target
        derived.reverse.setdefault(target, set()).add(job)
        self.flip(derived.leaf, job, derived.base.test(self.masks[target]), position)


def _copied(task: TaskState) -> TaskState:
    """Return a task state of its own that shares what the old one remembers."""
    return TaskState(**{name: getattr(task, name) for name in TaskState.__slots__})
