"""The engine without a world: facts, requests and time in; batches and effects out.

Everything is synchronous and single-threaded. A call folds the events that it leads to at once, ahead of the
disk, and queues a `Step`; the caller takes `steps`, appends each batch in order and performs its effects when
it is durable. Time comes in as `now`, chance as a function given at the start, so the same inputs give the same
steps: `run`, the tests and simulation differ only in who calls. What the log alone tells is in `State`;
what is known only while this engine lives (half-collected endings, tickets) is here and is lost with it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from datatask.engine.core import decide as deciding
from datatask.engine.core.done import done_record
from datatask.engine.core.effects import (
    Effect,
    Evaluation,
    Finished,
    ForgetRun,
    Mirror,
    StartRun,
    Step,
    StopRun,
    WriteStore,
)
from datatask.engine.core.fold import apply_all
from datatask.engine.core.members import get_at, version_hash
from datatask.engine.core.settle import Again, after_ending
from datatask.engine.core.state import PendingKey, State
from datatask.engine.core.tasks import OpenRun
from datatask.engine.ports import (
    Adopted,
    Ended,
    Fact,
    Noticed,
    Reachable,
    RunSpec,
    Started,
    Unreachable,
    Write,
)
from datatask.schema import events as e
from datatask.schema.definition import SECOND, PipelineDef, view_id
from datatask.schema.errors import CallerError, RunOpenError, UnknownNameError
from datatask.schema.values import encode_value

BATCH_MAX = 5_000
EVALUATION_RETRY = 5 * SECOND


@dataclass(slots=True)
class Collecting:
    """A run that is over at its target while its outputs travel to foreign stores."""

    ending: e.Ending
    writes: list[Write]
    outstanding: set[tuple[str, str]]


@dataclass(slots=True)
class Ticket:
    """A change asked for from outside, until its last event is durable."""

    outstanding: set[tuple[str, str]] = field(default_factory=set)
    position: int = 0
    count: int = 0
    origin: e.ValueOrigin = "written"
    actor: str = e.ENGINE
    reason: str = ""
    request: str | None = None


class Reactor:
    """One engine's mind. `steps` is what it has led to since last taken."""

    def __init__(self, state: State, chance: Callable[[], float]) -> None:
        self.state = state
        self.steps: list[Step] = []
        self.unavailable: set[str] = set()
        self.collecting: dict[int, Collecting] = {}
        self._chance = chance
        self._epoch = 0
        self._stash: dict[int, dict[tuple[str, str], Write]] = {}
        self._tickets: dict[int, Ticket] = {}
        self._next_ticket = 1
        self._deadlines: list[tuple[int, int]] = []
        self._evaluating: set[PendingKey] = set()
        self._writers: dict[str, list[str]] = {}
        self._constraints: dict[str, str] = {}

    def take(self) -> list[Step]:
        """Return the steps since the last call, in order."""
        steps, self.steps = self.steps, []
        return steps

    def _emit(self, events: Sequence[e.Event], effects: Iterable[Effect] = ()) -> int:
        """Fold a batch, queue it with its effects, and return the position of its last event."""
        first = self.state.position + 1
        apply_all(self.state, first, events)
        self.steps.append(Step(first, tuple(events), tuple(effects)))
        return self.state.position

    # --- opening and closing ----------------------------------------------------------------------

    def open(
        self, opened: e.EngineOpened, definition: PipelineDef, renamed: Sequence[e.Renamed] = ()
    ) -> None:
        """Begin: say who we are, put the definition in force, start ephemeral stores anew."""
        self._epoch = opened.epoch
        events: list[e.Event] = [opened, *renamed]
        digest = definition.digest()
        if not self.state.defined_at or digest != self.state.definition.digest() or renamed:
            events.append(
                e.PipelineDefined(
                    at=opened.at, definition=definition, digest=digest, decider=deciding.DECIDER_VERSION
                )
            )
        known = self.state.leaves
        for repository in definition.repositories:
            if repository.ephemeral and repository.id in known:
                incarnation = known[repository.id].incarnation + 1
                events.append(
                    e.RepositoryReset(at=opened.at, repository=repository.id, incarnation=incarnation)
                )
        self._emit(events)
        self._index()
        for run in self.state.open_runs.values():
            self._watch_deadline(run)

    def _index(self) -> None:
        self._writers = {}
        for task in self.state.tasks.values():
            for link in task.definition.links:
                if link.is_output or link.is_status:
                    leaf = getattr(link.expr, "leaf", None)
                    if leaf is not None:
                        self._writers.setdefault(leaf, []).append(task.name)

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
                writes = [_intended(self.state.intents[key].event) for key in run.intents]
                self._collect(run, run.settling, writes, now)
        for _, intent in sorted(self.state.intents.values(), key=lambda intent: intent.position):
            if intent.run is None:
                ticket = self._ticket("written", intent.actor, intent.reason, intent.request)
                self._foreign([_intended(intent)], ticket, now)

    def _redoable(self, run: OpenRun) -> bool:
        if run.settling is None or not run.intents:
            return False
        intents = [self.state.intents[key].event for key in run.intents]
        return all(intent.op == "delete" or intent.value or intent.digest for intent in intents)

    def _spec(self, run: OpenRun) -> RunSpec:
        identity = f"{self.state.log}.{run.epoch}.{run.run}"
        job = self.state.jobs[run.job]
        return RunSpec(
            run.run, identity, run.task, job, run.episode, run.attempt, run.inputs, run.meta, run.handle
        )

    def close(self, now: int, reason: str = "") -> None:
        """Say that this engine ends."""
        self._emit([e.EngineClosed(at=now, epoch=self._epoch, reason=reason)])

    # --- what the world tells ---------------------------------------------------------------------

    def listed(
        self,
        leaf_id: str,
        listing: Sequence[Write],
        listed_at: int,
        began: int,
        now: int,
        *,
        believe: bool = False,
    ) -> bool:
        """Compare a complete listing with the state; log the differences and that the store is known.

        `began` is the state's position when the listing began: what changed since is left alone. Returns False
        when so much vanished that a person must say that it is true (`believe`).
        """
        state, leaf = self.state, self.state.leaves[leaf_id]
        seen = {write.job for write in listing}
        gone = [
            job
            for job in leaf.members(state.masks)
            if state.jobs[job] not in seen and get_at(leaf.positions, job) <= began
        ]
        if leaf.definition.medium == "foreign" and not believe and len(gone) > max(100, leaf.count // 10):
            if not leaf.held:
                sample = tuple(state.jobs[job] for job in gone[:5])
                held = e.ObservationHeld(
                    at=now, repository=leaf_id, vanished=len(gone), members=leaf.count, sample=sample
                )
                self._emit([held])
            return False
        events: list[e.Event] = []
        for job in gone:
            if not self._stashed(leaf_id, state.jobs[job], None):
                events.append(
                    e.ValueDeleted(at=now, repository=leaf_id, job=state.jobs[job], origin="observed")
                )
        for write in listing:
            if self._is_news(leaf_id, write) and not self._stashed(leaf_id, write.job, write):
                events.append(_put(write, now, origin="observed"))
        if events or not leaf.synced or leaf.held:
            synced = e.RepositorySynced(at=now, repository=leaf_id, listed_at=listed_at, members=len(listing))
            events.append(synced)
        self._emit_in_parts(events)
        return True

    def observed(self, leaf_id: str, job: str, write: Write | None, now: int) -> None:
        """A store told that a job appeared or changed (`write`), or vanished (None)."""
        state = self.state
        index = state.job_index.get(job)
        present = index is not None and state.masks[index] & state.leaves[leaf_id].bit != 0
        if index is not None and (leaf_id, index) in state.intents:
            return
        if write is None:
            if present and not self._stashed(leaf_id, job, None):
                self._emit([e.ValueDeleted(at=now, repository=leaf_id, job=job, origin="observed")])
        elif self._is_news(leaf_id, write) and not self._stashed(leaf_id, job, write):
            self._emit([_put(write, now, origin="observed")])

    def _is_news(self, leaf_id: str, write: Write) -> bool:
        leaf, job = self.state.leaves[leaf_id], self.state.job_index.get(write.job)
        if job is None or not self.state.masks[job] & leaf.bit:
            return True
        if (leaf_id, job) in self.state.intents:
            return False
        return leaf.versioned and get_at(leaf.versions, job) != version_hash(write.version)

    def _stashed(self, leaf_id: str, job: str, write: Write | None) -> bool:
        """Keep an observation in an output or status repository of an open run for that run's end."""
        index = self.state.job_index.get(job)
        if index is None:
            return False
        for name in self._writers.get(leaf_id, ()):
            episode = self.state.tasks[name].episodes.get(index)
            if episode is not None and episode.run:
                gone = write or Write(repository=leaf_id, job=job, op="delete")
                self._stash.setdefault(episode.run, {})[leaf_id, job] = gone
                return True
        return False

    def evaluations(self, now: int, most: int) -> list[Evaluation]:
        """Return user code that is due to be evaluated and not under way, at most so many."""
        found: list[Evaluation] = []
        if len(self._evaluating) >= most:
            return found
        for key, pending in self.state.pending.items():
            if key in self._evaluating or pending.retry_at > now:
                continue
            found.append(Evaluation(key, key.owner, self.state.jobs[key.job], pending.position))
            if len(found) + len(self._evaluating) >= most:
                break
        self._evaluating.update(evaluation.key for evaluation in found)
        return found

    def evaluated(self, results: Sequence[tuple[Evaluation, object, str | None]], now: int) -> None:
        """Record outcomes: (evaluation, value, error text or None)."""
        events: list[e.Event] = []
        for evaluation, value, error in results:
            key = evaluation.key
            self._evaluating.discard(key)
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
        self._emit_in_parts(events)

    def _emit_in_parts(self, events: Sequence[e.Event], effects: Sequence[Effect] = ()) -> int:
        position = 0
        for start in range(0, len(events), BATCH_MAX):
            position = self._emit(events[start : start + BATCH_MAX], effects[start : start + BATCH_MAX])
        return position

    # --- runs -------------------------------------------------------------------------------------

    def fact(self, fact: Fact, now: int) -> None:
        """Take what a runner tells."""
        run = self.state.open_runs.get(fact.run)
        if run is None:
            if not isinstance(fact, Noticed):
                self._late(fact, now)
            return
        match fact:
            case Ended():
                self._ended(run, fact, now)
            case Started():
                if run.started_at is None:
                    self._started(run, fact, now)
            case Adopted():
                self._emit([self._about(run, e.RunAdopted, now, handle=fact.handle, where=fact.where)])
                self._watch_deadline(run)
            case Unreachable() if not run.unreachable:
                self._emit(
                    [self._about(run, e.RunUnreachable, now, where=fact.where, message=fact.message[:1024])]
                )
            case Reachable() if run.unreachable:
                self._emit([self._about(run, e.RunReachable, now, where=fact.where)])
            case Noticed():
                self._emit([self._about(run, e.RunObserved, now, **_noticed(fact))])

    def _about(self, run: OpenRun, kind: type[e.Event], now: int, **own: Any) -> e.Event:
        return kind(at=now, task=run.task, job=self.state.jobs[run.job], run=run.run, cause=run.run, **own)

    def _late(self, fact: Fact, now: int) -> None:
        detail = {"outcome": fact.ending.outcome} if isinstance(fact, Ended) else {}
        self._emit([e.LateFact(at=now, run=fact.run, fact=type(fact).__name__, detail=detail)])

    def _started(self, run: OpenRun, fact: Started, now: int) -> None:
        started = self._about(
            run, e.RunStarted, now, handle=fact.handle, where=fact.where, started_at=fact.started_at
        )
        pids = self.state.tasks[run.task].definition.pids
        writes = []
        if pids is not None and "pid" in fact.handle:
            entry = {"pid": fact.handle["pid"], "start_time": _utc(fact.started_at or now)}
            writes.append(
                Write(repository=pids, job=self.state.jobs[run.job], value=msgspec.Raw(encode_value(entry)))
            )
        native = [write for write in writes if self._medium(write) != "foreign"]
        self._emit(
            [started, *(_put(write, now, run=run) for write in native)],
            [Mirror(write) for write in native if self._medium(write) == "mirror"],
        )
        for write in writes:
            if write not in native:
                self._foreign([write], self._ticket("written", e.ENGINE, "", None), now)
        self._watch_deadline(run)

    def _watch_deadline(self, run: OpenRun) -> None:
        timeout = self.state.tasks[run.task].definition.timeout
        if timeout is not None and run.started_at is not None:
            heapq.heappush(self._deadlines, (run.started_at + timeout, run.run))

    def _ended(self, run: OpenRun, fact: Ended, now: int) -> None:
        if run.run in self.collecting:
            self._late(fact, now)
            return
        writes = {(write.repository, write.job): write for write in fact.writes}
        for key, write in self._stash.pop(run.run, {}).items():
            writes.setdefault(key, write)
        ending, again = fact.ending, self._verdict(run, fact.ending.outcome, now)
        task = self.state.tasks[run.task].definition
        job = self.state.jobs[run.job]
        if isinstance(again, Again):
            own = {(leaf, job) for leaf in self._own_inhibitors(run.task)}
            writes = {key: write for key, write in writes.items() if key not in own}
        elif task.done is not None and run.meta and not _reopened(ending.outcome):
            record = done_record(task.done_shape, ending)
            done = Write(repository=task.done, job=job, value=msgspec.Raw(encode_value(record)))
            writes[task.done, job] = done
        if task.pids is not None:
            writes[task.pids, job] = Write(repository=task.pids, job=job, op="delete")
        self._collect(run, ending, list(writes.values()), now)

    def _own_inhibitors(self, task: str) -> list[str]:
        links = self.state.tasks[task].definition.links
        return [link.expr.leaf for link in links if link.inhibits_start and hasattr(link.expr, "leaf")]

    def _verdict(self, run: OpenRun, outcome: str, now: int) -> object:
        task = self.state.tasks[run.task]
        stopped = run.stopping in ("cancelled", "deleted", "shutdown")
        episode = task.episodes[run.job]
        return after_ending(task.definition.retry, episode, outcome, now, self._chance(), stopped=stopped)

    def _medium(self, write: Write) -> str:
        return self.state.leaves[write.repository].definition.medium

    def _collect(self, run: OpenRun, ending: e.Ending, writes: list[Write], now: int) -> None:
        """Record an ending with its writes at once, or, where a foreign store must follow, by intents first."""
        foreign = [write for write in writes if self._medium(write) == "foreign" and write.version is None]
        if not foreign:
            self._settle(run, ending, writes, now)
            return
        intents: list[e.Event] = [
            self._intent(write, now, run=run.run, settles=ending if write is writes[-1] else None)
            for write in writes
        ]
        outstanding = {(write.repository, write.job) for write in foreign}
        self.collecting[run.run] = Collecting(ending, writes, outstanding)
        self._emit(intents, [WriteStore(write, run.run, None) for write in foreign])

    def _intent(self, write: Write, now: int, **more: Any) -> e.StoreWriteIntended:
        return e.StoreWriteIntended(
            at=now,
            repository=write.repository,
            job=write.job,
            op="delete" if write.op == "delete" else "put",
            value=write.value,
            digest=write.digest,
            size=write.size,
            **more,
        )

    def _settle(self, run: OpenRun, ending: e.Ending, writes: Sequence[Write], now: int) -> None:
        """The one batch that ends a run: its writes, its done entry, `RunEnded`, and what follows."""
        task, job = run.task, self.state.jobs[run.job]
        verdict = self._verdict(run, ending.outcome, now)
        again = verdict if isinstance(verdict, Again) else None
        events: list[e.Event] = [_change(write, now, run=run) for write in writes]
        effects: list[Effect] = [Mirror(write) for write in writes if self._medium(write) == "mirror"]
        ended = e.RunEnded(
            at=now,
            task=task,
            job=job,
            run=run.run,
            cause=run.run,
            outcome=ending.outcome,
            exit_code=ending.exit_code,
            error=ending.error,
            started_at=ending.started_at,
            ended_at=ending.ended_at,
            usage=ending.usage,
            reads=ending.reads,
            where=ending.where or run.where,
            detail=ending.detail,
            final=again is None,
        )
        events.append(ended)
        if again is not None:
            events.append(
                e.RetryScheduled(
                    at=now,
                    task=task,
                    job=job,
                    run=run.run,
                    not_before=again.not_before,
                    attempt=again.attempt,
                    budget=again.budget,
                )
            )
        elif verdict.exhausted:  # type: ignore[attr-defined]
            events.append(
                e.RetriesExhausted(
                    at=now,
                    task=task,
                    job=job,
                    run=run.run,
                    attempts=verdict.attempts,  # type: ignore[attr-defined]
                    budget=verdict.exhausted,  # type: ignore[attr-defined]
                )
            )
        while len(events) > BATCH_MAX:
            self._emit(events[:BATCH_MAX])
            del events[:BATCH_MAX]
        self._emit(events, [*effects, ForgetRun(task, run.run)])

    def written(
        self,
        write: Write,
        run: int | None,
        ticket: int | None,
        now: int,
        *,
        version: str | None,
        error: str = "",
    ) -> None:
        """A foreign store has followed an intent; or, with `error`, never will."""
        key = (write.repository, write.job)
        if run is not None:
            self._run_written(run, key, version, error, now)
        elif ticket is not None:
            self._ticket_written(ticket, write, version, error, now)

    def _run_written(
        self, run_id: int, key: tuple[str, str], version: str | None, error: str, now: int
    ) -> None:
        collecting = self.collecting[run_id]
        collecting.outstanding.discard(key)
        for index, write in enumerate(collecting.writes):
            if (write.repository, write.job) == key:
                collecting.writes[index] = msgspec.structs.replace(write, version=version or "")
                if error:
                    del collecting.writes[index]
                    info = e.ErrorInfo(type="StoreError", message=f"cannot store {key[0]} {key[1]}: {error}")
                    outcome = collecting.ending.outcome
                    collecting.ending = msgspec.structs.replace(
                        collecting.ending, outcome="failed" if outcome == "succeeded" else outcome, error=info
                    )
                break
        if not collecting.outstanding:
            del self.collecting[run_id]
            self._settle(self.state.open_runs[run_id], collecting.ending, collecting.writes, now)

    # --- changes from outside ---------------------------------------------------------------------

    def _ticket(self, origin: e.ValueOrigin, actor: str, reason: str, request: str | None) -> int:
        number = self._next_ticket
        self._next_ticket += 1
        self._tickets[number] = Ticket(origin=origin, actor=actor, reason=reason, request=request)
        return number

    def change(
        self,
        writes: Sequence[Write],
        now: int,
        *,
        origin: e.ValueOrigin = "written",
        actor: str = e.ENGINE,
        reason: str = "",
        request: str | None = None,
    ) -> int:
        """Put and delete values on somebody's word; returns the ticket that `Finished` will name."""
        number = self._ticket(origin, actor, reason, request)
        ticket = self._tickets[number]
        foreign = [write for write in writes if self._medium(write) == "foreign"]
        events: list[e.Event] = []
        effects: list[Effect] = []
        for write in writes:
            medium = self._medium(write)
            if medium in ("native", "mirror") and self._changes(write):
                events.append(_change(write, now, ticket=ticket))
                if medium == "mirror":
                    effects.append(Mirror(write))
            elif medium in ("derived", "view"):
                raise CallerError(
                    f"{write.repository} follows from others and cannot be written",
                    remedy="change the repositories that it is derived from",
                )
        ticket.count = len(events)
        for start in range(0, len(events), BATCH_MAX):
            ticket.position = self._emit(events[start : start + BATCH_MAX])
        if effects:
            self._attach(effects)
        if foreign:
            self._foreign(foreign, number, now)
        else:
            self._finish(number)
        return number

    def _changes(self, write: Write) -> bool:
        return write.op != "delete" or self.state.contains(write.repository, write.job)

    def _attach(self, effects: Sequence[Effect]) -> None:
        """Let effects follow the last step taken, or an empty one where there is none to follow."""
        if self.steps:
            last = self.steps[-1]
            self.steps[-1] = last._replace(effects=(*last.effects, *effects))
        else:
            self.steps.append(Step(self.state.position + 1, (), tuple(effects)))

    def _finish(self, number: int) -> None:
        ticket = self._tickets.pop(number)
        self._attach([Finished(number, ticket.position, ticket.count)])

    def _foreign(self, writes: Sequence[Write], number: int, now: int) -> None:
        ticket = self._tickets[number]
        ticket.outstanding.update((write.repository, write.job) for write in writes)
        intents = [
            msgspec.structs.replace(
                self._intent(write, now, reason=ticket.reason, request=ticket.request), actor=ticket.actor
            )
            for write in writes
        ]
        effects = [WriteStore(write, None, number) for write in writes]
        self._emit_in_parts(intents, effects)

    def _ticket_written(self, number: int, write: Write, version: str | None, error: str, now: int) -> None:
        ticket = self._tickets[number]
        ticket.outstanding.discard((write.repository, write.job))
        if not error and (write.op != "delete" or self.state.contains(write.repository, write.job)):
            done = msgspec.structs.replace(write, version=version)
            ticket.position = self._emit([_change(done, now, ticket=ticket)])
            ticket.count += 1
        elif (write.repository, self.state.job_index[write.job]) in self.state.intents:
            gone = e.ValueDeleted(at=now, actor=ticket.actor, repository=write.repository, job=write.job)
            present = self.state.contains(write.repository, write.job)
            if not present:
                ticket.position = self._emit([gone])
        if not ticket.outstanding:
            self._finish(number)

    # --- what people ask --------------------------------------------------------------------------

    def ask(self, events: Sequence[e.Event], effects: Iterable[Effect] = ()) -> int:
        """Append what a person asked; returns the ticket that `Finished` will name."""
        number = self._ticket("written", e.ENGINE, "", None)
        ticket = self._tickets[number]
        ticket.count = len(events)
        if events:
            ticket.position = self._emit(events, effects)
        self._finish(number)
        return number

    def stop(self, run: OpenRun, reason: e.StopReason, now: int, **who: object) -> tuple[e.Event, Effect]:
        """Return the event and the effect that stop an open run."""
        grace = self.state.tasks[run.task].definition.grace
        stop = self._about(run, e.StopDecided, now, reason=reason, grace=grace)
        return msgspec.structs.replace(stop, **who), StopRun(run.task, run.run, reason, grace)

    def launch(self, decided: e.LaunchDecided) -> int:
        """Launch one job on a person's word: `decided` is complete but for episode and attempt; its ticket."""
        state = self.state
        task = state.tasks.get(decided.task or "")
        if task is None:
            raise UnknownNameError(f"there is no task {decided.task}", remedy=_one_of(state.tasks))
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

    def stop_overdue(self, now: int) -> None:
        """Stop runs that have outlived their task's timeout."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, number = heapq.heappop(self._deadlines)
            run = self.state.open_runs.get(number)
            if run is not None and run.stopping is None and number not in self.collecting:
                event, effect = self.stop(run, "timeout", now)
                self._emit([event], [effect])

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

    def wake_at(self) -> int | None:
        """Return when the next timeout is due, or None."""
        while self._deadlines and self._deadlines[0][1] not in self.state.open_runs:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None


def _put(
    write: Write, now: int, *, origin: e.ValueOrigin = "written", run: OpenRun | None = None
) -> e.ValuePut:
    return e.ValuePut(
        at=now,
        repository=write.repository,
        job=write.job,
        value=write.value,
        digest=write.digest,
        size=write.size,
        version=write.version,
        origin=origin,
        run=None if run is None else run.run,
        task=None if run is None else run.task,
    )


def _change(write: Write, now: int, *, run: OpenRun | None = None, ticket: Ticket | None = None) -> e.Event:
    event: e.Event
    if write.op == "delete":
        event = e.ValueDeleted(
            at=now,
            repository=write.repository,
            job=write.job,
            run=None if run is None else run.run,
            task=None if run is None else run.task,
        )
    else:
        event = _put(write, now, run=run)
    if ticket is None:
        return event
    return msgspec.structs.replace(
        event, actor=ticket.actor, origin=ticket.origin, reason=ticket.reason, request=ticket.request
    )


def _intended(intent: e.StoreWriteIntended) -> Write:
    return Write(
        repository=intent.repository or "",
        job=intent.job or "",
        op=intent.op,
        value=intent.value,
        digest=intent.digest,
        size=intent.size,
    )


def _noticed(fact: Noticed) -> dict[str, Any]:
    return {
        "phase": fact.phase,
        "reason": fact.reason,
        "message": fact.message[:1024],
        "source_at": fact.source_at,
    }


def _reopened(outcome: str) -> bool:
    return outcome in ("cancelled", "handed_over")


def _utc(at: int) -> object:
    import datetime as dt

    return dt.datetime.fromtimestamp(at / SECOND, dt.UTC)


def _one_of(names: Iterable[str]) -> str:
    return "use one of: " + ", ".join(sorted(names)[:20])


__all__ = ["Collecting", "Reactor", "Ticket", "view_id"]
