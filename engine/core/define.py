"""A definition put in force: leaves, derived leaves, quotas and tasks, and who watches what.

In: a `PipelineDef` and the state of the one before. Out: the state under the new one: leaves keep their bits and
members, tasks their history, running work goes on; what a changed rule or condition means for the jobs there
is worked out once, at O(jobs) for each change. `wire` alone rebuilds the references between the parts, as
reading a checkpoint needs it.
"""

from __future__ import annotations

from collections.abc import Iterable

from datatask.engine.core.cells import put_at
from datatask.engine.core.expressions import compile_condition, leaves_of, without
from datatask.engine.core.gathering import Gathering
from datatask.engine.core.leaves import DerivedState, LeafState
from datatask.engine.core.quotas import QuotaState
from datatask.engine.core.state import Pending, PendingKey, State
from datatask.engine.core.tasks import TaskState
from datatask.schema.definition import (
    VIEW_NAMES,
    Any,
    AnyExpr,
    DerivedDef,
    FilteredDef,
    GatheredDef,
    In,
    PipelineDef,
    RepositoryDef,
    TaskDef,
    TranslatedDef,
    ViewDef,
    view_id,
)

NEVER = Any(of=())
INSIDE = ("native", "derived", "view")
"""The media whose contents are known without looking."""


def define(state: State, definition: PipelineDef, position: int) -> None:
    """Put a definition in force from `position` on."""
    known = {repository.id: repository for repository in state.definition.repositories}
    state.definition, state.defined_at = definition, position
    for repository in definition.repositories:
        _declare(state, repository, position)
    for task in definition.tasks:
        for view in VIEW_NAMES:
            leaf_id = view_id(task.name, view)
            _declare(
                state,
                RepositoryDef(
                    id=leaf_id, kind="view", medium="view", derived=ViewDef(task=task.name, view=view)
                ),
                position,
            )
    _note_fingerprints(state, definition, position)
    _define_quotas(state, definition)
    changed = _define_tasks(state, definition)
    wire(state)
    _prune_pending(state)
    for repository in definition.repositories:
        before = known.get(repository.id)
        if before is None or before.derived != repository.derived:
            _rederive(state, state.leaves[repository.id], position)
    for task_state in changed:
        _requeue(state, task_state, position)


def _note_fingerprints(state: State, definition: PipelineDef, position: int) -> None:
    for task in definition.tasks:
        known, digest = state.fingerprints.get(task.name), task.fingerprint_digest
        if (known[-1][1] if known else "") != digest:
            state.fingerprints.setdefault(task.name, []).append((position, digest))


def wire(state: State) -> None:
    """Compile conditions, and index by leaf the tasks that watch it and the leaves derived from it."""
    state.watchers = [[] for _ in state.leaves]
    for leaf in state.leaves.values():
        leaf.feeds.clear()
        leaf.translates.clear()
        leaf.gathers.clear()
    bits = {leaf.id: leaf.bit for leaf in state.leaves.values()}
    for repository in state.definition.repositories:
        _wire_derived(state, repository, bits)
    current = {task.name for task in state.definition.tasks}
    for task in state.tasks.values():
        expr = start_condition(task.definition) if task.name in current else NEVER
        task.condition = compile_condition(expr, bits)
        inputs = (
            [link.expr for link in task.definition.links if link.is_input] if task.name in current else []
        )
        task.reads = tuple(_known_first(state, leaves_of(expr, *inputs)))
        for name in leaves_of(expr):
            state.watchers[state.leaves[name].index].append(task)
    for task in state.tasks.values():
        views = (task.live, task.succeeded, task.failed)
        task.seen = any(state.watchers[view.index] or view.followed for view in views)


def start_condition(task: TaskDef) -> AnyExpr:
    """Return a task's condition; its own open runs are not part of it, they always inhibit."""
    return without(task.ready, view_id(task.name, "live"))


# --- leaves -----------------------------------------------------------------------------------------


def _declare(state: State, definition: RepositoryDef, position: int) -> None:
    leaf = state.leaves.get(definition.id)
    if leaf is None:
        leaf = state.leaves[definition.id] = LeafState(definition, len(state.leaves), state.new_bit())
    before, leaf.definition = leaf.definition, definition
    if type(before.derived) is not type(definition.derived):
        _empty(state, leaf, position)
    leaf.synced = definition.medium in INSIDE or (leaf.synced and before.medium == definition.medium)


def _empty(state: State, leaf: LeafState, position: int) -> None:
    """What was stored is derived now, or the other way round: nothing of the old members is meant any more."""
    for job in list(leaf.members(state.masks)):
        put_at(leaf.positions, job, 0)
        state.flip(leaf, job, False, position)
    leaf.derived = None


def _wire_derived(state: State, definition: RepositoryDef, bits: dict[str, int]) -> None:
    rule, leaf = definition.derived, state.leaves[definition.id]
    if not isinstance(rule, DerivedDef):
        return
    base = compile_condition(rule.base, bits)
    derived = leaf.derived = leaf.derived or DerivedState(leaf, base, None)
    derived.base = base
    derived.base_leaf = state.leaves[rule.base.leaf] if isinstance(rule.base, In) else None
    derived.translator = None if isinstance(rule, FilteredDef) else compile_condition(rule.translator, bits)
    if isinstance(rule, GatheredDef):
        _wire_gathered(state, rule, derived, bits)
        return
    for name in leaves_of(rule.base):
        state.leaves[name].feeds.append(derived)
    for name in leaves_of(rule.translator) if isinstance(rule, TranslatedDef) else ():
        state.leaves[name].translates.append(derived)


