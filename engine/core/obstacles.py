"""What holds one (task, job) back, other than limits: data, its own past, its task, the surroundings.

Each obstacle is told as it is now, all at once, with the position that made it so. `Case` in `crowding` builds on this
for what others take; what would help is found out by trying (`proposals`).
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from datatask.engine.core.explanations import Condition, Hold
from datatask.engine.core.members import get_at
from datatask.engine.core.state import PendingKey, State
from datatask.engine.core.tasks import TaskState, contenders
from datatask.engine.core.trees import since, tree
from datatask.engine.core.wiring import start_condition
from datatask.engine.core.wording import in_words, iso, link_of, needs, parts_of, pending_in_words, subject
from datatask.schema import definition as d


class Obstacles:
    """One (task, job) under examination."""

    def __init__(
        self, state: State, task: TaskState, job: int, now: int, engine_alive: bool, unavailable: Set[str]
    ) -> None:
        self.state, self.task, self.job, self.now = state, task, job, now
        self.engine_alive, self.unavailable = engine_alive, unavailable
        self.name = state.jobs[job]
        parts = tuple(parts_of(start_condition(task.definition)))
        self.tree = tree(state, d.All(of=parts), job)
        self.conditions = [self._condition(part) for part in parts]
        self.satisfied = self.tree.holds
        self.episode = task.episodes.get(job)
        self.run = state.open_runs.get(self.episode.run) if self.episode is not None else None
        self.holds: list[Hold] = []

    def _hold(self, what: str, explain: str, since: int | None = None, **more: Any) -> None:
        self.holds.append(Hold(what, explain, since or None, **more))

    def look(self) -> None:
        """Tell all of it."""
        self._live()
        self._past()
        self._evaluation()
        self._surroundings()

    # --- data -------------------------------------------------------------------------------------

    def _condition(self, part: d.AnyExpr) -> Condition:
        bare = subject(part)
        node = tree(self.state, bare, self.job)
        names = d.leaves_of(bare)
        newest = max((since(self.state, self.state.leaves[name], self.job) for name in names), default=0)
        where = f"since position {newest}" if newest else "and has never been"
        told = f"; {node.explain}" if node.explain else ""
        if not isinstance(bare, d.In):
            there = {name: self.state.masks[self.job] & self.state.leaves[name].bit for name in names}
            told = "; " + ", ".join(
                f"{name}: {'present' if bit else 'absent'}" for name, bit in there.items()
            )
        return Condition(
            link=link_of(self.task.definition, part),
            repository=in_words(bare),
            needs=needs(part),
            is_="present" if node.holds else "absent",
            since=newest or None,
            satisfied=node.holds is not isinstance(part, d.Not),
            explain=f"{self.name} is {'in' if node.holds else 'not in'} {in_words(bare)} {where}{told}",
        )

    # --- the job's own past -----------------------------------------------------------------------

    def _live(self) -> None:
        run = self.run
        if run is None:
            return
        if run.settling is not None:
            outcome = run.settling.outcome
            told = f"run {run.run} (position {run.run}) has {outcome}, its outputs are being stored"
            self._hold("live", told, run.run)
            return
        state = "decided, not yet started" if run.started_at is None else "running"
        state = "out of reach" if run.unreachable else "stopping" if run.stopping else state
        where = f" on {run.where}" if run.where else ""
        told = f"run {run.run} (attempt {run.attempt}, position {run.run}) is {state}{where}"
        self._hold("live", told, run.run)

    def _spent(self) -> str:
        """Return what the job's attempts have been paid from, but for the user's."""
        episode, retry = self.episode, self.task.definition.retry
        assert episode is not None, "asked between two attempts only"
        told = []
        if episode.lost_in_a_row:
            told.append(
                f"{episode.lost_in_a_row} of {retry.infrastructure_attempts} lost runs in a row are run again"
            )
        if count := episode.forgiven:
            told.append(
                f"{count} lost before that count no more: the machine, the node or the service was being stopped, or a later run made progress"
            )
        if episode.conflicts:
            told.append(
                f"{episode.conflicts} runs were in conflict, which uses up none of the {retry.attempts} attempts"
            )
        return f" ({'; '.join(told)})" if told else ""

    def _past(self) -> None:
        """Tell of an occasion that has been, of none that ever was, and of a wait between two attempts."""
        if not self.satisfied or self.run is not None:
            return
        task, job, last = self.task, self.job, get_at(self.task.last_run, self.job)
        if self.episode is not None:
            until = self.episode.not_before
            if until is None:
                self._hold("retry", f"run {last} has ended, another attempt is to be scheduled", last)
            elif until > self.now:
                told = f"attempt {self.episode.attempt + 1} follows run {last}, not before {iso(until)}"
                self._hold("retry", told + self._spent(), last, until=iso(until))
            elif task.contends(self.episode):
                runs = contenders(self.state.open_runs.values(), task)
                told = f"attempt {self.episode.attempt + 1} waits for run {runs[0]}, which was in conflict as often"
                self._hold("retry", told + self._spent(), last)
            return
        if job in task.queue or job in task.awaiting:
            return
        mask = self.state.masks[job]
        if not mask & task.claim:
            told = "its conditions hold without having begun to: nothing that they look at has happened to it"
            self._hold("occasion", told)
        elif mask & task.outcomes or (last and task.definition.opaque):
            told = "and its conditions have held ever since: that is the same occasion, not a new one"
            self._hold("claimed", f"its last run was {last} (position {last}), {told}", last)
        else:
            told = (
                f"it was cancelled; its last run was {last} (position {last})"
                if last
                else "it was cancelled while it waited"
            )
            ever = "its conditions have held ever since: that is the same occasion, not a new one"
            self._hold("cancelled", f"{told}, and {ever}", last)

    def _evaluation(self) -> None:
        """Tell what user code has not said: the priority, and answers in the parts of the condition that do not hold."""
        keys = [PendingKey("priority", self.task.name, self.job)]
        lacking = [(node, self.job) for node in self.tree.of if not node.holds]
        while lacking:
            node, job = lacking.pop(0)
            job = self.state.job_index.get(node.job, job) if node.job else job
            if node.answer in ("pending", "error"):
                keys.append(PendingKey(node.by, node.repository, job))
            lacking += [(part, job) for part in node.of]
        for key in dict.fromkeys(keys):
            why = self.state.pending.get(key)
            if why is not None:
                until = iso(why.retry_at) if why.error else ""
                owner = "" if key.what == "priority" else key.owner
                told = pending_in_words(key, why)
                self._hold("evaluation", told, why.position, until=until, repository=owner)

    # --- the task and its surroundings ------------------------------------------------------------

    def _surroundings(self) -> None:
        task, state = self.task, self.state
        if not self.engine_alive:
            self._hold("engine", _engine_in_words(state), state.position)
        if task.paused:
            self._hold("paused", f"{task.name} was paused (position {task.paused})", task.paused)
        if task.definition.disabled:
            told = f"{task.name} is disabled (position {state.defined_at})"
            self._hold("disabled", told, state.defined_at)
        if task.name in self.unavailable:
            self._hold("adapter", f"the runner of {task.name} takes nothing now")
        for leaf in task.reads:
            if not leaf.synced:
                why = leaf.held or leaf.trouble or "it has not been listed since the engine opened"
                self._hold("observing", f"{leaf.id} is not known: {why}", repository=leaf.id)


def _engine_in_words(state: State) -> str:
    if state.engine is None:
        return "no engine is running: none ever was"
    last = state.engine
    ended = "has ended" if state.closed else "is gone without a word"
    who = f"the last one (pid {last.pid} on {last.host}, since {iso(last.at)}) {ended}"
    return f"no engine is running: {who}, its last sign is position {state.position} at {iso(state.at)}"
