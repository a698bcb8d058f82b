"""What keeps one (task, job) from being launched, other than limits: data, its own past, its task, the surroundings.

In: a `Case`. Out: its conditions as `Condition`s and as a tree, and a `Blocker` for each thing that holds it back now,
each with the position that made it so: of a membership the last put or deletion, of a view the run that it shows, of a
derived leaf the newest of those that it rests on. Limits are in `capacity`; what would help, in `fixes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from itertools import islice

from msgspec.structs import replace
from pyroaring import BitMap

from datatask.engine.core.cells import get_at
from datatask.engine.core.define import start_condition
from datatask.engine.core.expressions import conjuncts, fold, leaves_of, set_text, text
from datatask.engine.core.gathering import APART
from datatask.engine.core.leaves import LeafState
from datatask.engine.core.selection import Chosen
from datatask.engine.core.state import PendingKey, State
from datatask.engine.core.tasks import Episode, OpenRun, TaskState, contenders
from datatask.engine.explain.explanations import (
    Blocker,
    Condition,
    Node,
    iso_up,
    link_of,
    needs,
    pending_text,
    subject,
)
from datatask.schema import definition as d

NAMED_MAX = 5
"""The number of jobs that a group waits for by name."""


class Case:
    """One (task, job) under examination, and what only the caller knows: the time, is an engine alive, which runners are unavailable."""

    def __init__(
        self, state: State, task: TaskState, job: int, now: int, engine_alive: bool, unavailable: Set[str]
    ) -> None:
        self.state, self.task, self.job, self.now = state, task, job, now
        self.engine_alive, self.unavailable = engine_alive, unavailable
        self.selection = state.selection if engine_alive else None
        self.name = state.jobs[job]
        self.parts = conjuncts(start_condition(task.definition))
        self.tree = tree(state, d.All(of=tuple(self.parts)), job)
        self.episode = task.episodes.get(job)
        self.run = state.open_runs.get(self.episode.run) if self.episode is not None else None


def blockers(case: Case) -> Iterator[Blocker]:
    """Yield all that holds the job back, other than data and limits."""
    if case.run is not None:
        yield _own_run(case.state, case.run)
    elif case.tree.holds:
        yield from _past(case)
    yield from _evaluations(case)
    yield from surroundings(case)
    if unselected := left_out(case.state, case.selection, case.task, case.job):
        yield Blocker("unselected", unselected)


# --- data -------------------------------------------------------------------------------------------


def conditions(case: Case) -> list[Condition]:
    """Return the conditions on data, in the order of the tree's parts."""
    return [_condition(case, part) for part in case.parts]


def _condition(case: Case, part: d.AnyExpr) -> Condition:
    state, job, bare = case.state, case.job, subject(part)
    node = tree(state, bare, job)
    leaves = [state.leaves[name] for name in leaves_of(bare)]
    newest = max((since(state, leaf, job) for leaf in leaves), default=0)
    where = f"since position {newest}" if newest else "and has never been"
    detail = f"; {node.explain}" if node.explain else ""
    if not isinstance(bare, d.In):
        presence = (f"{leaf.id}: {'present' if state.masks[job] & leaf.bit else 'absent'}" for leaf in leaves)
        detail = "; " + ", ".join(presence)
    return Condition(
        link=link_of(case.task.definition, part),
        repository=text(bare),
        needs=needs(part),
        is_="present" if node.holds else "absent",
        since=newest or None,
        satisfied=node.holds is not isinstance(part, d.Not),
        explain=f"{case.name} is {'in' if node.holds else 'not in'} {text(bare)} {where}{detail}",
    )


def tree(state: State, expr: d.AnyExpr, job: int, *, about: str = "") -> Node:
    """Return the tree of a condition; `about` names the job where it is another one than was asked for."""
    return fold(
        expr,
        lambda leaf: _leaf(state, state.leaves[leaf], job, about),
        lambda part: part.of[0] if part.op == "not" else Node(op="not", holds=not part.holds, of=[part]),
        lambda parts: Node(op="and", holds=all(part.holds for part in parts), of=parts),
        lambda parts: Node(op="or", holds=any(part.holds for part in parts), of=parts),
    )


