"""What the core costs: `python benchmarks/core.py [JOBS]`, without a log or a world.

Three tasks in a chain, as in the design: events a second applied, cost of a decision, runs a second through the
reactor, memory of jobs at rest, and a checkpoint's way out and back. Timings are best of three, by CPU time.
"""

from __future__ import annotations

import gc
import json
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
from datatask.schema import events as e
from datatask.schema.definition import All, In, LinkDef, Not, PipelineDef, RepositoryDef, TaskDef
from datatask.schema.messages import Ended, RunSpec, Started, Write

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
    reactor.tickets.change(
        [Write(repository="a", job=f"job-{index:07}", value=VALUE) for index in range(jobs)], now
    )
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
            reactor.runs.fact(Started(spec.run, {}), now)
            reactor.runs.fact(Ended(spec.run, e.Ending(outcome="succeeded"), (output,)), now)
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


def main(jobs: int) -> None:
    """Measure, and print one JSON object."""
    gc.disable()
    figures: dict[str, float] = {"jobs": jobs}
    begin = time.process_time()
    reactor, events, runs = life(jobs)
    figures["runs_through_the_reactor_per_second"] = runs / (time.process_time() - begin)
    seconds = best(lambda: apply_all(State(), 1, [e.LogCreated(at=1, log="u", pipeline="p"), *events]))
    figures["events_applied_per_second"] = len(events) / seconds
    puts = [event for event in events if isinstance(event, e.ValuePut)]
    state = opened().state
    begin = time.process_time()
    apply_all(state, state.position + 1, puts[:jobs])
    figures["puts_that_make_a_job_ready_per_second"] = jobs / (time.process_time() - begin)
    figures["decision_us"] = best(lambda: decide(state, 10)) / 1000 * 1e6
    body = dump(reactor.state)
    figures["checkpoint_out_ms"] = best(lambda: dump(reactor.state)) * 1000
    figures["checkpoint_in_ms"] = best(lambda: load(body)) * 1000
    figures["checkpoint_bytes_per_job"] = len(body) / jobs
    tracemalloc.start()
    kept = load(body)
    figures["memory_at_rest_bytes_per_job"] = tracemalloc.get_traced_memory()[0] / jobs
    assert kept.position == reactor.state.position
    print(json.dumps(figures))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
