"""Simulation with every event: the engine's reactor under a virtual clock, its steps handed on or written as a log.

In: a model, a world, and a `keep` for steps or a place where no log is. Out: records of all runs, the state, and the
history of an ordinary log: arrivals, rounds, launches, starts, ends with their writes, retries and stops are made by
`engine.core.reactor`, as in `run`. `quick` has the same positions, decisions and times. A written log's uuid and salts follow from
the model: the same seed writes the same events and the same chain.
"""

from __future__ import annotations

import asyncio
import heapq
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datatask.adapters.log.locate import locate
from datatask.adapters.log.sqlite import SqliteLog
from datatask.adapters.log.tail import seeded_salts
from datatask.adapters.sim.model import (
    CALLED,
    CANCELLED,
    ENDED,
    NEVER,
    STARTED,
    SUCCESSES,
    TIMED_OUT,
    Model,
    Records,
    SimRun,
    World,
    output,
    parent,
)
from datatask.engine.core.checkpoints import load
from datatask.engine.core.decide import BOUND
from datatask.engine.core.effects import Evaluation, LogStep, StartRun, StopRun, WriteStore
from datatask.engine.core.fold import apply_all
from datatask.engine.core.reactor import Reactor
from datatask.engine.core.state import State
from datatask.engine.replay.batches import STORED
from datatask.schema import events as e
from datatask.schema.errors import AlreadyThereError, InvalidValueError
from datatask.schema.messages import Adopted, Ended, RunSpec, Started, Write
from datatask.schema.version import VERSION

HOST = "simulated"


def opened(model: Model) -> tuple[State, tuple[Reactor, list[LogStep]]]:
    """Return the state of a log that an engine has just opened, its reactor, and the steps so far."""
    if model.present is not None:
        return _resumed(model, model.present)
    state, begin = State(), model.begin
    created = e.LogCreated(at=begin, log=model.uuid, pipeline=model.definition.name)
    apply_all(state, 1, [created])
    reactor = Reactor(state, model.chance)
    reactor.open(
        e.EngineOpened(at=begin, version=VERSION, host=HOST, pid=1, boot=HOST, epoch=1), model.definition
    )
    for leaf in state.leaves.values():
        if leaf.definition.medium == "foreign":
            reactor.stores.listed(leaf.id, [], begin, state.position, begin)
    return state, (reactor, [LogStep(1, (created,), ()), *reactor.take()])


def _resumed(model: Model, present: bytes) -> tuple[State, tuple[Reactor, list[LogStep]]]:
    """Return the present state of a log, and a reactor that goes on from it."""
    state = load(present)
    reactor, at = Reactor(state, model.chance), max(model.begin, state.at)
    reactor.go_on(at, model.definition)
    reactor.redo(at)
    return state, (reactor, [LogStep(state.position + 1, (), ()), *reactor.take()])


EVALUATIONS_MAX = 4096


