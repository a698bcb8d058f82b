"""How true simulations are: pipelines run for real at several quotas, and simulated for all of them from one recorded log.

    python -m benchmarks.truth [--jobs 48] [--scale 1.0]

Two stages of local processes behind one quota: `sleeps` of lengths that differ by job, and `work`, fixed numbers of turns of a
loop. Each is run at every quota, from an empty log; one of these logs is what all are simulated from. Printed are the
makespans in seconds and, by task, the mean waits from being ready to the start, real and simulated, and the largest
differences as shares. A wait of less than a twentieth of the makespan is compared to that.

Two cores that others use too are not twice one, and no log of one core knows that. So the same loops are timed bare, as many at
once as there are places, before and after each run for real; `work_adjusted` are the differences of simulations that were
told how much longer these took than with as many places as were recorded (`machine`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from datatask import (
    LocalLinuxManager,
    LogMetadataRepository,
    Pipeline,
    ProcessTask,
    ResourceManager,
    Resources,
    Session,
)
from datatask.adapters.log.reader import LogReader
from datatask.engine.ports import Filters
from datatask.schema import events as e
from datatask.simulation import Scenario, inputs, simulate_inputs

QUOTAS = {"sleeps": (2, 4, 8), "work": (1, 2)}
RECORDED_AT = {"sleeps": 4, "work": 1}
SLEEPS = {"first": (0.2, 0.1), "second": (0.35, 0.05)}
"""Seconds: the shortest, and how much longer for each unit of the job's last digit."""

TURNS = {"first": 3_000_000, "second": 5_000_000}
QUIET_SHARE = 0.05
BARE_ROUNDS = 8


@dataclass(frozen=True)
class Life:
    """One run of the pipeline: seconds in all, and the mean wait of each task."""

    makespan: float
    waits: dict[str, float]


def pipeline(folder: Path, kind: str, cores: int, scale: float) -> tuple[Pipeline, LogMetadataRepository]:
    """Return the two stages with so many places."""
    quota = ResourceManager(Resources.parse(cores, "1Gi"), name="places")
    manager = LocalLinuxManager("truth", folder / "local")
    given, between = LogMetadataRepository("given"), LogMetadataRepository("between")
    tasks = []
    for name, source, target in (("first", given, between), ("second", between, None)):
        task = ProcessTask(
            name, manager, quota, Resources.parse(1, 0), LogMetadataRepository(f"{name}.pids"), script(kind, name, scale),
            done=between if target is not None else LogMetadataRepository("done"),
        )  # fmt: skip
        task.link("source", source, is_input=True)
        tasks.append(task)
    return Pipeline(tasks, Session(), [quota], log=folder / "log.db"), given


def script(kind: str, name: str, scale: float) -> str:
    """Return what a run does: known sleeps that differ by job, or a known number of turns."""
    if kind == "work":
        turns = round(TURNS[name] * scale)
        return f"#!/bin/sh\nexec awk 'BEGIN {{ for (i = 0; i < {turns}; i++) x += i }}'\n"
    length, step = SLEEPS[name]
    spread = "{{ '%.3f' % ((" + f"{length} + {step} * (job[-1] | int)" + f") * {scale}) }}}}"
    return f"#!/bin/sh\nexec sleep {spread}\n"


async def lived(folder: Path, kind: str, cores: int, jobs: int, scale: float) -> Life:
    """Run the pipeline for real; what happened is in `folder/log.db`."""
    folder.mkdir(parents=True)
    made, given = pipeline(folder, kind, cores, scale)
    async with made:
        for job in range(jobs):
            await given.dump(f"j{job:03d}", {})
        await made.run()
    return recorded(folder / "log.db")


