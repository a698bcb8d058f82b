"""A life of edits, in memory: inputs, functions, parameters, templates, outputs and stages change, and results are made again.

In: a seed. Out: what is in the repositories when all is quiet, and what a run from nothing gives. The reactor, the look for
stale results and what asks for them again are the engine's own; log, functions and moments are drawn. A run reads its inputs
at one moment and ends at another, with edits between; engines close, die with open runs, and open with another definition.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from datatask.adapters.history.stale import Checks, find_stale
from datatask.adapters.log.reader import LogReader
from datatask.adapters.wiring.reruns import Reruns
from datatask.engine.core.effects import Finished, StartRun
from datatask.engine.core.fold import apply_all
from datatask.engine.core.reactor import Reactor
from datatask.engine.core.staleness import Suspect
from datatask.engine.core.state import State
from datatask.engine.ports import EVERYTHING, Filters
from datatask.engine.runtime import requests
from datatask.schema import events as e
from datatask.schema import messages as r
from datatask.schema.definition import All, In, LinkDef, Not, PipelineDef, RepositoryDef, RetryDef, TaskDef
from datatask.schema.messages import Ended, RunSpec, Started, Write

SOURCES = ("s0", "s1")
VALUES = 5
"""So few values that other inputs often give the same result."""


class Stage:
    """One task: what it reads, and what its function, parameter and template are now."""

    def __init__(self, number: int, inputs: Sequence[str], takes_parameter: bool) -> None:
        self.name, self.output, self.inputs = f"t{number}", f"o{number}", tuple(inputs)
        self.takes_parameter = takes_parameter
        self.version, self.template = 0, 0

    def result(self, values: Sequence[int], parameter: int) -> int:
        """Return what the function makes of its inputs."""
        found = sum((index + 1) * value for index, value in enumerate(values)) * (self.version + 1)
        return (found + self.template + (parameter if self.takes_parameter else 0)) % VALUES

    def definition(self, parameter: int) -> TaskDef:
        code = {"function f": str(self.version), "template": str(self.template)}
        if self.takes_parameter:
            code["parameter p"] = str(parameter)
        inputs = tuple(In(leaf=name) for name in self.inputs)
        done = In(leaf=f"{self.name}.done")
        return TaskDef(
            name=self.name,
            kind="test",
            ready=All(of=(*inputs, Not(of=done))),
            done=f"{self.name}.done",
            links=(
                *(LinkDef(name=each.leaf, expr=each, is_input=True) for each in inputs),
                LinkDef(name="out", expr=In(leaf=self.output), is_output=True),
                LinkDef(name="done", expr=done, is_status=True, inhibits_start=True),
            ),
            fingerprint=code,
            on_change="rerun",
            retry=RetryDef(attempts=50, factor=1.0),  # an input may be gone for a while
        )


class Log:
    """The events so far, as a reader has them."""

    def __init__(self) -> None:
        self.events: list[e.Event] = []
        self.header = SimpleNamespace(base=0)

    @property
    def head(self) -> int:
        return len(self.events)

    def fetch(self, positions: Sequence[int]) -> list[e.Event]:
        return [self.events[position - 1] for position in positions]

    def read(
        self, after: int = 0, until: int | None = None, filters: Filters = EVERYTHING
    ) -> Iterator[e.Recorded]:
        for position, event in enumerate(self.events[after:until], after + 1):
            if (
                (not filters.kinds or type(event).__name__ in filters.kinds)
                and (not filters.jobs or event.job in filters.jobs)
                and (not filters.repositories or event.repository in filters.repositories)
            ):
                yield e.Recorded(position, event)

    def read_back(
        self, after: int, until: int, filters: Filters, *, page_rows: int = 1
    ) -> Iterator[e.Recorded]:
        return reversed(list(self.read(after, until, filters)))


class Edited:
    """One life; it stands for the engine's runtime, too."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.state, self.log, self.now_ = State(), Log(), 1
        self.stages: list[Stage] = []
        self.parameter, self.epoch, self.runs = 0, 0, 0
        self.jobs: list[str] = []
        self.failure = None
        self.listeners: list[Callable[[e.Batch], None]] = []
        self.background = SimpleNamespace(spawn=self._spawn)
        self._work: deque[Coroutine[Any, Any, None]] = deque()
        self._tickets: dict[int, Finished] = {}
        self._running: dict[int, tuple[RunSpec, list[int] | None]] = {}
        self._reruns: Reruns | None = None
        created = e.LogCreated(at=1, log="u", pipeline="p")
        apply_all(self.state, 1, [created])
        self.log.events.append(created)
        for _ in range(self.random.randint(1, 3)):
            self._add_stage()

    # --- what the engine asks of its runtime ------------------------------------------------------

    def now(self) -> int:
        return self.now_

    async def flushed(self) -> None:
        """All is durable at once."""

    async def finished(self, ticket: int) -> tuple[int, int]:
        done = self._tickets.pop(ticket)
        return done.position, done.changes

    def pump(self) -> None:
        for step in self.reactor.take():
            self.log.events += step.events
            for effect in step.effects:
                if isinstance(effect, StartRun):
                    self._running[effect.spec.run] = effect.spec, None
                elif isinstance(effect, Finished):
                    self._tickets[effect.ticket] = effect
            for listener in self.listeners if step.events else ():
                listener(e.Batch(step.first, step.events))

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._work.append(work)

    def _step(self) -> None:
        """Append what has come, and let what waits beside the turns go on: nothing in it has to wait."""
        self.pump()
        while self._work:
            work = self._work.popleft()
            try:
                work.send(None)
            except StopIteration:
                continue
            raise AssertionError("what is in memory waits for nothing")

    # --- engines ----------------------------------------------------------------------------------

    def open(self) -> None:
        self.epoch += 1
        self.now_ += 1
        self.reactor = Reactor(self.state, lambda: 0.5)
        opened = e.EngineOpened(at=self.now_, version="1", host="h", pid=1, boot="b", epoch=self.epoch)
        self.reactor.open(opened, self.definition())
        self.pump()
        lost = e.Ending(outcome="lost")
        for run, _ in self._running.values():
            self.reactor.runs.fact(Ended(run.run, lost), self.now_)
        self._running.clear()
        self._reruns = Reruns(
            cast("Any", self), cast("Any", SimpleNamespace(hashed=self.flushed)), self._check, self._ask
        )
        self._reruns.open()
        self._step()

    def close(self, *, killed: bool) -> None:
        """End the engine; one that is killed says nothing, and its runs are lost."""
        assert self._reruns is not None
        self._reruns.close()
        if not killed:
            self.reactor.close(self.now_)
            self.pump()

    def definition(self) -> PipelineDef:
        outputs = [name for stage in self.stages for name in (stage.output, f"{stage.name}.done")]
        return PipelineDef(
            repositories=tuple(
                RepositoryDef(id=name, kind="test", medium="native") for name in (*SOURCES, *outputs)
            ),
            tasks=tuple(stage.definition(self.parameter) for stage in self.stages),
        )

    async def _check(self, suspects: Sequence[Suspect], images: bool) -> set[tuple[str, int]]:
        found = Checks(cast("LogReader", self.log), self.state).changed(suspects)
        return {(each.suspect.task, each.suspect.job) for each in found}

    async def _ask(self, request: r.RetryJobs) -> r.Reply:
        return await requests.answer(cast("Any", self), request)

    # --- working ----------------------------------------------------------------------------------

    def turn(self) -> bool:
        """Decide, and let one run come further; return whether anything happened."""
        self.now_ += 1_000_000_000
        launched, wake_at = self.reactor.decide(self.now_, "run")
        self._step()
        if not self._running:
            return bool(launched) or wake_at is not None
        spec, read = self._running[self.random.choice(list(self._running))]
        stage = next(stage for stage in self.stages if stage.name == spec.task)
        if read is None:
            values = [self.value(name, spec.job) for name in stage.inputs]
            if None in values:
                self._end(spec, e.Ending(outcome="failed"), ())
                return True
            self.reactor.runs.fact(Started(spec.run, {}), self.now_)
            positions = {name: self._position(name, spec.job) for name in stage.inputs}
            result = stage.result([value for value in values if value is not None], self.parameter)
            self._running[spec.run] = spec, [result, *positions.values()]
            self._step()
        else:
            result, *at = read
            write = Write(repository=stage.output, job=spec.job, value=_raw(result))
            ending = e.Ending(outcome="succeeded", reads=dict(zip(stage.inputs, at, strict=True)))
            self._end(spec, ending, (write,))
        return True

    def _end(self, spec: RunSpec, ending: e.Ending, writes: tuple[Write, ...]) -> None:
        self.runs += 1
        del self._running[spec.run]
        self.reactor.runs.fact(Ended(spec.run, ending, writes), self.now_)
        self._step()

    def work(self, turns: int | None = None) -> None:
        """Work so many turns, or until it is quiet."""
        while turns is None or turns > 0:
            if not self.turn():
                return
            turns = None if turns is None else turns - 1

    def _position(self, leaf: str, job: str) -> int:
        return self.state.leaves[leaf].positions[self.state.job_index[job]]

    def value(self, leaf: str, job: str) -> int | None:
        """Return what a job has in a repository, or None."""
        if not self.state.contains(leaf, job):
            return None
        event = self.log.events[self._position(leaf, job) - 1]
        assert isinstance(event, e.ValuePut)
        return int(msgspec.json.decode(event.value))

    # --- edits ------------------------------------------------------------------------------------

    def _change(self, write: Write) -> None:
        self.reactor.tickets.change([write], self.now_)
        self._step()

    def put_input(self) -> None:
        """Write an input, of a new job perhaps, and perhaps as it was."""
        if len(self.jobs) < 3 and self.random.random() < 0.3:
            self.jobs.append(f"j{len(self.jobs)}")
            for name in SOURCES:
                self._change(Write(repository=name, job=self.jobs[-1], value=_raw(self._number())))
        elif self.jobs:
            job, name = self.random.choice(self.jobs), self.random.choice(SOURCES)
            self._change(Write(repository=name, job=job, value=_raw(self._number())))

    def change_output(self) -> None:
        """Remove, spoil, or write again what a run has written, or its `done` entry."""
        stage = self.random.choice(self.stages)
        if not self.jobs or stage.output not in self.state.leaves:
            return
        job, leaf = self.random.choice(self.jobs), self.random.choice((stage.output, f"{stage.name}.done"))
        if self.state.contains(leaf, job):
            if leaf == stage.output and self.random.random() < 0.5:
                self._change(Write(repository=leaf, job=job, value=_raw(self._number())))
            else:
                self._change(Write(repository=leaf, job=job, op="delete"))

    def change_code(self) -> None:
        """Change a function, the parameter, a template, nothing but a comment, or add a stage."""
        stage = self.random.choice(self.stages)
        match self.random.randrange(5):
            case 0:
                stage.version = self.random.randrange(3)
            case 1:
                stage.template = self.random.randrange(2)
            case 2:
                self.parameter = self.random.randrange(3)
            case 3 if len(self.stages) < 5:
                self._add_stage()

    def _add_stage(self) -> None:
        given = [*SOURCES, *(stage.output for stage in self.stages)]
        inputs = self.random.sample(given, min(len(given), self.random.randint(1, 2)))
        self.stages.append(Stage(len(self.stages), inputs, self.random.random() < 0.5))

    def _number(self) -> int:
        return self.random.randrange(VALUES)

    # --- a whole life -----------------------------------------------------------------------------

    def live(self) -> None:
        """Edit while it works, some engines long, and let the last one come to rest."""
        for _ in range(self.random.randint(1, 4)):
            self.open()
            for _ in range(self.random.randint(1, 4)):
                self.random.choice((self.put_input, self.put_input, self.change_output))()
                self.work(self.random.choice((0, 1, 2, 5, 100)))
            self.close(killed=self.random.random() < 0.5)
            self.change_code()
        self.open()
        self.work()

    def wrong(self) -> list[str]:
        """Return what is not as a run from nothing would have it, and what is stale although all is quiet."""
        found = []
        for job in self.jobs:
            made: dict[str, int] = {}
            for name in SOURCES:
                value = self.value(name, job)
                assert value is not None, "inputs are not removed"
                made[name] = value
            for stage in self.stages:
                made[stage.output] = stage.result([made[name] for name in stage.inputs], self.parameter)
                if (there := self.value(stage.output, job)) != made[stage.output]:
                    found.append(f"{stage.output} {job} is {there}, from nothing {made[stage.output]}")
        stale = find_stale(cast("LogReader", self.log), self.state).stale
        return found + [f"stale: {task} {list(jobs)}" for task, jobs in stale.items() if jobs]


def _raw(value: int) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))