class Logged:
    """One simulation; `records` and `state` are its result, and each step goes to `keep`."""

    def __init__(self, model: Model, world: World, keep: Callable[[LogStep], None]) -> None:
        self.model, self.world = model, world
        self.state, (self.reactor, steps) = opened(model)
        self.records = Records()
        self._record = self.records.adder()
        self.now = max(self.state.at, model.begin)
        self.heap: list[tuple[int, int, int, object]] = []
        self.open: dict[int, SimRun] = {}
        self.finished = False
        self._keep = keep
        self._pushed = 0
        self._retries: dict[tuple[str, str], int] = {}
        self._media = {leaf.id: leaf.definition.medium for leaf in self.state.leaves.values()}
        self._begun = steps[0].first
        self._since, self._times = array("q", [self._begun]), array("q", [self.now])
        for step in steps:
            if step.events:
                keep(step)
        world.open(self, model.profiles)
        for step in steps:
            self._follow(step)
        if model.present is not None:
            self._resume()

    @property
    def position(self) -> int:
        """The last position so far."""
        return self.state.position

    # --- stepping ---------------------------------------------------------------------------------

    def push(self, at: int, what: int, about: object) -> None:
        """Let something come at a time: a run begins or ends, or the world is called."""
        self._pushed += 1
        heapq.heappush(self.heap, (at, self._pushed, what, about))

    def run(self) -> None:
        """Step until nothing is due any more, or the model's `until` or `runs_max` is reached."""
        for _ in self.instants():
            pass

    def close(self) -> None:
        """Let the engine close its log."""
        self.reactor.close(self.now)
        self._flush()

    def instants(self) -> Iterator[None]:
        """Step from one instant to the next that is due, as `run`."""
        heap, model, reactor = self.heap, self.model, self.reactor
        arrival = next(model.arrivals, None)
        wake = NEVER if model.present is None else self.now  # what waits already is launched at once
        while True:
            due = min(heap[0][0] if heap else NEVER, wake, arrival[0] if arrival else NEVER)
            if due >= model.until or len(self.records) >= model.runs_max:
                self.finished = due >= NEVER
                self.records.flush()
                return
            self._move_to(due)
            while arrival is not None and arrival[0] <= self.now:
                self._arrive(arrival[1], arrival[2])
                arrival = next(model.arrivals, None)
            while heap and heap[0][0] <= self.now:
                _, _, what, about = heapq.heappop(heap)
                if what == ENDED:
                    self._ended(about)  # type: ignore[arg-type]
                elif what == STARTED:
                    self.begin(about)  # type: ignore[arg-type]
                elif what == CALLED:
                    about()  # type: ignore[operator]
                self._flush()
            reactor.runs.stop_overdue(self.now)
            self._flush()
            wake = self._decide()
            yield

    def _move_to(self, due: int) -> None:
        if due > self.now:
            self.now = due
        if self._since[-1] <= self.state.position:
            self._since.append(self.state.position + 1)
            self._times.append(self.now)
        else:
            self._times[-1] = self.now

    def _decide(self) -> int:
        """Evaluate and decide until a round is not full; return when to look again though nothing happens."""
        reactor = self.reactor
        while True:
            while found := reactor.evaluations.due(self.now, EVALUATIONS_MAX):
                reactor.evaluations.evaluated(
                    [(each, self._evaluate(each), None) for each in found], self.now
                )
                self._flush()
            launched, wake = reactor.decide(self.now, "run", BOUND)
            self._flush()
            if launched < BOUND:
                overdue = reactor.runs.deadlines.next()
                return min(at for at in (wake, overdue, NEVER) if at is not None)

    def _flush(self) -> None:
        """Hand on what the reactor has led to, and do what follows from it, until nothing does."""
        while steps := self.reactor.take():
            for step in steps:
                if step.events:
                    self._keep(step)
                    for event in step.events:
                        if type(event) is e.RetryScheduled:
                            self._retries[event.task or "", event.job or ""] = event.not_before
                self._follow(step)

    def _follow(self, step: LogStep) -> None:
        """Do what a step asks of the world."""
        for effect in step.effects:
            if isinstance(effect, StartRun):
                self._start(effect.spec)
            elif isinstance(effect, StopRun):
                run = self.open[effect.run]
                run.stopping = True
                self.world.stop(run, TIMED_OUT if effect.reason == "timeout" else CANCELLED)
            elif isinstance(effect, WriteStore):
                version = None if effect.write.op == "delete" else STORED
                self.reactor.written(effect.write, effect.run, effect.ticket, self.now, version=version)

    def _resume(self) -> None:
        """Go on with the runs and retries that there are."""
        for task in self.state.tasks.values():
            for job, episode in task.episodes.items():
                if episode.not_before is not None:
                    self._retries[task.name, self.state.jobs[job]] = episode.not_before
        for specs in self.reactor.runs.recoverable().values():
            for spec in specs:
                run = self._run(spec)
                run.decided_at = self.state.open_runs[spec.run].decided_at
                started_at = self.state.open_runs[spec.run].started_at
                if started_at is None:
                    self.world.start(run)
                    continue
                run.started_at = started_at
                self.reactor.runs.fact(Adopted(spec.run, dict(spec.handle or {})), self.now)
                self.world.resume(run)
        self.reactor.runs.stop_again(list(self.open))
        self._flush()

    # --- what comes -------------------------------------------------------------------------------

    def _arrive(self, first: int, count: int) -> None:
        model, reactor = self.model, self.reactor
        inside: list[Write] = []
        for job in range(first, first + count):
            name = model.names[job]
            entries = model.entries if model.entries_of is None else model.entries_of(name)
            writes = [output(entry, name, self._media[entry]) for entry in entries]
            inside += [write for write in writes if write.version is None]
            outside = [write for write in writes if write.version is not None]
            if outside:
                self._inject(inside)
                for write in outside:
                    reactor.stores.observed(write.repository, name, write, self.now)
                inside = []
        self._inject(inside)
        self._flush()

    def _inject(self, writes: list[Write]) -> None:
        if writes:
            self.reactor.tickets.change(writes, self.now, origin="injected")

    def _start(self, spec: RunSpec) -> None:
        self.world.start(self._run(spec))

    def _run(self, spec: RunSpec) -> SimRun:
        """Return the run that a decision made."""
        task = self.state.tasks[spec.task]
        job = self.state.job_index[spec.job]
        episode = task.episodes[job]
        if spec.attempt > 1:
            since = self._retries.pop((spec.task, spec.job), self.now)
        elif episode.position < self._begun:
            since = self.state.time_of(episode.position)
        else:
            since = self._times[bisect_right(self._since, episode.position) - 1]
        run = SimRun(
            spec.run,
            task.index,
            job,
            spec.attempt,
            episode.infrastructure,
            since,
            self.now,
            episode.position,
            forgiven=episode.forgiven,
        )
        self.open[run.run] = run
        return run

    def name(self, job: int) -> str:
        """Return a job's name."""
        return self.state.jobs[job]

    def begin(self, run: SimRun) -> None:
        """A run has begun at its target."""
        if not run.over and not run.started_at:
            run.started_at = self.now
            self.reactor.runs.fact(Started(run.run, {}, run.where, self.now), self.now)

    def _ended(self, run: SimRun) -> None:
        """A run is over at its target."""
        if run.over:
            return
        run.over = True
        del self.open[run.run]
        profile = self.model.profiles[run.task]
        fate, name = profile.fates[run.fate], self.state.jobs[run.job]
        writes: list[Write] = []
        if fate.outcome in SUCCESSES:
            writes = [output(leaf, name, self._media[leaf]) for leaf in profile.fills[run.fill]]
            for leaf, count in profile.spawns:
                writes += [output(leaf, f"{name}-{index}", self._media[leaf]) for index in range(count())]
        self.reactor.runs.fact(
            Ended(run.run, fate.ending(run.started_at or None, self.now, run.where), tuple(writes)), self.now
        )
        self._record(run, self.now)
        self.world.ended(run)

    def _evaluate(self, what: Evaluation) -> object:
        """Return the answer of user code: the scenario's or recorded one, else true, priority 0, and the job itself."""
        model, key = self.model, what.key
        if key.what == "priority":
            priority = model.profiles[self.state.tasks[key.owner].index].priority
            return 0.0 if priority is None else priority(what.job)
        if key.what == "filter":
            answers = model.filters.get(key.owner)
            return True if answers is None else answers(what.job)
        if key.what == "translation":
            target = model.translations.get(key.owner)
            return parent(what.job) if target is None else target(what.job)
        return None


