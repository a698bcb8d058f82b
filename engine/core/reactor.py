"""The engine without a world: facts, requests and time in; batches and effects out.

Synchronous and single-threaded. A call folds its events at once, ahead of the disk, and queues a `Step`; the caller
appends each batch in order and performs its effects when it is durable. Time comes in as `now`, chance as a function, so
that the same inputs give the same steps. What the log determines is in `State`; the reactor's parts (half-collected
endings, tickets) live as long as the engine. User code (filters, translations, priorities, resources) is evaluated
outside: due evaluations go out, `Evaluated` events come of the outcomes, and an error is tried again later.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from datatask.engine.core import decide as deciding
from datatask.engine.core.cells import get_at
from datatask.engine.core.effects import Evaluation, Outbox, StartRun
from datatask.engine.core.quotas import Constraint
from datatask.engine.core.run_book import RunBook
from datatask.engine.core.state import PendingKey, State
from datatask.engine.core.store_sync import StoreSync
from datatask.engine.core.tickets import Tickets
from datatask.schema import events as e
from datatask.schema.definition import PipelineDef, Selection
from datatask.schema.errors import RunOpenError, unknown
from datatask.schema.messages import Write
from datatask.schema.units import SECOND
from datatask.schema.values import encode_value


class Reactor:
    """The state machine of one engine: callers call its parts and take the resulting steps.

    A fact goes to `runs`, a request for a change to `tickets`, a report of a store to `stores`, an outcome of user
    code to `evaluations`; each emits events and effects through the one `outbox`.
    """

    def __init__(self, state: State, chance: Callable[[], float]) -> None:
        self.state = state
        self.outbox = Outbox(state)
        self.take = self.outbox.take
        self.stores = StoreSync(self.outbox)
        self.tickets = Tickets(self.outbox, self.stores)
        self.runs = RunBook(self.outbox, self.stores, self.tickets, chance)
        self.evaluations = Evaluations(self.outbox)
        self.unavailable: set[str] = set()
        self._epoch = 0
        self._constraints: dict[str, Constraint] = {}

    # --- opening and closing ----------------------------------------------------------------------

    def open(
        self, opened: e.EngineOpened, definition: PipelineDef, renamed: Sequence[e.Renamed] = ()
    ) -> None:
        """Open: record the engine, its definition, and the restart of ephemeral stores."""
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
        self.outbox.emit(events)
        self._index()

    def go_on(self, now: int, definition: PipelineDef) -> None:
        """Continue from a state in the middle of an engine's life, under a definition, for a simulation.

        Nothing is opened, so nothing ephemeral begins anew; unknown stores are assumed to be as reported.
        """
        events: list[e.Event] = []
        digest = definition.digest()
        if digest != self.state.definition.digest():
            events.append(
                e.PipelineDefined(
                    at=now, definition=definition, digest=digest, decider=deciding.DECIDER_VERSION
                )
            )
        self.outbox.emit(events)
        self.outbox.emit(
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

    def _index(self) -> None:
        """Build the indexes of the parts from the state."""
        self.stores.index()
        self.evaluations.index()
        for run in self.state.open_runs.values():
            self.runs.deadlines.watch(run)

    def redo(self, now: int) -> None:
        """Complete the writes that an earlier engine had begun: ends of runs and requested changes."""
        self.runs.ends.redo(now)
        self.tickets.redo(now)

    def close(self, now: int, reason: str = "", actor: str = e.ENGINE) -> None:
        """Record the end of this engine, and who stopped it before its work was done."""
        self.outbox.emit([e.EngineClosed(at=now, actor=actor, epoch=self._epoch, reason=reason)])

    def written(
        self,
        write: Write,
        run: int | None,
        ticket: int | None,
        now: int,
        *,
        version: str | None,
        error: str = "",
        conflict: bool = False,
    ) -> None:
        """A foreign store completed an intent; with `error` it failed for good, with `conflict` because of another's write."""
        if run is not None:
            self.runs.ends.written(run, write, version, error, now, conflict=conflict)
        elif ticket is not None:
            self.tickets.written(ticket, write, version, error, now)

    # --- what people ask --------------------------------------------------------------------------

    def launch(self, decided: e.LaunchDecided) -> int:
        """Launch one job on a person's request: `decided` is complete but for episode and attempt; its ticket."""
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
        quota = None if task.definition.quota is None else state.quotas[task.definition.quota]
        complete = msgspec.structs.replace(
            decided,
            identities={} if quota is None else quota.assign(task.request(job)),
            episode=count if waits else count + 1,
            attempt=1 if episode is None else episode.attempt + 1,
            resources=task.request(job),
            inputs=deciding.inputs_of(state, task, job),
        )
        position = state.position + 1
        self.outbox.emit([complete])
        return self.tickets.done(position, 1, [StartRun(self.runs.spec(state.open_runs[position]))])

    # --- time -------------------------------------------------------------------------------------

    def decide(
        self, now: int, mode: e.Mode, bound: int = deciding.BOUND, selection: Selection | None = None
    ) -> tuple[int, int | None]:
        """Decide a round; return the launches and the time of the next round without events."""
        state = self.state
        found = deciding.decide(state, now, bound=bound, unavailable=self.unavailable, selection=selection)
        if found.decisions or found.constraints != self._constraints or selection != state.selection:
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
                constraints=found.recorded,
                selection=selection,
            )
            position = state.position + 2
            self.outbox.emit([record, *found.decisions])
            runs = range(position, position + len(found.decisions))
            if found.decisions:
                self.outbox.attach([StartRun(self.runs.spec(state.open_runs[run])) for run in runs])
        wake = [at for at in (found.wake_at, self.runs.deadlines.next()) if at is not None]
        return len(found.decisions), min(wake, default=None)


