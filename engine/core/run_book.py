"""The open runs: facts of their runners as events, their stops and deadlines, and runs left open by an earlier engine.

In come facts, requests to stop, and the time; out go events and `StopRun`s. The end of a run goes on in `run_ends`.
"""

from __future__ import annotations

import datetime as dt
import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from datatask.engine.core.effects import (
    Effect,
    Mirror,
    Outbox,
    StopRun,
    put_event,
)
from datatask.engine.core.run_ends import RunEnds
from datatask.engine.core.state import State
from datatask.engine.core.store_sync import StoreSync
from datatask.engine.core.tasks import OpenRun
from datatask.engine.core.tickets import Tickets
from datatask.schema import events as e
from datatask.schema.messages import (
    Adopted,
    Ended,
    Fact,
    Noticed,
    Reachable,
    Resized,
    RunSpec,
    Started,
    Unreachable,
    Write,
)
from datatask.schema.units import SECOND
from datatask.schema.values import encode_value

PROGRESSED = (
    "it has been up for as long as counts as progress: the runs that were lost before it count no more"
)


class RunBook:
    """The open runs, their time limits (`deadlines`) and their ends (`ends`)."""

    def __init__(
        self, outbox: Outbox, stores: StoreSync, tickets: Tickets, chance: Callable[[], float]
    ) -> None:
        self._outbox = outbox
        self._state = outbox.state
        self._tickets = tickets
        self.ends = RunEnds(outbox, stores, chance)
        self.deadlines = Deadlines(outbox.state)
        self.log = ""
        """The address of the log, for runs that read it."""

    def fact(self, fact: Fact, now: int) -> None:
        """Process a fact from a runner."""
        run = self._state.open_runs.get(fact.run)
        if run is None:
            if not isinstance(fact, Noticed | Resized):
                self._late(fact, now)
            return
        match fact:
            case Ended():
                if run.run in self.ends.collecting:
                    self._late(fact, now)
                else:
                    self.ends.ended(run, fact, now)
            case Started():
                if run.started_at is None:
                    self._started(run, fact, now)
            case Adopted():
                self._outbox.emit([self._about(run, e.RunAdopted, now, handle=fact.handle, where=fact.where)])
                self.deadlines.watch(run)
            case Unreachable() if not run.unreachable:
                self._outbox.emit(
                    [self._about(run, e.RunUnreachable, now, where=fact.where, message=fact.message[:1024])]
                )
            case Reachable() if run.unreachable:
                self._outbox.emit([self._about(run, e.RunReachable, now, where=fact.where)])
            case Resized() if run.resources != fact.resources:
                self._outbox.emit([self._about(run, e.RunResized, now, resources=fact.resources)])
            case Noticed():
                self._outbox.emit([self._about(run, e.RunObserved, now, **_noticed(fact))])

    def ran(self, started: Started, ended: Ended, now: int) -> None:
        """Process the start and the end of a run in one batch, where nothing came between."""
        since = len(self._outbox.steps)
        self.fact(started, now)
        self.fact(ended, now)
        self._outbox.join(since)

    def _about(self, run: OpenRun, kind: type[e.Event], now: int, **own: Any) -> e.Event:
        return kind(at=now, task=run.task, job=self._state.jobs[run.job], run=run.run, cause=run.run, **own)

    def _late(self, fact: Fact, now: int) -> None:
        detail = {"outcome": fact.ending.outcome} if isinstance(fact, Ended) else {}
        self._outbox.emit([e.LateFact(at=now, run=fact.run, fact=type(fact).__name__, detail=detail)])

    def _started(self, run: OpenRun, fact: Started, now: int) -> None:
        job = self._state.jobs[run.job]
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
        pids = self._state.tasks[run.task].definition.pids
        if pids is None or "pid" not in fact.handle:
            self._outbox.emit([started])
        else:
            entry = {
                "pid": fact.handle["pid"],
                "start_time": dt.datetime.fromtimestamp((fact.started_at or now) / SECOND, dt.UTC),
            }
            write = Write(repository=pids, job=job, value=msgspec.Raw(encode_value(entry)))
            medium = self._state.medium(write.repository)
            if medium == "foreign":
                self._outbox.emit([started])
                self._tickets.send([write], self._tickets.open(), now)
            else:
                mirrored = [Mirror(write)] if medium == "mirror" else []
                self._outbox.emit([started, put_event(write, now, run=run)], mirrored)
        self.deadlines.watch(run)

    # --- stopping ----------------------------------------------------------------------------------

    def stop(self, run: OpenRun, reason: e.StopReason, now: int, **who: object) -> tuple[e.Event, Effect]:
        """Return the event and the effect that stop an open run."""
        grace = self._state.tasks[run.task].definition.grace
        stop = self._about(run, e.StopDecided, now, reason=reason, grace=grace)
        return msgspec.structs.replace(stop, **who), StopRun(run.task, run.run, reason, grace)

    def stop_again(self, runs: Iterable[int]) -> None:
        """Repeat the stops of these runs: the engine that decided them may have died before sending them."""
        for number in runs:
            run = self._state.open_runs.get(number)
            if run is not None and run.stopping is not None and number not in self.ends.collecting:
                grace = self._state.tasks[run.task].definition.grace
                self._outbox.attach([StopRun(run.task, number, run.stopping, grace)])

    def stop_overdue(self, now: int) -> None:
        """Stop runs beyond their task's timeout, and log progress that is due."""
        for run in self.deadlines.overdue(now):
            if run.stopping is None and run.run not in self.ends.collecting:
                event, effect = self.stop(run, "timeout", now)
                self._outbox.emit([event], [effect])
        for run in self.deadlines.progressed(now):
            if run.run not in self.ends.collecting:
                self._outbox.emit(
                    [self._about(run, e.RunObserved, now, phase="progress", message=PROGRESSED)]
                )

    # --- runs of an earlier engine -----------------------------------------------------------------

    def spec(self, run: OpenRun) -> RunSpec:
        """Return the run's specification for its runner."""
        identity = f"{self._state.log}.{run.epoch}.{run.run}"
        job = self._state.jobs[run.job]
        definition = self._state.tasks[run.task].definition
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
            definition.conflicts,
            definition.logs,
            run.identities,
            self._variables(run),
            self._state.tasks[run.task].episodes[run.job].spent,
        )

    def _variables(self, run: OpenRun) -> dict[str, str]:
        """Return the environment variables with a run's identities."""
        if not run.identities or run.quota is None:
            return {}
        names = self._state.quotas[run.quota].definition.variables
        return {names[name]: ",".join(own) for name, own in run.identities.items() if name in names}

    def recoverable(self) -> dict[str, list[RunSpec]]:
        """Return the open runs of earlier engines by task, less those whose end can be redone from the log."""
        specs: dict[str, list[RunSpec]] = {}
        for run in self._state.open_runs.values():
            if not self.ends.redoable(run):
                specs.setdefault(run.task, []).append(self.spec(run))
        return specs


