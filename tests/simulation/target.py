"""Where runs live: processes that outlive the engine, and functions that die with it.

In: starts and stops by identity, as a runner passes them on. Out: facts, late, doubled or told again after they were
lost, each as the plan says. What really happened is kept here for the final account.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from datatask.engine.ports import Sink
from datatask.schema.events import Ending, ErrorInfo, Outcome, StopReason
from datatask.schema.messages import Adopted, Ended, Fact, Reachable, RunSpec, Started, Unreachable, Write
from tests.simulation.plans import Plan, Stage, chance

SECOND = 10**9
HANGS_SECONDS = 900.0
DOCUMENT = msgspec.Raw(b'{"n":1}')


@dataclass
class Process:
    """One run at its target: when it will end by itself, and how."""

    spec: RunSpec
    until: float
    outcome: Outcome
    hangs: bool = False
    over: bool = False
    version: str | None = None


class Target:
    """All that runs anywhere, whatever becomes of the engine."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.processes: dict[str, Process] = {}
        self.barred: set[str] = set()
        self.effects: Counter[str] = Counter()
        self.alive: dict[tuple[str, str], str] = {}
        self.wrong: list[str] = []

    def begin(self, spec: RunSpec, stage: Stage, now: float) -> Process | None:
        """Start a run unless it was started or barred before; its effect is counted."""
        if spec.identity in self.processes:
            return self.processes[spec.identity]
        if spec.identity in self.barred:
            return None
        pair = (spec.task, spec.job)
        if pair in self.alive:
            self.wrong.append(f"{spec.task} {spec.job} runs twice: {self.alive[pair]} and {spec.identity}")
        self.alive[pair] = spec.identity
        self.effects[spec.identity] += 1
        seed = self.plan.seed
        about = (spec.task, spec.job, spec.episode, spec.attempt)
        failed = chance(seed, "fails", *about) < stage.fails
        hangs = stage.timeout is not None and chance(seed, "hangs", *about) < 0.2
        lasts = HANGS_SECONDS if hangs else chance(seed, "lasts", *about) * 2.5
        process = Process(spec, now + lasts, "failed" if failed else "succeeded", hangs)
        self.processes[spec.identity] = process
        return process

    def end(self, process: Process, outcome: Outcome | None = None) -> None:
        """It is over: its job may be run again."""
        if not process.over:
            process.over = True
            if outcome is None and process.hangs:
                self.wrong.append(f"{process.spec.identity} outlived its timeout")
            process.outcome = outcome or process.outcome
            self.alive.pop((process.spec.task, process.spec.job), None)

    def engine_died(self, kinds: dict[str, str]) -> None:
        """Functions die with their engine."""
        for process in self.processes.values():
            if kinds[process.spec.task] == "function" and not process.over:
                self.end(process, "lost")