EVALUATION_RETRY = 5 * SECOND


class Evaluations:
    """The evaluations under way, and the retry times of failed ones."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._state = outbox.state
        self._evaluating: set[PendingKey] = set()
        self._retry_times: list[int] = []

    def index(self) -> None:
        """Build the retry times from the state."""
        self._retry_times = sorted(why.retry_at for why in self._state.pending.values() if why.retry_at)

    def due(self, now: int, most: int) -> list[Evaluation]:
        """Return user code that is due to be evaluated and not under way, at most `most`."""
        while self._retry_times and self._retry_times[0] <= now:
            heapq.heappop(self._retry_times)
        found: list[Evaluation] = []
        if len(self._evaluating) >= most:
            return found
        for key, pending in self._state.pending.items():
            if key in self._evaluating or pending.retry_at > now:
                continue
            found.append(Evaluation(key, key.owner, self._state.jobs[key.job], pending.position))
            if len(found) + len(self._evaluating) >= most:
                break
        self._evaluating.update(evaluation.key for evaluation in found)
        return found

    def retry_at(self) -> int | None:
        """Return the time of the next retry, or None."""
        return self._retry_times[0] if self._retry_times else None

    def evaluated(self, results: Sequence[tuple[Evaluation, object, str | None]], now: int) -> None:
        """Record outcomes: (evaluation, value, error text or None)."""
        events: list[e.Event] = []
        for evaluation, value, error in results:
            key = evaluation.key
            self._evaluating.discard(key)
            if error is not None:
                heapq.heappush(self._retry_times, now + EVALUATION_RETRY)
            on_leaf = key.what in ("filter", "translation")
            events.append(
                e.Evaluated(
                    at=now,
                    what=key.what,  # type: ignore[arg-type]
                    task=None if on_leaf else key.owner,
                    repository=key.owner if on_leaf else None,
                    job=evaluation.job,
                    inputs=(evaluation.position,),
                    value=msgspec.Raw(encode_value(value)) if error is None else e.ABSENT,
                    error=error,
                    retry_at=now + EVALUATION_RETRY if error is not None else None,
                )
            )
        self._outbox.emit_in_parts(events)
