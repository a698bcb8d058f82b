"""What an answer costs on an open log: `python -m benchmarks.why [JOBS]`, milliseconds, medians of a few.

A state of a million jobs and a chain of three tasks, folded from events in memory: all jobs wait for the first task, whose
quota is full, but for a share that went on to the second. Asked are a job at the end of the long line, one in the middle,
one that lacks its input, one between two attempts, one that runs, one that nobody has seen, and whole tasks.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable

import msgspec

from benchmarks.core import chain
from datatask.engine.core.fold import apply, apply_all
from datatask.engine.core.state import State
from datatask.engine.explain.why import explain, explain_all
from datatask.schema import events as e
from datatask.schema.definition import PipelineDef, QuotaDef
from datatask.schema.units import SECOND

JOBS = 1_000_000
RUNNING = 16
TRIES = 9
SHARE = 4
"""One in so many jobs is past the first task."""


def pipeline() -> PipelineDef:
    """The chain of the other benchmarks, with a quota for its first task and a free one for its second."""
    plain = chain()
    shared = {"quota": "q", "resources": {"cpu": SECOND}}
    tasks = (
        msgspec.structs.replace(plain.tasks[0], **shared),
        msgspec.structs.replace(plain.tasks[1], concurrency=2 * RUNNING, **shared),
        plain.tasks[2],
    )
    quota = QuotaDef(name="q", limits={"cpu": 2 * RUNNING * SECOND})
    return msgspec.structs.replace(plain, tasks=tasks, quotas=(quota,))


def name(index: int) -> str:
    """A job's id."""
    return f"job-{index:07}"


def filled(jobs: int) -> State:
    """The state, with the quota in use to its limit."""
    state = State()
    definition = pipeline()
    begin: list[e.Event] = [
        e.LogCreated(at=1, log="u", pipeline="p"),
        e.EngineOpened(at=2, version="1", host="h", pid=1, boot="b", epoch=1),
        e.PipelineDefined(at=3, definition=definition, digest=definition.digest(), decider=1),
    ]
    apply_all(state, 1, begin)
    gone = jobs // SHARE
    apply_all(
        state, state.position + 1, (e.ValuePut(at=4, repository="a", job=name(job)) for job in range(jobs))
    )
    past = (
        e.ValuePut(at=5, repository=repository, job=name(job))
        for job in range(gone)
        for repository in ("done0", "b")
    )
    apply_all(state, state.position + 1, past)
    for number in range(2 * RUNNING):
        task, job = (0, gone + number) if number % 2 else (1, number)
        about = {"task": f"t{task}", "job": name(job), "episode": 1, "attempt": 1}
        resources = state.tasks[f"t{task}"].definition.resources
        apply(state, state.position + 1, e.LaunchDecided(at=6, resources=resources, **about))  # type: ignore[arg-type]
    return state


def milliseconds(work: Callable[[], object]) -> float:
    """Return the median of a few tries."""
    taken = []
    for _ in range(TRIES):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return round(statistics.median(taken) * 1000, 3)


def measure(state: State, jobs: int) -> dict[str, float]:
    """Return milliseconds for each question; the first one asked pays for what later ones find in memory."""
    cases = {
        "held_by_a_quota_at_the_end_of_the_line": ("t0", name(jobs - 1)),
        "held_by_a_quota_in_the_middle": ("t0", name(jobs // 2)),
        "lacking_its_input": ("t1", name(jobs - 1)),
        "lacking_all_but_one": ("t2", name(3)),
        "running": ("t0", name(jobs // SHARE + 1)),
        "never_seen": ("t0", "stranger"),
    }
    figures = {}
    for label, (task, job) in cases.items():
        figures[label] = milliseconds(lambda: explain(state, task, job, 7, engine_alive=True))  # noqa: B023
    apply(state, state.position + 1, e.QuotaChanged(at=7, quota="q", limits={"cpu": 10**6 * SECOND}))
    figures["behind_a_thousand_launches"] = milliseconds(
        lambda: explain(state, "t0", name(jobs - 1), 7, engine_alive=True)
    )
    for task in ("t0", "t1", "t2"):
        figures[f"explain_all_{task}"] = milliseconds(
            lambda: explain_all(state, task, 7, engine_alive=True)  # noqa: B023
        )
    return figures


def main(jobs: int) -> None:
    """Measure, and print one JSON object."""
    gc.disable()
    begin = time.perf_counter()
    state = filled(jobs)
    seconds = round(time.perf_counter() - begin, 1)
    print(json.dumps({"jobs": jobs, "seconds_to_fill": seconds, "ms": measure(state, jobs)}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else JOBS)