def since(state: State, leaf: LeafState, job: int) -> int:
    """Return the position of the newest event that a membership rests on, 0 where there is none."""
    rule = leaf.definition.derived
    if rule is None:
        return abs(get_at(leaf.positions, job))
    if isinstance(rule, d.ViewDef):
        return _view_since(state, rule, job)
    if isinstance(rule, d.GatheredDef):
        return 0
    target = job
    if isinstance(rule, d.TranslatedDef):
        own = max((since(state, state.leaves[name], job) for name in leaves_of(rule.translator)), default=0)
        found = None if leaf.derived is None else leaf.derived.forward.get(job)
        if found is None:
            return own
        target = found
    below = (since(state, state.leaves[name], target) for name in leaves_of(rule.base))
    return max(below, default=0)


def _view_since(state: State, rule: d.ViewDef, job: int) -> int:
    """Return the last run, or the position at which the job became ready again, which clears the outcome."""
    task = state.tasks.get(rule.task)
    if task is None:
        return 0
    last = get_at(task.last_run, job)
    if job in task.queue:
        return max(last, task.queue.position(job))
    return max(last, task.awaiting.get(job, 0))


def _leaf(state: State, leaf: LeafState, job: int, about: str) -> Node:
    rule = leaf.definition.derived
    present, position = state.masks[job] & leaf.bit != 0, since(state, leaf, job) or None
    node = Node(op="in", holds=present, repository=leaf.id, job=about, since=position)
    match rule:
        case None:
            return node
        case d.ViewDef():
            return replace(node, by="view", task=rule.task)
        case d.FilteredDef():
            below = tree(state, rule.base, job, about=about)
            answer, reason = _filtered(state, leaf, job, below.holds, present)
            return replace(node, by="filter", answer=answer, of=[below], explain=reason)
        case d.GatheredDef():
            return replace(node, by="gathered", explain=waits_for(state, leaf, job))
        case d.TranslatedDef():
            answer, reason, target = _translated(state, leaf, job)
            of, name = [tree(state, rule.translator, job, about=about)], ""
            if target is not None:
                name = state.jobs[target]
                of.append(tree(state, rule.base, target, about=name))
            return replace(node, by="translation", answer=answer, of=of, target=name, explain=reason)


def waits_for(state: State, leaf: LeafState, job: int) -> str:
    """Return what the group of a job waits for, with the names of some."""
    gathering = None if leaf.derived is None else leaf.derived.gathering
    group = None if gathering is None else gathering.of_job(job)
    if gathering is None or group is None:
        return "no group of this name is gathered now"
    if group.complete:
        return f"its group is complete: {len(gathering.gathered(job))} gathered"
    held, named = gathering.groups[APART].members, gathering.lacking(group)
    if not named or gathering.rule.key == "batch":
        what = "a key" if gathering.rule.key == "asked" else "their end"
        more = f", a batch is {gathering.rule.size}" if gathering.rule.key == "batch" else ""
        return f"has {len(group.through)}{more}; waits for {what} of {_some(state, held)}"
    rest = f" (has {len(group.through)})" if len(group.missing) > named else ""
    if not group.missing:
        return f"waits for {named} more{rest}: nobody is expected"
    return f"waits for {named} of {len(group.members)}{rest}: {_some(state, group.missing)}"


def _some(state: State, jobs: BitMap) -> str:
    names = ", ".join(state.jobs[job] for job in islice(jobs, NAMED_MAX))
    return f"{names} and {len(jobs) - NAMED_MAX} more" if len(jobs) > NAMED_MAX else names or "none"


def _filtered(state: State, leaf: LeafState, job: int, below: bool, present: bool) -> tuple[str, str]:
    if present:
        return "yes", "its filter wants it"
    if not below:
        return "", "its filter is asked when it is in what is filtered"
    waits = _pending(state, "filter", leaf, job)
    return waits or ("no", "its filter does not want it")