def _noticed(fact: Noticed) -> dict[str, Any]:
    return {
        "phase": fact.phase,
        "reason": fact.reason,
        "message": fact.message[:1024],
        "source_at": fact.source_at,
    }


class Deadlines:
    """Two queues by time: timeouts of tasks, and the progress after which a run forgives the lost ones before it."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._timeouts: list[tuple[int, int]] = []
        self._milestones: list[tuple[int, int]] = []
        self.tells_progress = False
        """Whether a run's progress after lost ones is logged, for the engine that comes after this one."""

    def watch(self, run: OpenRun) -> None:
        """Queue the timeout and the progress time of a started run."""
        if run.started_at is None:
            return
        task = self._state.tasks[run.task]
        timeout = task.definition.timeout
        if timeout is not None:
            heapq.heappush(self._timeouts, (run.started_at + timeout, run.run))
        if run.attempt > 1 and self.tells_progress and task.episodes[run.job].lost_in_a_row:
            progress = task.definition.retry.progress
            if progress is not None:
                heapq.heappush(self._milestones, (run.started_at + progress, run.run))

    def overdue(self, now: int) -> Iterator[OpenRun]:
        """Yield the open runs beyond their task's timeout, each once."""
        return self._due(self._timeouts, now)

    def progressed(self, now: int) -> Iterator[OpenRun]:
        """Yield the open runs that have made progress since, each once."""
        return self._due(self._milestones, now)

    def _due(self, times: list[tuple[int, int]], now: int) -> Iterator[OpenRun]:
        while times and times[0][0] <= now:
            run = self._state.open_runs.get(heapq.heappop(times)[1])
            if run is not None:
                yield run

    def next(self) -> int | None:
        """Return the time of the next entry, or None."""
        due = []
        for times in (self._timeouts, self._milestones):
            while times and times[0][1] not in self._state.open_runs:
                heapq.heappop(times)
            due += times[:1]
        return min(due)[0] if due else None