def recorded(log: Path) -> Life:
    """Return how long a log's runs took in all, from the first decision on, and how long each task's jobs waited."""
    put: dict[tuple[str, str], int] = {}
    decided: dict[int, tuple[str, str, int]] = {}
    waits: dict[str, list[float]] = {}
    begin = end = 0
    kinds = ("ValuePut", "LaunchDecided", "RunStarted", "RunEnded")
    reads = {"first": "given", "second": "between"}
    with LogReader(log) as reader:
        for position, event in reader.read(filters=Filters(kinds=kinds)):
            match event:
                case e.ValuePut():
                    put[event.repository, event.job] = event.at
                case e.LaunchDecided():
                    begin = begin or event.at
                    decided[position] = event.task, event.job, event.at
                case e.RunStarted():
                    task, job, _ = decided[event.run]
                    ready = max(begin, put[reads[task], job])
                    waits.setdefault(task, []).append((event.at - ready) / 1e9)
                case e.RunEnded():
                    end = event.at
    return Life((end - begin) / 1e9, {task: sum(each) / len(each) for task, each in waits.items()})


async def bare(folder: Path, cores: int, scale: float) -> float:
    """Return the mean seconds of the loops, with so many at once and nothing else of ours."""
    exe = folder / "bare"
    exe.write_text(script("work", "second", scale))
    exe.chmod(0o700)
    seconds = []

    async def one_after_another() -> None:
        for _ in range(BARE_ROUNDS):
            began = time.perf_counter()
            await (await asyncio.create_subprocess_exec(exe)).wait()
            seconds.append(time.perf_counter() - began)

    await asyncio.gather(*(one_after_another() for _ in range(cores)))
    return sum(seconds) / len(seconds)


def imagined(log: Path, cores: int, longer: float = 1.0) -> Life:
    """Return what simulating a log's jobs with so many places says, where everything takes `longer` times as long."""
    definition, recording = inputs(log)
    assert recording is not None
    for record in recording.tasks.values():
        for job, runs in record.own.items():
            record.own[job] = [(outcome, seconds * longer) for outcome, seconds in runs]
    scenario = Scenario(quotas={"places": {"cpu": cores}}, own=True)
    result = simulate_inputs(definition, recording, scenario)
    return Life(result.makespan, {row["task"]: row["wait_mean"] for row in result.tasks()})


def apart(real: Life, told: Life) -> tuple[float, float]:
    """Return how far apart makespans are, and the waits of the task where they are farthest, as shares."""
    quiet = QUIET_SHARE * real.makespan
    waits = [abs(told.waits[task] - wait) / max(wait, quiet) for task, wait in real.waits.items()]
    return abs(told.makespan - real.makespan) / real.makespan, max(waits)


async def measure(folder: Path, jobs: int, scale: float) -> dict[str, object]:
    """Return all figures."""
    told: dict[str, object] = {}
    for kind, quotas in QUOTAS.items():
        real, alone = {}, {}
        for cores in quotas:
            before = await bare(folder, cores, scale) if kind == "work" else 1.0
            real[cores] = await lived(folder / kind / str(cores), kind, cores, jobs, scale)
            after = await bare(folder, cores, scale) if kind == "work" else 1.0
            alone[cores] = (before + after) / 2
        log = folder / kind / str(RECORDED_AT[kind]) / "log.db"
        found, adjusted = [], []
        for cores, life in real.items():
            simulated = imagined(log, cores)
            machine = alone[cores] / alone[RECORDED_AT[kind]]
            found.append(apart(life, simulated))
            adjusted.append(apart(life, imagined(log, cores, machine)))
            told[f"{kind}_{cores}"] = {
                "real_seconds": round(life.makespan, 3),
                "simulated_seconds": round(simulated.makespan, 3),
                "real_waits": {task: round(seconds, 3) for task, seconds in life.waits.items()},
                "simulated_waits": {task: round(simulated.waits[task], 3) for task in life.waits},
                **({"machine": round(machine, 3)} if kind == "work" else {}),
            }
        told |= _worst(kind, found)
        if kind == "work":
            told |= _worst("work_adjusted", adjusted)
    return told


def _worst(name: str, found: list[tuple[float, float]]) -> dict[str, float]:
    """Return the largest differences of makespans and of waits."""
    makespans, waits = zip(*found, strict=True)
    return {f"{name}_makespan_apart": round(max(makespans), 4), f"{name}_waits_apart": round(max(waits), 4)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=48)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        print(json.dumps(asyncio.run(measure(Path(name), options.jobs, options.scale))))


if __name__ == "__main__":
    main()