def _translated(state: State, leaf: LeafState, job: int) -> tuple[str, str, int | None]:
    derived = leaf.derived
    target = None if derived is None else derived.forward.get(job)
    waits = _pending(state, "translation", leaf, job)
    if waits is not None:
        return (*waits, target)
    if target is not None:
        return "yes", f"it stands for {state.jobs[target]}", target
    if derived is not None and derived.translator is not None and derived.translator.test(state.masks[job]):
        return "none", "it stands for nothing: its translation is missing", None
    return "", "it stands for nothing: what its translation is read from has no entry of it", None


def _pending(state: State, what: str, leaf: LeafState, job: int) -> tuple[str, str] | None:
    why = state.pending.get(PendingKey(what, leaf.id, job))
    if why is None:
        return None
    if why.error:
        return "error", f"its {what} failed: {why.error}; again at {iso_up(why.retry_at)}"
    return "pending", f"its {what} has not been asked yet"


# --- the job's own past -----------------------------------------------------------------------------


def _own_run(state: State, run: OpenRun) -> Blocker:
    if run.settling is not None:
        outcome = run.settling.outcome
        reason = f"run {run.run} (position {run.run}) has {outcome}, its outputs are being stored"
        return Blocker("live", reason, run.run)
    status = "decided, not yet started" if run.started_at is None else "running"
    status = "out of reach" if run.unreachable else "stopping" if run.stopping else status
    where = f" on {run.where}" if run.where else ""
    where += f" in pod {pod}" if (pod := (run.handle or {}).get("pod")) else ""
    reason = f"run {run.run} (attempt {run.attempt}, position {run.run}) is {status}{where}"
    return Blocker("live", reason, run.run)


def _past(case: Case) -> Iterator[Blocker]:
    """Yield the wait between two attempts, or why the conditions, which hold, do not open an episode."""
    task, job = case.task, case.job
    last = get_at(task.last_run, job)
    if case.episode is not None:
        yield from _between_attempts(case, case.episode, last)
        return
    if job in task.queue or job in task.awaiting:
        return
    mask = case.state.masks[job]
    ever = "its conditions have held ever since: that is the same occasion, not a new one"
    if not mask & task.claim:
        reason = "its conditions hold without having begun to: nothing that they look at has happened to it"
        yield Blocker("occasion", reason)
    elif mask & task.outcomes or (last and task.definition.opaque):
        yield Blocker("claimed", f"its last run was {last} (position {last}), and {ever}", last or None)
    elif last:
        reason = f"it was cancelled; its last run was {last} (position {last}), and {ever}"
        yield Blocker("cancelled", reason, last)
    else:
        yield Blocker("cancelled", f"it was cancelled while it waited, and {ever}")


def _between_attempts(case: Case, episode: Episode, last: int) -> Iterator[Blocker]:
    until = episode.not_before
    if until is None:
        yield Blocker("retry", f"run {last} has ended, another attempt is to be scheduled", last or None)
    elif until > case.now:
        reason = f"attempt {episode.attempt + 1} follows run {last}, not before {iso_up(until)}"
        yield Blocker("retry", reason + _spent(case.task, episode), last or None, until=iso_up(until))
    elif case.task.contends(episode):
        runs = contenders(case.state.open_runs.values(), case.task)
        reason = f"attempt {episode.attempt + 1} waits for run {runs[0]}, which was in conflict as often"
        yield Blocker("retry", reason + _spent(case.task, episode), last or None)


def _spent(task: TaskState, episode: Episode) -> str:
    """Return which runs of the episode used up no attempt of the user's, or the empty string."""
    retry, parts = task.definition.retry, list[str]()
    if episode.lost_in_a_row:
        parts.append(
            f"{episode.lost_in_a_row} of {retry.infrastructure_attempts} lost runs in a row are run again"
        )
    if count := episode.forgiven:
        parts.append(
            f"{count} lost before that count no more: the machine, the node or the service was being stopped, or a later run made progress"
        )
    if episode.conflicts:
        parts.append(
            f"{episode.conflicts} runs were in conflict, which uses up none of the {retry.attempts} attempts"
        )
    return f" ({'; '.join(parts)})" if parts else ""


