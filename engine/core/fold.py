"""Events into state, one at a time: `apply(state, position, event)`.

Pure and total: the same events give the same state, bit for bit, whoever replays them. One handler a kind; a
kind without one changes nothing but the position. What a handler may rely on (the run is open, the
repository is declared) the engine made sure of before it appended; where a log says otherwise the log is
damaged, and `apply` says so by position.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from datatask.engine.core.cells import put_at
from datatask.engine.core.define import define
from datatask.engine.core.fold_episodes import EPISODES, Handler
from datatask.engine.core.leaves import DerivedState, LeafState, version_hash
from datatask.engine.core.state import REQUESTS_MAX, Pending, PendingKey, State
from datatask.engine.core.tasks import Intent
from datatask.schema import events as e
from datatask.schema.definition import Selection
from datatask.schema.errors import LogDamagedError
from datatask.schema.values import is_job


def apply(state: State, position: int, event: e.Event) -> None:
    """Fold one event; `LogDamagedError` when it cannot follow on what came before."""
    apply_all(state, position, (event,))


def apply_all(state: State, first: int, events: Iterable[e.Event]) -> None:
    """Fold events at consecutive positions from `first` on."""
    if first != state.position + 1:
        raise LogDamagedError(
            f"event {first} follows on {state.position}",
            where=f"position {state.position + 1}",
            remedy="positions have no gaps: restore the log from a backup",
        )
    handlers, asked, position = _HANDLERS, _ASKED, first
    mark_at = state.mark_due()
    for event in events:
        kind = type(event)
        handler = handlers.get(kind)
        if handler is not None:
            try:
                handler(state, position, event)
            except (KeyError, AttributeError, IndexError) as error:
                raise _misfit(position, event, error) from error
        if kind in asked and event.request is not None:  # type: ignore[attr-defined]
            remember_request(state, position, event.request)  # type: ignore[attr-defined]
        state.position = position
        at = state.at = event.at
        if at >= mark_at:
            state.mark(position, at)
            mark_at = state.mark_due()
        position += 1


def _misfit(position: int, event: e.Event, error: Exception) -> LogDamagedError:
    return LogDamagedError(
        f"{type(event).__name__} does not fit what came before ({type(error).__name__}: {error})",
        where=f"position {position}",
        remedy="run `datatask verify` on the log",
    )


def remember_request(state: State, position: int, request: str) -> None:
    """Keep the ids of the last requests, so that each is granted once."""
    state.requests[request] = position
    if len(state.requests) > REQUESTS_MAX:
        state.requests.popitem(last=False)


# --- the log and the engine -------------------------------------------------------------------------


def _log_created(state: State, position: int, event: e.LogCreated) -> None:
    state.log, state.pipeline = event.log, event.pipeline


def _engine_opened(state: State, position: int, event: e.EngineOpened) -> None:
    state.engine, state.closed, state.selection = event, False, None
    for leaf in state.leaves.values():
        leaf.synced = leaf.definition.medium in ("native", "derived", "view")
        leaf.missed = 0


def _engine_closed(state: State, position: int, event: e.EngineClosed) -> None:
    state.closed, state.selection = True, None


def _pipeline_defined(state: State, position: int, event: e.PipelineDefined) -> None:
    define(state, event.definition, position)


def _renamed(state: State, position: int, event: e.Renamed) -> None:
    if event.what == "task":
        task = state.tasks.pop(event.old)
        state.tasks[event.new] = task
        if event.old in state.fingerprints:
            state.fingerprints[event.new] = state.fingerprints.pop(event.old)
        if event.old in state.accepted:
            state.accepted[event.new] = state.accepted.pop(event.old)
        for view in (task.live, task.succeeded, task.failed):
            old = view.id
            new = old.replace(f"({event.old})", f"({event.new})")
            state.leaves[new] = state.leaves.pop(old)
            view.definition = msgspec.structs.replace(view.definition, id=new)
        for run in state.open_runs.values():
            run.task = event.new if run.task == event.old else run.task
    else:
        leaf = state.leaves.pop(event.old)
        leaf.definition = msgspec.structs.replace(leaf.definition, id=event.new)
        state.leaves[event.new] = leaf
        _rename_intents(state, event.old, event.new)
    state.pending = {
        key._replace(owner=event.new)
        if key.owner == event.old and _on_leaf(key.what) is (event.what != "task")
        else key: why
        for key, why in state.pending.items()
    }


def _on_leaf(what: str) -> bool:
    return what in ("filter", "translation")


def _rename_intents(state: State, old: str, new: str) -> None:
    def renamed(key: tuple[str, int]) -> tuple[str, int]:
        return (new, key[1]) if key[0] == old else key

    tables = [state.intents, *(run.intents for run in state.open_runs.values())]
    for table in tables:
        for key, intent in list(table.items()):
            if key[0] == old:
                del table[key]
                event = msgspec.structs.replace(intent.event, repository=new)
                table[renamed(key)] = Intent(intent.position, event)


# --- repositories -----------------------------------------------------------------------------------


def _repository_synced(state: State, position: int, event: e.RepositorySynced) -> None:
    leaf = state.leaves[event.repository]
    leaf.synced, leaf.held, leaf.root, leaf.trouble = True, "", event.root, ""


def _repository_reset(state: State, position: int, event: e.RepositoryReset) -> None:
    leaf = state.leaves[event.repository]
    leaf.incarnation = event.incarnation
    for job in list(leaf.members(state.masks)):
        _forget_value(leaf, job, position)
        state.flip(leaf, job, False, position)


def _observation_held(state: State, position: int, event: e.ObservationHeld) -> None:
    leaf = state.leaves[event.repository]
    leaf.held = event.why or f"{event.vanished} of {event.members} members vanished at once"
    leaf.synced = False
    leaf.trouble = ""


def _repository_unreachable(state: State, position: int, event: e.RepositoryUnreachable) -> None:
    state.leaves[event.repository].trouble = event.why or "it cannot be listed"


def _changes_missed(state: State, position: int, event: e.ChangesMissed) -> None:
    state.leaves[event.repository].missed += event.missed


def _value_put(state: State, position: int, event: e.ValuePut) -> None:
    leaf = state.leaves[event.repository]
    job = state.job_index.get(event.job)
    if job is None:
        job = state.intern(event.job)
    try:
        leaf.positions[job] = position
    except IndexError:
        put_at(leaf.positions, job, position)
    if leaf.definition.medium == "foreign":
        put_at(leaf.versions, job, version_hash(event.version))
    if state.intents:
        _intent_done(state, event, job)
    if not state.flip(leaf, job, True, position) and leaf.followed:
        state.value_changed(leaf, job, position)


def _value_deleted(state: State, position: int, event: e.ValueDeleted) -> None:
    leaf = state.leaves[event.repository]
    job = state.intern(event.job)
    _forget_value(leaf, job, position)
    _intent_done(state, event, job)
    state.flip(leaf, job, False, position)


def _forget_value(leaf: LeafState, job: int, position: int) -> None:
    put_at(leaf.positions, job, -position)
    if leaf.versioned:
        put_at(leaf.versions, job, 0)


def _store_write_intended(state: State, position: int, event: e.StoreWriteIntended) -> None:
    key = (event.repository, state.intern(event.job))
    intent = state.intents[key] = Intent(position, event)
    run = state.open_runs.get(event.run) if event.run is not None else None
    if run is not None:
        run.intents[key] = intent
        run.settling = event.settles or run.settling


def _intent_done(state: State, event: e.ValuePut | e.ValueDeleted, job: int) -> None:
    """Who intended has done it; what others do to the same value meanwhile settles nothing."""
    key = (event.repository or "", job)
    intent = state.intents.get(key)
    if intent is not None and intent.event.run == event.run:
        del state.intents[key]


# --- evaluations ------------------------------------------------------------------------------------


def _evaluated(state: State, position: int, event: e.Evaluated) -> None:
    owner = (event.repository if _on_leaf(event.what) else event.task) or ""
    job = state.intern(event.job)
    key = PendingKey(event.what, owner, job)
    pending = state.pending.get(key)
    if pending is None or (event.inputs and event.inputs[0] < pending.position):
        return
    if event.error is not None:
        del state.pending[key]  # to the end of the line
        state.pending[key] = Pending(pending.position, event.error, event.retry_at or 0)
        return
    del state.pending[key]
    value = msgspec.json.decode(event.value) if event.value else None
    if event.what == "priority":
        task = state.tasks[owner]
        ready_at = task.awaiting.pop(job, None)
        if ready_at is not None:
            task.queue.push(job, float(value or 0.0), ready_at)
        return
    derived = state.leaves[owner].derived
    assert derived is not None, "only derived leaves are evaluated"
    if event.what == "filter":
        state.flip(derived.leaf, job, bool(value) and derived.base.test(state.masks[job]), position)
    elif event.what == "translation":
        _translated(state, derived, job, value, position)


def _translated(state: State, derived: DerivedState, job: int, value: object, position: int) -> None:
    if derived.gathering is not None:
        state.put_into_group(
            derived, job, value if isinstance(value, str) and is_job(value) else None, position
        )
        return
    target = state.intern(value) if isinstance(value, str) and is_job(value) else None
    state.translate(derived, job, target, position)


# --- decisions and what people ask -------------------------------------------------------------------------------------------


def selected(state: State, selection: Selection | None, decisions: int) -> None:
    """A round was under this selection, and launched this number of jobs."""
    state.selection = None if selection is None else selection.after(decisions)


def _decision_round(state: State, position: int, event: e.DecisionRound) -> None:
    selected(state, event.selection, event.decisions)
    for task in state.tasks.values():
        task.constraint = event.constraints.get(task.name, "")


def _task_paused(state: State, position: int, event: e.TaskPaused) -> None:
    state.tasks[event.task].paused = position


def _task_resumed(state: State, position: int, event: e.TaskResumed) -> None:
    state.tasks[event.task].paused = 0


def _result_accepted(state: State, position: int, event: e.ResultAccepted) -> None:
    job, accepted = state.intern(event.job), state.accepted.setdefault(event.task, {})
    if event.withdrawn:
        accepted.pop(job, None)
    else:
        accepted[job] = event.seen
    if not accepted:
        del state.accepted[event.task]


def _quota_changed(state: State, position: int, event: e.QuotaChanged) -> None:
    state.quotas[event.quota].change(event.limits, event.launches)


_HANDLERS: dict[type[e.Event], Handler] = {
    e.LogCreated: _log_created,
    e.EngineOpened: _engine_opened,
    e.EngineClosed: _engine_closed,
    e.PipelineDefined: _pipeline_defined,
    e.Renamed: _renamed,
    e.RepositorySynced: _repository_synced,
    e.RepositoryReset: _repository_reset,
    e.ObservationHeld: _observation_held,
    e.RepositoryUnreachable: _repository_unreachable,
    e.ChangesMissed: _changes_missed,
    e.ValuePut: _value_put,
    e.ValueDeleted: _value_deleted,
    e.StoreWriteIntended: _store_write_intended,
    e.Evaluated: _evaluated,
    e.DecisionRound: _decision_round,
    e.TaskPaused: _task_paused,
    e.TaskResumed: _task_resumed,
    e.QuotaChanged: _quota_changed,
    e.ResultAccepted: _result_accepted,
    **EPISODES,
}

HANDLED = frozenset(_HANDLERS)
"""The kinds that change the state."""

_ASKED = frozenset(kind for kind in e.KINDS.values() if "request" in kind.__struct_fields__)
"""The kinds that a person's request may have led to."""
