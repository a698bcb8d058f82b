"""Runs, from what their runners tell to the one batch that ends each.

In come facts. A run's end brings its writes, its `done` entry, `RunEnded`, and what follows (a retry or the
episode's end) in one batch; where a foreign store must take something first, intents are recorded and the run
stays open, *collecting*, until the stores have followed.
"""

from __future__ import annotations

import datetime as dt
import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from datatask.engine.core.changes import change_event, intent_event, put_event
from datatask.engine.core.conflicts import in_conflict, noted
from datatask.engine.core.effects import BATCH_MAX, Effect, ForgetRun, LookAgain, Mirror, StopRun, WriteStore
from datatask.engine.core.observations import Observations
from datatask.engine.core.retry import (
    CONFLICTS_MAX,
    Again,
    Over,
    after_ending,
    by_machine,
    done_value,
    made_progress,
)
from datatask.engine.core.state import State
from datatask.engine.core.tasks import OpenRun
from datatask.schema import events as e
from datatask.schema.definition import RetryDef
from datatask.schema.messages import Adopted, Ended, Fact, Noticed, Reachable, Started, Unreachable, Write
from datatask.schema.units import SECOND
from datatask.schema.values import encode_value

PROGRESSED = (
    "it has been up for as long as counts as progress: the runs that were lost before it count no more"
)


@dataclass(slots=True)
class Collecting:
    """A run that is over at its target while its outputs travel to foreign stores."""

    ending: e.Ending
    writes: list[Write]
    outstanding: set[tuple[str, str]]
    refused: e.ErrorInfo | None = None
    conflict: str = ""