class SimRunner:
    """One task's runner in one engine's life; `dead` once that engine is."""

    def __init__(
        self,
        target: Target,
        stage: Stage,
        output: str,
        durable: Callable[[], int],
        write: Callable[[str, str], str | None],
    ) -> None:
        self.target, self.stage, self.output = target, stage, output
        self.durable, self.write = durable, write
        self.plan = target.plan
        self.dead = False
        self._specs: dict[int, RunSpec] = {}
        self._watched: set[int] = set()
        self._stops: dict[int, StopReason] = {}

    async def open(self, sink: Sink) -> None:
        """Take the sink."""
        self._sink = sink
        self._loop = asyncio.get_running_loop()

    def start(self, spec: RunSpec) -> None:
        """Start after a while; an engine that dies before that has not started it."""
        if spec.run > self.durable():
            self.target.wrong.append(f"run {spec.run} starts before its decision is durable")
        if spec.run in self._specs:
            return
        self._specs[spec.run] = spec
        self._later(self._chance("starting", spec) * 0.2, self._begin, spec)

    def stop(self, run: int, reason: StopReason, grace: int) -> None:
        """End the run after a part of its grace."""
        spec = self._specs.get(run)
        if spec is not None:
            self._stops.setdefault(run, reason)
            self._later(self._chance("stopping", spec) * grace / SECOND, self._kill, spec)

    async def recover(self, specs: Iterable[RunSpec]) -> None:
        """Look for each run: adopt it, tell its end, or bar it and call it lost."""
        for spec in specs:
            self._specs[spec.run] = spec
            if self._chance("silent", spec) < self.plan.faults.silent:
                self._tell(Unreachable(spec.run, message="no answer"))
                self._later(1 + self._chance("silence", spec) * 5, self._found, spec, True)
                continue
            await asyncio.sleep(self._chance("looking", spec) * 0.1)
            self._found(spec)

    def forget(self, run: int) -> None:
        """Its end is durable."""
        spec = self._specs.pop(run, None)
        if spec is not None and spec.run > self.durable():
            self.target.wrong.append(f"run {run} is forgotten before it is durable")

    async def close(self, *, abandon: bool = False) -> None:
        """Functions are stopped; processes go on."""
        if self.stage.kind == "function":
            for spec in list(self._specs.values()):
                process = self.target.processes.get(spec.identity)
                if process is not None:
                    self.target.end(process, "cancelled")
                self.target.barred.add(spec.identity)
                self._sink(Ended(spec.run, Ending(outcome="cancelled")))
        else:
            self.dead = True

    # --- at the target ------------------------------------------------------------------------------

    def _begin(self, spec: RunSpec) -> None:
        process = self.target.begin(spec, self.stage, self._loop.time())
        if process is None:
            return
        self._tell(Started(spec.run, {"id": spec.identity}))
        self._watch(process)

    def _found(self, spec: RunSpec, again: bool = False) -> None:
        process = self.target.processes.get(spec.identity)
        if process is None:
            self.target.barred.add(spec.identity)
            self._tell_end(spec, "lost")
            return
        if again:
            self._tell(Reachable(spec.run))
        if not process.over and process.until > self._loop.time():
            self._tell(Adopted(spec.run, {"id": spec.identity}))
        self._watch(process)

    def _watch(self, process: Process) -> None:
        run = process.spec.run
        if run not in self._watched:
            self._watched.add(run)
            self._later(max(0.0, process.until - self._loop.time()), self._over, process)

    def _over(self, process: Process) -> None:
        if not process.over:
            self.target.end(process)
            if process.outcome == "succeeded":
                process.version = self.write(self.output, process.spec.job)
        self._tell_end(process.spec, process.outcome, process.version)

    def _kill(self, spec: RunSpec) -> None:
        process = self.target.processes.get(spec.identity)
        if process is None:
            self.target.barred.add(spec.identity)
        elif process.over:
            return
        else:
            self.target.end(process, "timed_out" if self._stops[spec.run] == "timeout" else "cancelled")
        self._tell_end(spec, "timed_out" if self._stops[spec.run] == "timeout" else "cancelled")

    # --- to the engine ------------------------------------------------------------------------------

    def _tell_end(self, spec: RunSpec, outcome: Outcome, version: str | None = None) -> None:
        writes: tuple[Write, ...] = ()
        if outcome == "succeeded":
            writes = (Write(repository=self.output, job=spec.job, value=DOCUMENT, version=version),)
        error = ErrorInfo(type="Told", message="it failed") if outcome == "failed" else None
        self._tell(Ended(spec.run, Ending(outcome=outcome, error=error), writes))

    def _tell(self, fact: Fact) -> None:
        faults, about = self.plan.faults, (type(fact).__name__, fact.run)
        wait = self._draw("delay", about) * 0.05
        if self._draw("late", about) < faults.late:
            wait += self._draw("how late", about) * 4
        if self._draw("lost", about) < faults.lost:
            wait += 5  # lost on the way; a later look at the target tells it
        self._later(wait, self._deliver, fact)
        if self._draw("doubled", about) < faults.doubled:
            self._later(wait + self._draw("again", about) * 3, self._deliver, fact)

    def _deliver(self, fact: Fact) -> None:
        if not self.dead:
            self._sink(fact)

    def _later(self, seconds: float, call: Callable[..., None], *arguments: object) -> None:
        self._loop.call_later(seconds, self._unless_dead, call, arguments)

    def _unless_dead(self, call: Callable[..., None], arguments: tuple[object, ...]) -> None:
        if not self.dead:
            call(*arguments)

    def _chance(self, what: str, spec: RunSpec) -> float:
        return chance(self.plan.seed, what, spec.task, spec.job, spec.identity)

    def _draw(self, what: str, about: tuple[object, ...]) -> float:
        return chance(self.plan.seed, what, *about)