def _evaluations(case: Case) -> Iterator[Blocker]:
    """Yield what user code has not answered: the priority, and derived leaves in parts that do not hold."""
    state = case.state
    keys = [PendingKey("priority", case.task.name, case.job)]
    failing = [(node, case.job) for node in case.tree.of if not node.holds]
    while failing:
        node, job = failing.pop(0)
        job = state.job_index.get(node.job, job) if node.job else job
        if node.answer in ("pending", "error"):
            keys.append(PendingKey(node.by, node.repository, job))
        failing += [(part, job) for part in node.of]
    for key in dict.fromkeys(keys):
        why = state.pending.get(key)
        if why is not None:
            until = iso_up(why.retry_at) if why.error else ""
            repository = "" if key.what == "priority" else key.owner
            yield Blocker(
                "evaluation",
                pending_text(key, why),
                why.position or None,
                until=until,
                repository=repository,
            )


# --- the task and its surroundings ------------------------------------------------------------------


def surroundings(case: Case) -> Iterator[Blocker]:
    """Yield what holds every job of the task back: no engine, a pause, a runner, a repository that is not known."""
    task, state = case.task, case.state
    if not case.engine_alive:
        yield Blocker("engine", _engine_text(state), state.position or None)
    if task.paused:
        yield Blocker("paused", f"{task.name} was paused (position {task.paused})", task.paused)
    if task.definition.disabled:
        reason = f"{task.name} is disabled (position {state.defined_at})"
        yield Blocker("disabled", reason, state.defined_at or None)
    if task.name in case.unavailable:
        yield Blocker("adapter", f"the runner of {task.name} takes nothing now")
    for leaf in task.reads:
        if not leaf.synced:
            why = leaf.held or leaf.trouble or "it has not been listed since the engine opened"
            yield Blocker("observing", f"{leaf.id} is not known: {why}", repository=leaf.id)


def left_out(state: State, selection: d.Selection | None, task: TaskState, job: int) -> str:
    """Return why the run that is under way does not launch a job, in words; the empty string where it may."""
    if selection is None:
        return ""
    if selection.jobs is not None and job not in Chosen(state, selection.jobs, members=False):
        return _whole_left_out(selection, task) or f"{UNDER_WAY} only jobs in {set_text(selection.jobs)}"
    return _whole_left_out(selection, task)


def left_out_of(
    state: State, selection: d.Selection | None, task: TaskState, jobs: list[int]
) -> tuple[str, list[int]]:
    """Return why some of a task's jobs are left out, and which."""
    if selection is None:
        return "", []
    if why := _whole_left_out(selection, task):
        return why, jobs
    if selection.jobs is None:
        return "", []
    chosen = Chosen(state, selection.jobs, members=False)
    others = [job for job in jobs if job not in chosen]
    return f"{UNDER_WAY} only jobs in {set_text(selection.jobs)}", others


UNDER_WAY = "the run that is under way launches"


def _whole_left_out(selection: d.Selection, task: TaskState) -> str:
    if selection.tasks and task.name not in selection.tasks:
        return f"{UNDER_WAY} only {', '.join(selection.tasks)}"
    return f"{UNDER_WAY} no more than its limit, which is reached" if selection.left == 0 else ""


def _engine_text(state: State) -> str:
    if state.engine is None:
        return "no engine is running: none ever was"
    last = state.engine
    ended = "has ended" if state.closed else "is gone without a word"
    last_one = f"the last one (pid {last.pid} on {last.host}, since {iso_up(last.at)}) {ended}"
    return (
        f"no engine is running: {last_one}, its last sign is position {state.position} at {iso_up(state.at)}"
    )
