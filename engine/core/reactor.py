"""The engine without a world: facts, requests and time in; batches and effects out.

Everything is synchronous and single-threaded. A call folds the events that it leads to at once, ahead of the
disk, and queues a `Step`; the caller takes `steps`, appends each batch in order and performs its effects when
it is durable. Time comes in as `now`, chance as a function given at the start, so the same inputs give the same
steps: `run`, the tests and simulation differ only in who calls. What the log alone tells is in `State`;
what is known only while this engine lives (half-collected endings, tickets) is here and is lost with it.

The layers, each on the one before: `outbox` (steps), `changes` (tickets), `observations`, `runs`, and this one:
opening, deciding, and launches on a person's word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from datatask.engine.core import decide as deciding
from datatask.engine.core.changes import intended_write
from datatask.engine.core.effects import BATCH_MAX, Effect, StartRun
from datatask.engine.core.leaves import get_at
from datatask.engine.core.runs import Runs
from datatask.engine.core.state import State
from datatask.engine.core.tasks import Intent, OpenRun
from datatask.schema import events as e
from datatask.schema.definition import PipelineDef
from datatask.schema.errors import RunOpenError, unknown
from datatask.schema.messages import RunSpec, Write


class Reactor(Runs):
    """One engine's mind. `steps` is what it has led to since last taken."""

    def __init__(self, state: State, chance: Callable[[], float]) -> None:
        super().__init__(state, chance)
        self.unavailable: set[str] = set()
        self.log = ""
        self._epoch = 0
        self._constraints: dict[str, str] = {}

    # --- opening and closing ----------------------------------------------------------------------

    def open(
        self, opened: e.EngineOpened, definition: PipelineDef, renamed: Sequence[e.Renamed] = ()
    ) -> None:
        """Begin: say who we are, put the definition in force, start ephemeral stores anew."""
        self._epoch = opened.epoch
        led: dict[str, Any] = {
            "actor": opened.actor,
            "reason": opened.reason,
            "cause": self.state.position + 1,
        }
        events: list[e.Event] = [opened, *(msgspec.structs.replace(name, **led) for name in renamed)]
        digest = definition.digest()
        if not self.state.defined_at or digest != self.state.definition.digest() or renamed:
            events.append(
                e.PipelineDefined(
                    at=opened.at,
                    definition=definition,
                    digest=digest,
                    decider=deciding.DECIDER_VERSION,
                    **led,
                )
            )
        known = self.state.leaves
        for repository in definition.repositories:
            if repository.ephemeral and repository.id in known:
                incarnation = known[repository.id].incarnation + 1
                events.append(
                    e.RepositoryReset(
                        at=opened.at, repository=repository.id, incarnation=incarnation, cause=led["cause"]
                    )
                )
        self._emit(events)
        self._index()
        for run in self.state.open_runs.values():
            self._watch_deadline(run)

    def go_on(self, now: int, definition: PipelineDef) -> None:
        """Go on from a state in the middle of an engine's life, under a definition: what a simulation does.

        Nothing is opened, so nothing ephemeral begins anew; stores that are not known are taken for as they are told.
        """
        events: list[e.Event] = []
        digest = definition.digest()
        if digest != self.state.definition.digest():
            events.append(
                e.PipelineDefined(
                    at=now, definition=definition, digest=digest, decider=deciding.DECIDER_VERSION
                )
            )
        self._emit(events)
        self._emit(
            [
                e.RepositorySynced(
                    at=now, repository=leaf.id, listed_at=now, members=leaf.count, root=leaf.root
                )
                for leaf in self.state.leaves.values()
                if not leaf.synced
            ]
        )
        self._epoch = 0 if self.state.engine is None else self.state.engine.epoch
        self._index()
        for run in self.state.open_runs.values():
            self._watch_deadline(run)

    def recoverable(self) -> dict[str, list[RunSpec]]:
        """Return the open runs of earlier engines by task, less those whose end can be redone from the log."""
        specs: dict[str, list[RunSpec]] = {}
        for run in self.state.open_runs.values():
            if not self._redoable(run):
                specs.setdefault(run.task, []).append(self._spec(run))
        return specs

    def redo(self, now: int) -> None:
        """Finish what an earlier engine had begun to write: ends of runs, and changes asked for."""
        for run in list(self.state.open_runs.values()):
            if self._redoable(run):
                assert run.settling is not None
                writes = [self._intended(run, intent) for intent in run.intents.values()]
                self._collect(run, run.settling, writes, now)
        for _, intent in sorted(self.state.intents.values(), key=lambda intent: intent.position):
            if intent.run is None:
                origin: e.ValueOrigin = "written" if intent.request is None else "injected"
                ticket = self._ticket(origin, intent.actor, intent.reason, intent.request)
                self._foreign([intended_write(intent)], ticket, now)

    def _intended(self, run: OpenRun, intent: Intent) -> Write:
        """Return what a run was about to write: by then it had been compared, what others write later stands."""
        write, task = intended_write(intent.event), self.state.tasks[run.task].definition
        if self._medium(write) == "foreign" or write.repository in (task.done, task.pids):
            return write
        return msgspec.structs.replace(write, over=intent.position)

    def _redoable(self, run: OpenRun) -> bool:
        if run.settling is None or not run.intents:
            return False
        intents = [intent.event for intent in run.intents.values()]
        return all(intent.op == "delete" or intent.value or intent.digest for intent in intents)

    def _spec(self, run: OpenRun) -> RunSpec:
        identity = f"{self.state.log}.{run.epoch}.{run.run}"
        job = self.state.jobs[run.job]
        return RunSpec(
            run.run,
            identity,
            run.task,
            job,
            run.episode,
            run.attempt,
            run.inputs,
            run.meta,
            run.handle,
            self.log,
            self.state.tasks[run.task].definition.conflicts,
        )

    def close(self, now: int, reason: str = "", actor: str = e.ENGINE) -> None:
        """Say that this engine ends, and who ended it when it was not done."""
        self._emit([e.EngineClosed(at=now, actor=actor, epoch=self._epoch, reason=reason)])

    # --- what people ask --------------------------------------------------------------------------

    def ask(self, events: Sequence[e.Event], effects: Iterable[Effect] = ()) -> int:
        """Append what a person asked; returns the ticket that `Finished` will name."""
        number = self._ticket("written", e.ENGINE, "", None)
        ticket = self._tickets[number]
        ticket.count = len(events)
        for start in range(0, len(events), BATCH_MAX):
            ticket.position = self._emit(events[start : start + BATCH_MAX])
        self._attach(tuple(effects))
        self._finish(number)
        return number

    def launch(self, decided: e.LaunchDecided) -> int:
        """Launch one job on a person's word: `decided` is complete but for episode and attempt; its ticket."""
        state = self.state
        task = state.tasks.get(decided.task or "")
        if task is None:
            raise unknown("task", decided.task or "", state.tasks)
        job = state.intern(decided.job or "")
        episode = task.episodes.get(job)
        if episode is not None and episode.run:
            raise RunOpenError(
                f"{decided.task} has an open run for {decided.job}",
                where=f"run {episode.run}",
                remedy="wait for its end, or cancel it",
            )
        waits = episode is not None or job in task.queue or job in task.awaiting
        count = get_at(task.episode_count, job)
        complete = msgspec.structs.replace(
            decided,
            episode=count if waits else count + 1,
            attempt=1 if episode is None else episode.attempt + 1,
            resources=task.definition.resources,
            inputs=deciding.inputs_of(state, task, job),
        )
        position = state.position + 1
        number = self._ticket("written", decided.actor, decided.reason, decided.request)
        ticket = self._tickets[number]
        ticket.count = 1
        ticket.position = self._emit([complete])
        self._attach([StartRun(self._spec(state.open_runs[position]))])
        self._finish(number)
        return number

    # --- time -------------------------------------------------------------------------------------

    def decide(self, now: int, mode: e.Mode, bound: int = deciding.BOUND) -> tuple[int, int | None]:
        """Decide a round; returns (launches, when to look again though nothing happens)."""
        state = self.state
        found = deciding.decide(state, now, bound=bound, unavailable=self.unavailable)
        if found.decisions or found.constraints != self._constraints:
            self._constraints = found.constraints
            record = e.DecisionRound(
                at=now,
                state=state.position,
                now=now,
                bound=bound,
                mode=mode,
                decider=deciding.DECIDER_VERSION,
                decisions=len(found.decisions),
                unavailable=tuple(sorted(self.unavailable)),
                constraints=found.constraints,
            )
            position = state.position + 2
            self._emit([record, *found.decisions])
            runs = range(position, position + len(found.decisions))
            if found.decisions:
                self._attach([StartRun(self._spec(state.open_runs[run])) for run in runs])
        wake = [at for at in (found.wake_at, self.wake_at()) if at is not None]
        return len(found.decisions), min(wake, default=None)