class Runs(Observations):
    """Knows which runs are collecting, and when the running ones are out of time."""

    def __init__(self, state: State, chance: Callable[[], float]) -> None:
        super().__init__(state)
        self.collecting: dict[int, Collecting] = {}
        self._chance = chance
        self._deadlines: list[tuple[int, int]] = []
        self._milestones: list[tuple[int, int]] = []
        self.tells_progress = False
        """Whether a run that makes progress after others were lost is told in the log, for an engine that comes after this one."""

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

    def ran(self, started: Started, ended: Ended, now: int) -> None:
        """Take the start and the end of a run that was over before anything else: one batch tells of both."""
        since = len(self.steps)
        self.fact(started, now)
        self.fact(ended, now)
        self._join(since)

    def _about(self, run: OpenRun, kind: type[e.Event], now: int, **own: Any) -> e.Event:
        return kind(at=now, task=run.task, job=self.state.jobs[run.job], run=run.run, cause=run.run, **own)

    def _late(self, fact: Fact, now: int) -> None:
        detail = {"outcome": fact.ending.outcome} if isinstance(fact, Ended) else {}
        self._emit([e.LateFact(at=now, run=fact.run, fact=type(fact).__name__, detail=detail)])

    def _started(self, run: OpenRun, fact: Started, now: int) -> None:
        job = self.state.jobs[run.job]
        started = e.RunStarted(
            at=now,
            task=run.task,
            job=job,
            run=run.run,
            cause=run.run,
            handle=fact.handle,
            where=fact.where,
            started_at=fact.started_at,
        )
        pids = self.state.tasks[run.task].definition.pids
        if pids is None or "pid" not in fact.handle:
            self._emit([started])
        else:
            entry = {
                "pid": fact.handle["pid"],
                "start_time": dt.datetime.fromtimestamp((fact.started_at or now) / SECOND, dt.UTC),
            }
            write = Write(repository=pids, job=job, value=msgspec.Raw(encode_value(entry)))
            medium = self._medium(write)
            if medium == "foreign":
                self._emit([started])
                self._foreign([write], self._ticket("written", e.ENGINE, "", None), now)
            else:
                mirrored = [Mirror(write)] if medium == "mirror" else []
                self._emit([started, put_event(write, now, run=run)], mirrored)
        self._watch_deadline(run)

    def _watch_deadline(self, run: OpenRun) -> None:
        if run.started_at is None:
            return
        task = self.state.tasks[run.task]
        timeout = task.definition.timeout
        if timeout is not None:
            heapq.heappush(self._deadlines, (run.started_at + timeout, run.run))
        if run.attempt > 1 and self.tells_progress and task.episodes[run.job].lost_in_a_row:
            progress = task.definition.retry.progress
            if progress is not None:
                heapq.heappush(self._milestones, (run.started_at + progress, run.run))

    def _ended(self, run: OpenRun, fact: Ended, now: int) -> None:
        if run.run in self.collecting:
            self._late(fact, now)
            return
        writes = {(write.repository, write.job): write for write in fact.writes}
        stashed = self._stash.pop(run.run, {})
        for key, write in stashed.items():
            if key not in writes and (write.op == "put" or self.state.contains(*key)):
                writes[key] = write
            elif key in writes and writes[key].version != write.version:
                self._disputed.setdefault(run.run, set()).add(key)
        ending, why = fact.ending, self.conflict(run, fact.ending, fact.writes, stashed)
        if why:
            ending, writes = self._without_conflicts(run, ending, writes, why)
        self._close(run, ending, writes, now)

    def _without_conflicts(
        self, run: OpenRun, ending: e.Ending, writes: dict[tuple[str, str], Write], why: str
    ) -> tuple[e.Ending, dict[tuple[str, str], Write]]:
        """Return the ending of a run that was in conflict, and what of its writes stands.

        Where its own end would have counted it is run again, and what has not reached a store is dropped. A run that
        was stopped, lost or refused ends as that, without what it would have written over.
        """
        if ending.outcome in ("succeeded", "failed"):
            ended = in_conflict(ending, why)
            if run.stopping in _UNWANTED:
                ended = msgspec.structs.replace(ended, outcome="cancelled")
            return ended, {key: write for key, write in writes.items() if write.version is not None}
        kept = {
            key: write for key, write in writes.items() if not write.conflict and not self.stale(run, write)
        }
        return noted(ending, why), kept

    def _close(self, run: OpenRun, ending: e.Ending, writes: dict[tuple[str, str], Write], now: int) -> None:
        """Add what the engine itself writes at a run's end, and begin to record it."""
        if ending.outcome == "lost" and run.stopping in _UNWANTED:
            ending = msgspec.structs.replace(ending, outcome="cancelled")  # it was to end, and has
        again = self._verdict(run, ending, now)
        task = self.state.tasks[run.task].definition
        job = self.state.jobs[run.job]
        if isinstance(again, Again):
            own = {(leaf, job) for leaf in self._own_inhibitors(run.task)}
            writes = {key: write for key, write in writes.items() if key not in own or write.op == "delete"}
        elif task.done is not None and run.meta and not _reopened(ending.outcome):
            value = done_value(task.done_shape, ending)
            writes[task.done, job] = Write(repository=task.done, job=job, value=value)
        if task.pids is not None:
            writes[task.pids, job] = Write(repository=task.pids, job=job, op="delete")
        self._collect(run, ending, list(writes.values()), now, again)

    def _own_inhibitors(self, task: str) -> list[str]:
        links = self.state.tasks[task].definition.links
        return [link.expr.leaf for link in links if link.inhibits_start and hasattr(link.expr, "leaf")]

    def _verdict(self, run: OpenRun, ending: e.Ending, now: int) -> Again | Over:
        task = self.state.tasks[run.task]
        stopped = run.stopping in _UNWANTED
        episode, retry = task.episodes[run.job], task.definition.retry
        if run.origin == "forced" and not task.condition.test(self.state.masks[run.job]):
            return Over()  # nothing but force would launch it again
        progress = ending.outcome == "lost" and made_progress(retry, run, self.state.engine, now)
        return after_ending(
            retry,
            episode,
            ending.outcome,
            now,
            self._chance(),
            stopped=stopped,
            progress=progress,
            machine=by_machine(ending),
        )

    def _collect(
        self,
        run: OpenRun,
        ending: e.Ending,
        writes: list[Write],
        now: int,
        verdict: Again | Over | None = None,
    ) -> None:
        """Record an ending with its writes at once, or, where a foreign store must follow, by intents first."""
        foreign = [write for write in writes if write.version is None and self._medium(write) == "foreign"]
        if not foreign:
            self._settle(run, ending, writes, now, verdict)
            return
        intents: list[e.Event] = [
            intent_event(write, now, run=run.run, settles=ending if write is writes[-1] else None)
            for write in writes
        ]
        outstanding = {(write.repository, write.job) for write in foreign}
        self._under_way.update(outstanding)
        self._promised.update(
            ((write.repository, write.job), run.run) for write in writes if self._medium(write) != "foreign"
        )
        self.collecting[run.run] = Collecting(ending, writes, outstanding)
        self._emit(intents, [WriteStore(write, run.run, None) for write in foreign])

    def _settle(
        self,
        run: OpenRun,
        ending: e.Ending,
        writes: Sequence[Write],
        now: int,
        verdict: Again | Over | None = None,
    ) -> None:
        """The one batch that ends a run: its writes, its done entry, `RunEnded`, and what follows."""
        task, job = run.task, self.state.jobs[run.job]
        if self._promised:
            writes = self._redeemed(run, writes)
        disputed = self._disputed.pop(run.run, None) or set()
        late = self._stash.pop(run.run, None)
        if late:
            disputed |= late.keys() & _keys(writes)
            writes = [*writes, *(write for key, write in late.items() if key not in _keys(writes))]
        if verdict is None:
            verdict = self._verdict(run, ending, now)
        again = verdict if isinstance(verdict, Again) else None
        events: list[e.Event] = [change_event(write, now, run=run) for write in writes]
        effects: list[Effect] = [Mirror(write) for write in writes if self._medium(write) == "mirror"]
        if self.state.engine is not None and run.epoch != self.state.engine.epoch:
            # Written under an engine that is gone: whatever happened to it since was told to nobody.
            disputed |= _keys([write for write in writes if write.version])
        if disputed:
            effects += [
                LookAgain(write.repository, write.job)
                for write in writes
                if self._medium(write) == "foreign" and (write.repository, write.job) in disputed
            ]
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
            detail=ending.detail
            if again is None
            else _with_budget(ending.detail, again, self.state.tasks[task].definition.retry),
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
                    cause=run.run,
                    not_before=again.not_before,
                    attempt=again.attempt,
                    budget=again.budget,
                    spent=again.spent,
                )
            )
        elif isinstance(verdict, Over) and verdict.exhausted:
            events.append(
                e.RetriesExhausted(
                    at=now,
                    task=task,
                    job=job,
                    run=run.run,
                    cause=run.run,
                    attempts=verdict.attempts,
                    budget=verdict.exhausted,
                )
            )
        while len(events) > BATCH_MAX:
            self._emit(events[:BATCH_MAX])
            del events[:BATCH_MAX]
        self._emit(events, [*effects, ForgetRun(task, run.run)])

    def _redeemed(self, run: OpenRun, writes: Sequence[Write]) -> list[Write]:
        """Return the writes without those of promised keys that others have overwritten unseen in the meantime.

        They came later and read nothing: it is as if this run had written before them, and they over it.
        """
        mine = [key for key, number in self._promised.items() if number == run.run]
        kept = [
            write
            for write in writes
            if (write.repository, write.job) not in mine or not self.stale(run, write)
        ]
        for key in mine:
            del self._promised[key]
        return kept

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
        """A foreign store has followed an intent; or, with `error`, never will, with `conflict` because of another's write."""
        key = (write.repository, write.job)
        if run is not None:
            if conflict:
                self.collecting[run].conflict = self.collecting[run].conflict or error
            self._run_written(run, key, version, error, now)
        elif ticket is not None:
            self._ticket_written(ticket, write, version, error, now)

    def _run_written(
        self, run_id: int, key: tuple[str, str], version: str | None, error: str, now: int
    ) -> None:
        collecting = self.collecting[run_id]
        collecting.outstanding.discard(key)
        self._arrived(key, version)
        index = next(i for i, write in enumerate(collecting.writes) if (write.repository, write.job) == key)
        if error:
            del collecting.writes[index]
            message = f"cannot store {key[0]} {key[1]}: {error}"
            collecting.refused = e.ErrorInfo(type="StoreError", message=message)
        else:
            collecting.writes[index] = msgspec.structs.replace(
                collecting.writes[index], version=version or ""
            )
        if not collecting.outstanding:
            del self.collecting[run_id]
            self._collected(self.state.open_runs[run_id], collecting, now)

    def _collected(self, run: OpenRun, collecting: Collecting, now: int) -> None:
        """All stores have followed, or refused: a success whose outputs were refused is a failure after all."""
        ending, writes = collecting.ending, collecting.writes
        if collecting.conflict and ending.outcome in ("succeeded", "failed"):
            self._undone(run, in_conflict(ending, collecting.conflict), writes, now)
            return
        if collecting.refused is None or ending.outcome != "succeeded":
            self._settle(run, ending, writes, now)
            return
        self._undone(
            run, msgspec.structs.replace(ending, outcome="failed", error=collecting.refused), writes, now
        )

    def _undone(self, run: OpenRun, ending: e.Ending, writes: list[Write], now: int) -> None:
        """End a run in another way than its outputs say that are in their stores already."""
        if ending.outcome == "conflicted":
            writes = [write for write in writes if write.version is not None]
            for key in [key for key, number in self._promised.items() if number == run.run]:
                del self._promised[key]
        task = self.state.tasks[run.task].definition
        inhibitors = [*self._own_inhibitors(run.task), *([task.done] if task.done else [])]
        own = {(leaf, self.state.jobs[run.job]) for leaf in inhibitors}
        kept = {(write.repository, write.job): write for write in writes}
        for key in own & kept.keys():  # it says success: taken back, or overwritten by `_close`
            kept[key] = Write(repository=key[0], job=key[1], op="delete")
        self._close(run, ending, kept, now)

    def stop(self, run: OpenRun, reason: e.StopReason, now: int, **who: object) -> tuple[e.Event, Effect]:
        """Return the event and the effect that stop an open run."""
        grace = self.state.tasks[run.task].definition.grace
        stop = self._about(run, e.StopDecided, now, reason=reason, grace=grace)
        return msgspec.structs.replace(stop, **who), StopRun(run.task, run.run, reason, grace)

    def stop_again(self, runs: Iterable[int]) -> None:
        """Repeat the stops of these runs: an engine that decided them may not have lived to send them."""
        for number in runs:
            run = self.state.open_runs.get(number)
            if run is not None and run.stopping is not None and number not in self.collecting:
                grace = self.state.tasks[run.task].definition.grace
                self._attach([StopRun(run.task, number, run.stopping, grace)])

    def stop_overdue(self, now: int) -> None:
        """Stop runs that have outlived their task's timeout."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, number = heapq.heappop(self._deadlines)
            run = self.state.open_runs.get(number)
            if run is not None and run.stopping is None and number not in self.collecting:
                event, effect = self.stop(run, "timeout", now)
                self._emit([event], [effect])
        while self._milestones and self._milestones[0][0] <= now:
            _, number = heapq.heappop(self._milestones)
            run = self.state.open_runs.get(number)
            if run is not None and number not in self.collecting:
                self._emit([self._about(run, e.RunObserved, now, phase="progress", message=PROGRESSED)])

    def wake_at(self) -> int | None:
        """Return when the next timeout is due, or a run has come so far that those lost before count no more; or None."""
        due = []
        for times in (self._deadlines, self._milestones):
            while times and times[0][1] not in self.state.open_runs:
                heapq.heappop(times)
            due += times[:1]
        return min(due)[0] if due else None


def _with_budget(detail: dict[str, str] | None, again: Again, retry: RetryDef) -> dict[str, str] | None:
    """Add what a run is run again on, where that is not the user's attempts."""
    if again.budget == "user":
        return detail
    if again.budget == "machine":
        return {**(detail or {}), "again": "machine, which uses up no budget"}
    most = retry.infrastructure_attempts if again.budget == "infrastructure" else CONFLICTS_MAX
    return {**(detail or {}), "again": f"{again.budget} {again.spent} of {most}"}


_UNWANTED = ("cancelled", "deleted", "shutdown")
"""Who was stopped for one of these is not run again."""


def _keys(writes: Sequence[Write]) -> set[tuple[str, str]]:
    return {(write.repository, write.job) for write in writes}


def _noticed(fact: Noticed) -> dict[str, Any]:
    return {
        "phase": fact.phase,
        "reason": fact.reason,
        "message": fact.message[:1024],
        "source_at": fact.source_at,
    }


def _reopened(outcome: str) -> bool:
    return outcome in ("cancelled", "handed_over")
