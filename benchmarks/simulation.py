"""What simulating costs: `python -m benchmarks.simulation [JOBS]`, beside SimPy stepping the same model.

Three tasks in a chain under one quota of 64 cores, exponential durations, all jobs at once: runs a second by CPU time,
memory a job without a log, the same with every event made (`--write-log` adds the disk), and SimPy in this process:
a process a job, a resource, a time-out. SimPy keeps no masks, queues of tasks, retries or records; it is the floor of
what any Python simulation costs. Both draw from the same sampler.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time

import msgspec
import simpy

from benchmarks.core import chain
from datatask.adapters.sim.distributions import stream
from datatask.adapters.sim.logged import Logged
from datatask.adapters.sim.model import Plain
from datatask.adapters.sim.modelling import model_of
from datatask.adapters.sim.quick import Quick
from datatask.schema.definition import PipelineDef, QuotaDef
from datatask.schema.units import SECOND
from datatask.simulation import Exponential, Scenario, TaskScenario

CORES = 64
STAGES = 3
PEER_JOBS = 50_000
LOGGED_JOBS = 10_000
SCENARIO = Scenario(default=TaskScenario(duration=Exponential(1.0)))


def pipeline() -> PipelineDef:
    """Three tasks that share a quota."""
    plain = chain()
    tasks = tuple(
        msgspec.structs.replace(task, quota="all", resources={"cpu": SECOND}) for task in plain.tasks
    )
    return msgspec.structs.replace(
        plain, tasks=tasks, quotas=(QuotaDef(name="all", limits={"cpu": CORES * SECOND}),)
    )


def quick(jobs: int) -> tuple[float, int]:
    """Return the CPU seconds of a simulation without events, and its runs."""
    simulator = Quick(model_of(pipeline(), None, SCENARIO.with_(jobs=jobs), 0), Plain())
    begin = time.process_time()
    simulator.run()
    return time.process_time() - begin, len(simulator.records)


def logged(jobs: int) -> tuple[float, int]:
    """Return the CPU seconds of a simulation with every event, and its runs."""
    simulator = Logged(model_of(pipeline(), None, SCENARIO.with_(jobs=jobs), 0), Plain(), lambda step: None)
    begin = time.process_time()
    simulator.run()
    return time.process_time() - begin, len(simulator.records)


def peer(jobs: int) -> tuple[float, int]:
    """Return the CPU seconds that SimPy takes, and its runs."""
    environment = simpy.Environment()
    cores = simpy.Resource(environment, capacity=CORES)
    draws = [Exponential(1.0).sampler(stream(0, 0, f"t{stage}", "duration")) for stage in range(STAGES)]
    done = 0

    def job():  # type: ignore[no-untyped-def]
        nonlocal done
        for draw in draws:
            with cores.request() as request:
                yield request
                yield environment.timeout(draw())
            done += 1

    begin = time.process_time()
    for _ in range(jobs):
        environment.process(job())
    environment.run()
    return time.process_time() - begin, done


def rate(measured: tuple[float, int]) -> float:
    """Return runs a second."""
    return measured[1] / measured[0]


def main(jobs: int) -> None:
    """Measure, and print one JSON object."""
    gc.disable()
    quick(1000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole = quick(jobs)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    figures: dict[str, float] = {
        "jobs": jobs,
        "runs_per_second": rate(whole),
        "bytes_per_job": grown * 1024 / jobs,
    }
    peers, ours = [], []
    for _ in range(3):
        peers.append(rate(peer(PEER_JOBS)))
        gc.collect()
        ours.append(rate(quick(PEER_JOBS)))
        gc.collect()
    figures["simpy_runs_per_second"] = max(peers)
    figures["ratio_to_simpy"] = max(ours) / max(peers)
    figures["with_every_event_runs_per_second"] = rate(logged(LOGGED_JOBS))
    print(json.dumps(figures))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