PENDING_MAX = 20_000
"""With more events under way to the disk than this, the simulation waits for it."""


def free_place(place: str | Path) -> Path:
    """Return the path of a log that is to be written; `CallerError` where something is already."""
    located = locate(place)
    if located.path is None:
        raise InvalidValueError("a simulated log must be a file", where=located.url, remedy="name a file")
    if located.path.exists():
        raise AlreadyThereError(
            "there is a file already, and a simulated history is never added to one",
            where=str(located.path),
            remedy="name another file, or remove it",
        )
    return located.path


def written(place: Path, model: Model, world: World) -> Logged:
    """Simulate, write everything, and return the simulator."""
    with ThreadPoolExecutor(1) as pool:  # a notebook has an event loop of its own
        return pool.submit(lambda: asyncio.run(_written(place, model, world))).result()


async def _written(place: Path, model: Model, world: World) -> Logged:
    log = await SqliteLog.open(
        place,
        pipeline=model.definition.name,
        clock_now=model.begin,
        version=VERSION,
        host=HOST,
        pid=1,
        durability="process",
        salts=seeded_salts(int(model.uuid, 16)),
        uuid=model.uuid,
    )
    try:
        steps: list[LogStep] = []
        simulator = Logged(model, world, steps.append)
        del steps[0]  # the log has its first event already
        for _ in simulator.instants():
            await _append(log, steps)
        simulator.close()
        await _append(log, steps)
    finally:
        await log.close()
    return simulator


async def _append(log: SqliteLog, steps: list[LogStep]) -> None:
    """Append batches; where many have gathered, wait for the disk."""
    for step in steps[:-1]:
        log.enqueue(step.events)
    if steps and log.pending > PENDING_MAX:
        await log.append(steps[-1].events)
    elif steps:
        log.enqueue(steps[-1].events)
    steps.clear()