def _wire_gathered(state: State, rule: GatheredDef, derived: DerivedState, bits: dict[str, int]) -> None:
    gathering = derived.gathering = derived.gathering or Gathering(rule)
    gathering.define(rule)
    gathering.care = 0
    for name in leaves_of(*([] if rule.keys is None else [rule.keys])):
        gathering.care |= bits[name]
    for name in leaves_of(*rule.conditions):
        state.leaves[name].gathers.append(derived)


def _rederive(state: State, leaf: LeafState, position: int) -> None:
    """A rule is new or another one: every job is looked at, what it rests on is evaluated anew."""
    derived = leaf.derived
    if derived is None:
        return
    if derived.gathering is not None:
        state.gather_anew(derived, position)
        return
    for job in range(len(state.masks)):
        key = PendingKey(derived.what, leaf.id, job)
        if derived.candidates.test(state.masks[job]):
            state.pending[key] = Pending(position)
            target = derived.forward.get(job)
            if target is not None:
                state.flip(leaf, job, derived.base.test(state.masks[target]), position)
        else:
            state.pending.pop(key, None)
            derived.bind(job, None)
            state.flip(leaf, job, False, position)


def _known_first(state: State, names: Iterable[str]) -> list[LeafState]:
    """Return the leaves that must be known before a task that looks at these may start, each once."""
    found: dict[str, LeafState] = {}
    for name in names:
        if name in found:
            continue
        leaf = found[name] = state.leaves[name]
        rule = leaf.definition.derived
        if isinstance(rule, DerivedDef):
            below = leaves_of(*rule.conditions)
            found.update((under.id, under) for under in _known_first(state, below))
    return list(found.values())


def _prune_pending(state: State) -> None:
    """Remove evaluations that no task needs any more."""
    owners = {("priority", task.name) for task in state.definition.tasks if task.priority}
    for repository in state.definition.repositories:
        derived = state.leaves[repository.id].derived
        if derived is not None:
            owners.add((derived.what, repository.id))
    state.pending = {key: why for key, why in state.pending.items() if (key.what, key.owner) in owners}


# --- quotas and tasks -------------------------------------------------------------------------------


def _define_quotas(state: State, definition: PipelineDef) -> None:
    """An unchanged quota keeps what a person set; one that is gone stays while a run holds some of it."""
    old, state.quotas = state.quotas, {}
    for quota in definition.quotas:
        kept = old.get(quota.name)
        if kept is None or kept.definition != quota:
            fresh = QuotaState.of(quota)
            if kept is not None:
                fresh.used, fresh.recent, fresh.held = kept.used, kept.recent, kept.held
            kept = fresh
        state.quotas[quota.name] = kept
    for run in state.open_runs.values():
        if run.quota is not None and run.quota not in state.quotas:
            state.quotas[run.quota] = old[run.quota]


def _define_tasks(state: State, definition: PipelineDef) -> list[TaskState]:
    """Bring the tasks up to date and return those that are new or changed, still to be wired and requeued."""
    old, state.tasks = state.tasks, {}
    changed: list[TaskState] = []
    for task in definition.tasks:
        kept = old.get(task.name)
        if kept is None:
            live, succeeded, failed = (state.leaves[view_id(task.name, view)] for view in VIEW_NAMES)
            kept = TaskState(task, 0, compile_condition(NEVER, {}), state.new_bit(), live, succeeded, failed)
            kept.queue = kept.new_queue()
            changed.append(kept)
        elif kept.definition != task:
            changed.append(kept)
            _redefine(state, kept, task)
        state.tasks[task.name] = kept
    for name, gone in old.items():
        if name not in state.tasks and gone.open_runs:
            _retire(gone)
            state.tasks[name] = gone
    for index, task_state in enumerate(state.tasks.values()):
        task_state.index = index
    return changed


def _redefine(state: State, kept: TaskState, task: TaskDef) -> None:
    """Give a task its new definition; who waits goes on waiting, in a queue of the right kind."""
    had_priority, kept.definition = kept.definition.priority, task
    if had_priority is task.priority:
        return
    waiting = [(position, job) for _, position, job in kept.queue.entries()]
    waiting += [(position, job) for job, position in kept.awaiting.items()]
    kept.queue, kept.awaiting = kept.new_queue(), {}
    for position, job in sorted(waiting):
        state.enqueue(kept, job, position)


def _retire(gone: TaskState) -> None:
    """A removed task with open runs stays until they have ended, and starts nothing more."""
    gone.queue, gone.awaiting, gone.retries, gone.contenders = gone.new_queue(), {}, [], []
    gone.episodes = {job: episode for job, episode in gone.episodes.items() if episode.run}


def _requeue(state: State, task: TaskState, position: int) -> None:
    """Compare every job with a new or changed condition."""
    test, claim = task.condition.test, task.claim
    for job in range(len(state.masks)):
        mask = state.masks[job]
        waits = job in task.queue or job in task.awaiting
        if test(mask):
            if not mask & claim and not waits:
                state.open_episode(task, job, position)
        elif waits:
            state.dequeue(task, job)
        elif mask & claim:
            state.release(task, job)
