"""Any line of `run` may raise while jobs run, as functions or as processes here and over SSH: each is done, and its runs are told.

An engine begins a slow job and is killed; a `run` in which one line raises adopts or repeats it and starts others; the next `run` goes on
where that one stopped. What runs writes a name of its own at its begin and end, so that each of them can be counted.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli_kit import Project
from tests.integration.faults_kit import CODES, OURS, POINTS, POINTS_SOAKING, Stage, a_point, seed, until
from tests.ssh_kit import Server, server

HEAD = """
import asyncio, time, uuid
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from datatask import *

HERE = Path(__file__).parent
"""
SCRIPT = """
task = ProcessTask("work", {manager}, None, Resources(), LogMetadataRepository("pids"), '''#!/bin/sh
echo "begin {{{{ job }}}} $DATATASK_RUN" >> {{{{ numbers.told }}}}
sleep {{{{ numbers.seconds }}}}
echo "end {{{{ job }}}} $DATATASK_RUN" >> {{{{ numbers.told }}}}
echo "result of {{{{ job }}}}"
''', stdout=LogBlobRepository("out"), done=LogMetadataRepository("done"))
"""
FUNCTION = """
task = {task}
task.link("out", LogBlobRepository("out"), is_output=True)

async def work(job, numbers, out):
    values, name = await numbers.info(job), uuid.uuid4()
    with open(values["told"], "a") as told:
        print("begin", job, name, file=told, flush=True)
        await asyncio.sleep(values["seconds"])
        print("end", job, name, file=told, flush=True)
    async with out.open(job, "w") as stream:
        await stream.write(f"result of {{job}}\\n")

