"""What it costs to know which results are out of date, where nothing changes and where one input does.

    python -m benchmarks.staleness [--jobs 20000] [--pairs 3] [--files 100000]

`on_change="mark"` beside `"keep"`: the pipeline of `pipeline`, in turns and in processes of their own, and what the state of one
holds more than that of the other. Files: a task over so many inputs is done; a second `plan` may open none of them
(opens are counted by the interpreter's own audit), and one that was changed is told by an engine that is open.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import core, pipeline
from datatask import FileRepository, InProcessSyncTask, LogMetadataRepository, Pipeline, Session
from datatask.adapters.cli.plan import foresee
from datatask.adapters.history.stale import find_stale
from datatask.adapters.history.states import fold
from datatask.adapters.log.reader import LogReader
from datatask.adapters.wiring.choosing import Choice
from datatask.engine.core.checkpoints import dump, load
from datatask.engine.core.staleness import look
from datatask.schema import definition as d

LIMIT_SECONDS = 60.0


def one(jobs: int, on_change: d.OnChange) -> dict[str, float]:
    """Run so many jobs once, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_SELF)
        seconds, _ = asyncio.run(pipeline.seconds(Path(folder) / "log.db", 1024, jobs, on_change))
        after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"runs_per_second": pipeline.STAGES * jobs / seconds, "cpu_seconds": cpu}


def compared(jobs: int, pairs: int) -> dict[str, float]:
    """Return the medians of "mark" to "keep" over all pairs."""
    ratios: dict[str, list[float]] = {"runs_per_second": [], "cpu_seconds": []}
    for number in range(pairs):
        found: dict[str, dict[str, float]] = {}
        for side in ("mark", "keep") if number % 2 else ("keep", "mark"):
            command = [sys.executable, "-m", "benchmarks.staleness", "--jobs", str(jobs), "--one", side]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            found[side] = json.loads(done.stdout)
        for name, each in ratios.items():
            each.append(found["mark"][name] / found["keep"][name])
    return {
        "runs_per_second_ratio": round(statistics.median(ratios["runs_per_second"]), 3),
        "cpu_ratio": round(statistics.median(ratios["cpu_seconds"]), 3),
    }


def held(jobs: int) -> dict[str, float]:
    """Return what a state holds for each job and task more with "mark" than with "keep", and what a look takes."""
    kept = core.chain()
    sizes = {}
    plain = core.chain
    for on_change in ("keep", "mark"):
        tasks = tuple(
            msgspec.structs.replace(task, on_change=on_change, fingerprint={"function f": "0a" * 16})
            for task in kept.tasks
        )
        core.chain = lambda tasks=tasks: msgspec.structs.replace(kept, tasks=tasks)  # type: ignore[misc]
        reactor, _, _ = core.life(jobs)
        body = dump(reactor.state)
        tracemalloc.start()
        state = load(body)
        sizes[on_change] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    core.chain = plain
    began = time.perf_counter()
    look(state)
    return {
        "bytes_per_job_and_task": round((sizes["mark"] - sizes["keep"]) / jobs / len(kept.tasks), 3),
        "look_us_per_job_and_task": round((time.perf_counter() - began) / jobs / len(kept.tasks) * 1e6, 3),
    }


class Opens:
    """Counts what is opened below a folder from now on, as the interpreter tells it."""

    def __init__(self) -> None:
        self.folder, self.count = "", 0
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and self.folder and str(arguments[0]).startswith(self.folder):
            self.count += str(arguments[0]).endswith(".txt")


def counting(folder: Path) -> Pipeline:
    """A task that reads a file of each job."""
    source = FileRepository(folder / "in", ".txt", name="in")
    task = InProcessSyncTask("count", LogMetadataRepository("count.done"), concurrency=1024)
    task.link("source", source, is_input=True)

    @task
    async def count(job: str, source: FileRepository) -> None:
        await source.info(job)

    return Pipeline([task], Session(), log=folder / "log.db")


async def told(folder: Path, changed: str) -> float:
    """Return the seconds from the change of one file until a reader of the log has the result as stale."""
    async with counting(folder) as opened:
        await opened.run()
        path = folder / "in" / f"{changed}.txt"
        with LogReader(folder / "log.db") as reader:
            state = fold(reader, reader.head)
        began = time.perf_counter()
        path.write_text("another content\n")
        while time.perf_counter() - began < LIMIT_SECONDS:
            await asyncio.sleep(0.01)
            with LogReader(folder / "log.db") as reader:
                if reader.head > state.position:
                    state = await asyncio.to_thread(_on, reader, state)
                    if find_stale(reader, state).stale["count"]:
                        return time.perf_counter() - began
    raise AssertionError(f"a change was not told within {LIMIT_SECONDS} s")


def _on(reader: LogReader, state: Any) -> Any:
    from datatask.engine.core.fold import apply

    for position, event in reader.read(state.position):
        apply(state, position, event)
    return state


def files(count: int, opens: Opens) -> dict[str, float]:
    """Return what a finished task over so many files costs a plan, and how soon a change is told."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for number in range(count):
            with open(folder / "in" / f"job{number}.txt", "wb", buffering=0) as file:
                file.write(b"content %d\n" % number)

        async def finish() -> None:
            async with counting(folder) as opened:
                await opened.run()

        began = time.perf_counter()
        asyncio.run(finish())
        first = time.perf_counter() - began
        opens.folder = str(folder / "in")
        began = time.perf_counter()
        foresee(counting(folder), Choice())
        planned, opened = time.perf_counter() - began, opens.count
        (folder / "in" / "job0.txt").write_text("changed while nobody looked\n")
        began = time.perf_counter()
        found = foresee(counting(folder), Choice())
        again = time.perf_counter() - began
        assert found.stale["count"]["stale"] == 1, found.stale
        changed = opens.count - opened - 1  # the write itself
        os.utime(folder / "in" / "job1.txt", (1, 1))
        seconds = asyncio.run(told(folder, "job2"))
        return {
            "files": count,
            "first_run_seconds": round(first, 2),
            "second_plan_seconds": round(planned, 2),
            "second_plan_opens": opened,
            "plan_with_one_changed_seconds": round(again, 2),
            "plan_with_one_changed_opens": changed,
            "change_told_seconds": round(seconds, 3),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--one", choices=("mark", "keep"))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.jobs, options.one)))
        return
    opens = Opens()
    figures = {**held(options.jobs), **files(options.files, opens)}
    print(json.dumps(figures | (compared(options.jobs, options.pairs) if options.pairs else {})))


if __name__ == "__main__":
    main()
