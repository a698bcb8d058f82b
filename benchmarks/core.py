"""What the core costs: `python benchmarks/core.py [JOBS]`, without a log or a world.

Three tasks in a chain, as in the design: events a second applied, cost of a decision, runs a second through the
reactor, memory of jobs at rest, and a checkpoint's way out and back. Timings are best of three, by CPU time.
"""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from collections.abc import Callable

import msgspec

from datatask.engine.core.checkpoints import dump, load
from datatask.engine.core.decide import decide
from datatask.engine.core.effects import StartRun
from datatask.engine.core.fold import apply_all
from datatask.engine.core.reactor import Reactor
from datatask.engine.core.state import State
from datatask.engine.ports import Ended, RunSpec, Started, Write
from datatask.schema import events as e
from datatask.schema.definition import All, In, LinkDef, Not, PipelineDef, RepositoryDef, TaskDef

STAGES = ("a", "b", "c", "d")
VALUE = msgspec.Raw(b'{"n":1}')
TRIES = 3


def stage(index: int) -> TaskDef:
    """One task of the chain."""
    source, target, done = In(leaf=STAGES[index]), In(leaf=STAGES[index + 1]), In(leaf=f"done{index}")
    return TaskDef(
        name=f"t{index}",
        kind="benchmark",
        ready=All(of=(source, Not(of=done))),
        done=f"done{index}",
        links=(
            LinkDef(name="input", expr=source, is_input=True, required_for_start=True),
            LinkDef(name="output", expr=target, is_output=True),
            LinkDef(name="done", expr=done, is_status=True, inhibits_start=True),
        ),
    )


def chain() -> PipelineDef:
    """The pipeline."""
    names = (*STAGES, "done0", "done1", "done2")
    stored = tuple(RepositoryDef(id=name, kind="benchmark", medium="native") for name in names)
    return PipelineDef(repositories=stored, tasks=tuple(stage(index) for index in range(3)))


def opened() -> Reactor:
    """A reactor on an empty log."""
    state = State()
    apply_all(state, 1, [e.LogCreated(at=1, log="u", pipeline="p")])
    reactor = Reactor(state, lambda: 0.5)
    reactor.open(e.EngineOpened(at=2, version="1", host="h", pid=1, boot="b", epoch=1), chain())
    return reactor


def life(jobs: int) -> tuple[Reactor, list[e.Event], int]:
    """Run all jobs through the chain; return the reactor, the events and the number of runs."""
    reactor, events, runs, now = opened(), [], 0, 3
    reactor.change([Write(repository="a", job=f"job-{index:07}", value=VALUE) for index in range(jobs)], now)
    todo: list[RunSpec] = []
    while True:
        now += 1
        reactor.decide(now, "run")
        for step in reactor.take():
            events += step.events
            todo += [effect.spec for effect in step.effects if isinstance(effect, StartRun)]
        if not todo:
            return reactor, events, runs
        for spec in todo:
            output = Write(repository=STAGES[int(spec.task[1]) + 1], job=spec.job, value=VALUE)
            reactor.fact(Started(spec.run, {}), now)
            reactor.fact(Ended(spec.run, e.Ending(outcome="succeeded"), (output,)), now)
        runs += len(todo)
        todo.clear()


def best(work: Callable[[], object]) -> float:
    """Return the least CPU seconds of a few tries."""
    found = []
    for _ in range(TRIES):
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return min(found)


def told(what: str, figure: str) -> None:
    """Print a line."""
    print(f"{what:<44} {figure:>24}")


def main(jobs: int) -> None:
    """Measure and tell."""
    gc.disable()
    begin = time.process_time()
    reactor, events, runs = life(jobs)
    told("runs through the reactor", f"{runs / (time.process_time() - begin):,.0f} /s")
    seconds = best(lambda: apply_all(State(), 1, [e.LogCreated(at=1, log="u", pipeline="p"), *events]))
    told(f"events applied ({len(events):,})", f"{len(events) / seconds:,.0f} /s")
    puts = [event for event in events if isinstance(event, e.ValuePut)]
    state = opened().state
    begin = time.process_time()
    apply_all(state, state.position + 1, puts[:jobs])
    told("puts that make a job ready", f"{jobs / (time.process_time() - begin):,.0f} /s")
    told("a decision", f"{best(lambda: decide(state, 10)) / 1000 * 1e6:.2f} us")
    body = dump(reactor.state)
    told("checkpoint out", f"{best(lambda: dump(reactor.state)) * 1000:.0f} ms")
    told("checkpoint in", f"{best(lambda: load(body)) * 1000:.0f} ms")
    told("checkpoint size", f"{len(body) / jobs:.1f} bytes a job")
    tracemalloc.start()
    kept = load(body)
    told("memory at rest", f"{tracemalloc.get_traced_memory()[0] / jobs:.0f} bytes a job")
    assert kept.position == reactor.state.position


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