task(work)
"""
TAIL = """
task.link("numbers", LogMetadataRepository("numbers"), is_input=True)
pipeline = Pipeline([task], Session(), [])
"""
KINDS = {
    "local": SCRIPT.format(manager='LocalLinuxManager("faults", HERE / "procs")'),
    "ssh": SCRIPT.format(
        manager="""SSHLinuxManager("faults", SSHHost("127.0.0.1:{port}", None, "target", dict(
    client_keys=["{folder}/user_key"], known_hosts="{folder}/known_hosts", agent_path=None, config=None)), HERE / "procs")"""
    ),
    "function": FUNCTION.format(task='InProcessSyncTask("work", LogMetadataRepository("done"))'),
    "thread": FUNCTION.format(
        task='ExecutorTask("work", ThreadPoolExecutor(2), LogMetadataRepository("done"))'
    ),
    "pool": FUNCTION.format(
        task='ExecutorTask("work", lambda: ProcessPoolExecutor(2), LogMetadataRepository("done"))'
    ),
}
SLOW, QUICK = "slow", ("w1", "w2")


class Scene:
    """A project whose scripts are processes of one kind, fresh for each point."""

    def __init__(self, stage: Stage, kind: str, at: Server | None) -> None:
        self.stage = stage
        self.text = HEAD + KINDS[kind] + TAIL
        if at is not None:
            self.text = self.text.replace("{port}", str(at.port)).replace("{folder}", str(at.folder))
        self.number = 0
        self.place = stage.folder

    def set(self) -> None:
        """Make the project, with a slow script at work that a killed engine has left."""
        if self.number:
            shutil.rmtree(self.place, ignore_errors=True)
        self.number += 1
        self.place = self.stage.folder / f"scene{self.number}"
        self.place.mkdir()
        self.told = self.place / "told"
        Project(self.place, self.text)
        self._put({SLOW: 1.0})
        with self.stage.engine(self.place, [], "--forever", end=signal.SIGKILL):
            until(lambda: self.told.exists() and f"begin {SLOW}" in self.told.read_text())
        self._put(dict.fromkeys(QUICK, 0))

    def _put(self, jobs: dict[str, float]) -> None:
        lines = [
            json.dumps({"job": job, "seconds": seconds, "told": str(self.told)})
            for job, seconds in jobs.items()
        ]
        (self.place / "numbers.jsonl").write_text("\n".join(lines))
        (put, *_) = self.check(["inject", "work.numbers", "--from", "numbers.jsonl"])
        assert put.endswith("--- exit 0"), (put, self.errors)

    def check(self, *commands: list[str]) -> list[str]:
        """Return what commands print, each with its exit code at the end."""
        streams = [str(self.stage.folder / name) for name in ("stdin", "out", "err")]
        (self.stage.folder / "stdin").write_text("")
        self.stage.ask(folder=str(self.place), checks=list(commands), streams=streams)
        told = (self.stage.folder / "out").read_text(errors="replace")
        self.errors = (self.stage.folder / "err").read_text(errors="replace")
        return re.split(r"(?<=--- exit \d)\n", told.replace("\n\n--- exit", "\n--- exit"))

    def run(self, **more: Any) -> tuple[int | str, str]:
        """Run the pipeline with a line that raises; return exit code and what was told."""
        streams = [str(self.stage.folder / name) for name in ("stdin", "out", "err")]
        code = self.stage.ask(
            folder=str(self.place),
            argv=["run", "--failures-ok", "--timeout", "40"],
            streams=streams,
            **more,
        )
        return code, "".join(Path(name).read_text(errors="replace") for name in streams[1:])

    def wrong(self, code: int | str, told: str) -> str:
        """Return what is wrong now, after the same call once more and another try of what has failed."""
        if code not in CODES:
            return f"ended with {code}: {told}"
        if found := OURS.findall(told):
            return f"said {found}: {told}"
        again, retried, *_ = self.check(["run", "--failures-ok"], ["retry", "work", "--failed"], ["verify"])
        if not again.endswith("--- exit 0") or (found := OURS.findall(self.errors)):
            return f"the second time: {again} {self.errors}"
        final, runs, whole, *_ = self.check(["run"], ["runs", "--json"], ["verify"])
        if not final.endswith("--- exit 0"):
            return f"what failed was not done by another try: {retried} {final} {self.errors}"
        if not whole.endswith("--- exit 0"):
            return f"the log does not verify: {whole}"
        return self.counted(json.loads(runs.rpartition("--- exit")[0]))

    def counted(self, runs: list[dict[str, Any]]) -> str:
        """Return what is wrong with how often each script has run."""
        begun: Counter[str] = Counter()
        ended: Counter[str] = Counter()
        by_job: Counter[str] = Counter()
        for line in self.told.read_text().splitlines():
            what, job, run = line.split()
            (begun if what == "begin" else ended)[run] += 1
            by_job[job] += what == "begin"
        state = {run["job"]: [one["state"] for one in runs if one["job"] == run["job"]] for run in runs}
        if max(begun.values()) > 1 or max(ended.values()) > 1:
            return f"a run has run twice: {begun} {ended}"
        for job in (SLOW, *QUICK):
            if state.get(job, []).count("succeeded") != 1:
                return f"{job} has not succeeded once: {state}"
            if by_job[job] > len(state[job]):
                return f"{job} has run {by_job[job]} times, the log tells {state[job]}"
            if by_job[job] > 1 and not set(state[job]) & {"failed", "lost", "refused", "cancelled"}:
                return f"{job} has run {by_job[job]} times without a reason: {state}"
        return ""


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=pytest.mark.server("sshd") if kind == "ssh" else ()) for kind in KINDS],
)
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A scene of each kind."""
    stage = Stage(tmp_path_factory.mktemp("stage"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(stage.process)
        yield Scene(stage, request.param, server() if request.param == "ssh" else None)


def tried(scene: Scene, points: int, chance: random.Random) -> list[str]:
    """Try points of `run`; return what was wrong with each."""
    counts = scene.stage.folder / "counts"
    scene.set()
    clean = scene.wrong(*scene.run(counts=str(counts)))
    assert not clean, clean
    lines = sorted(json.loads(counts.read_text()))
    found = []
    for _ in range(points):
        point = a_point(lines, chance)
        scene.set()
        code, told = scene.run(point=point)
        if trouble := scene.wrong(code, told):
            found.append(f"{trouble}\n  {json.dumps(point)}\n  first: {code} {told}")
    return found


@pytest.mark.long
@pytest.mark.scaled
def test_a_sample_of_points_with_processes(scene: Scene) -> None:
    """A few points, others each time."""
    number = seed()
    print(f"DATATASK_TEST_SEED={number}")
    found = tried(scene, POINTS, random.Random(number))
    assert not found, "\n".join(found)


@pytest.mark.soak
def test_many_points_with_processes(scene: Scene) -> None:
    """Many points."""
    number = seed()
    print(f"DATATASK_TEST_SEED={number}")
    found = tried(scene, POINTS_SOAKING, random.Random(number))
    assert not found, "\n".join(found)
