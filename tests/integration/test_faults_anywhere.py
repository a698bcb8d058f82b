"""Any line of a command may raise what a machine may raise there: it is told in one line, and nothing is lost.

A sample of points by a seed that is printed; `DATATASK_TEST_SEED` replays one. All commands of the table are tried, with 200
points each where soak tests run.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from datatask.adapters.cli.commands import COMMANDS
from tests.effort import by_effort
from tests.integration.cli_kit import PIPELINE, Project
from tests.integration.faultlines import errors
from tests.unmeasured import plain_environment

TEXT = PIPELINE.replace(
    "session, [])", 'session, [datatask.ResourceManager(datatask.Resources.parse(4, "1Gi"))])'
)

CALLS: dict[str, tuple[list[str], str]] = {
    "init": (["init", "fresh"], ""),
    "run": (["run", "--failures-ok"], ""),
    "update": (["update", "--failures-ok"], ""),
    "plan": (["plan"], ""),
    "status": (["status", "-a"], ""),
    "trace": (["trace", "a"], ""),
    "why": (["why", "double", "w1"], ""),
    "ls": (["ls", "double.done"], ""),
    "cat": (["cat", "double.doubled", "a"], ""),
    "graph": (["graph"], ""),
    "inject": (["inject", "double.numbers", "k"], '{"n": 5}'),
    "inject --from": (["inject", "double.numbers", "--from", "some.csv"], ""),
    "inject blob": (["inject", "shout.blobs", "b"], "bytes " * 20_000),
    "rm": (["rm", "double.doubled", "a"], ""),
    "launch": (["launch", "double", "w1"], ""),
    "cancel": (["cancel", "double", "w1"], ""),
    "retry": (["retry", "double", "bad"], ""),
    "pause": (["pause", "double"], ""),
    "resume": (["resume", "shout"], ""),
    "quota": (["quota", "default", "cpu=3"], ""),
    "log": (["log"], ""),
    "runs": (["runs", "--json"], ""),
    "lineage": (["lineage", "a"], ""),
    "waiting": (["waiting"], ""),
    "query": (["query", "SELECT task, job, state FROM runs"], ""),
    "query -": (["query", "-", "--json"], "SELECT position, payload FROM events"),
    "export": (["export", "out", "--format", "csv"], ""),
    "replay": (["replay", "--verify"], ""),
    "simulate": (["simulate"], ""),
    "verify": (["verify"], ""),
    "log-anchor": (["log-anchor", "anchors.jsonl"], ""),
    "log-compact": (["log-compact", "--grace", "0"], ""),
    "redact": (["redact", "5"], ""),
    "backup": (["backup", "copy"], ""),
    "log-archive": (["log-archive", "--before", "20"], ""),
    "enter": (["enter", "double", "a"], ""),
    "shell": (["shell"], ""),
    "doctor": (["doctor"], ""),
    "completion": (["completion", "bash"], ""),
}  # fmt: skip

WORKING = ("run", "update", "launch", "retry")
"""Calls in which functions of the pipeline run: what is raised in what they call is theirs, and ends their run."""

OURS = re.compile(
    r"please report|Traceback|internal error|Exception ignored|Exception in|never retrieved|its own code failed"
)
CODES = {0, 1, 2, 3, 4, 5, 6, 7, 70, 130, -signal.SIGINT}
POINTS, POINTS_SOAKING = by_effort(quick=1, thorough=3, soak=3), 200
WHOLE_ENDS = 0.1
"""So many of the commands end with all that the interpreter does at its end, which takes a tenth of a second."""


class Tried(NamedTuple):
    """What a command did in a folder, and what the log says afterwards."""

    code: int | str
    told: str
    state: str
    whole: str


class Stage:
    """A process of `faultlines.py`, and folders in which its children play."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("faultlines.py"))],
            env={**plain_environment(), "HOME": str(folder), "SHELL": "/bin/true"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, **request: Any) -> int | str:
        """Have a child do something; return its exit code."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        code: int | str = json.loads(self.process.stdout.readline())["code"]
        return code

    def fresh(self, base: Path) -> Path:
        """Return a copy of the project."""
        place = self.folder / "tried"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(base, place)
        return place

    def call(self, place: Path, name: str, **more: Any) -> tuple[Tried, Tried]:
        """Run one of the calls, look at the log, run it once more, and look again."""
        argv, text = CALLS[name]
        (self.folder / "stdin").write_text(text)
        streams = [str(self.folder / stream) for stream in ("stdin", "out", "err")]
        code = self.ask(folder=str(place), argv=argv, streams=streams, **more)
        told = "".join((self.folder / stream).read_text(errors="replace") for stream in ("out", "err"))
        look = [["status", "--json"], ["verify"]]
        self.ask(folder=str(place), checks=[*look, argv, *look], streams=streams)
        parts = re.split(r"\n--- exit (\d+)\n", (self.folder / "out").read_text(errors="replace"))
        parts += ["", "lost"] * 5
        first = Tried(code, told, _tasks(parts[0]), "" if parts[3] == "0" else parts[2])
        again = (self.folder / "err").read_text(errors="replace")
        repeated = int(parts[5]) if parts[5].isdecimal() else parts[5]
        return first, Tried(repeated, parts[4] + again, _tasks(parts[6]), "" if parts[9] == "0" else parts[8])

    def lines(self, place: Path, name: str) -> tuple[Tried, Tried, list[list[Any]]]:
        """Run a call as it is, twice, and return the lines that it executes."""
        counts = self.folder / "counts"
        clean, again = self.call(place, name, counts=str(counts))
        return clean, again, sorted(json.loads(counts.read_text()))


def _tasks(status: str) -> str:
    try:
        return json.dumps(json.loads(status).get("tasks"))
    except ValueError:
        return status


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which jobs are done, failed, waiting; a task is paused."""
    folder = tmp_path_factory.mktemp("base")
    project = Project(folder, TEXT)
    (folder / "some.csv").write_text("job,n\nc1,1\nc2,2\n")
    project.put(a=1, b=2)
    (folder / "bad.jsonl").write_text('{"job": "bad", "m": 1}\n')
    project.ok("inject", "double.numbers", "--from", "bad.jsonl")
    assert project.call("run").code == 1
    project.put(w1=1, w2=2)
    project.ok("pause", "shout")
    return folder


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A stage for this module."""
    stage = Stage(tmp_path_factory.mktemp("stage"))
    with stage.process:
        yield stage


def test_each_command_is_tried() -> None:
    """A new command is a line in CALLS."""
    assert {argv[0] for argv, _ in CALLS.values()} == set(COMMANDS)


def wrong(clean: Tried, again: Tried, failed: Tried, repeated: Tried, *, works: bool) -> str:
    """Return what is not as it should be after a failure and after the same call once more; nothing where all is well."""
    if failed.code not in CODES:
        return f"ended with {failed.code}"
    if found := set(OURS.findall(failed.told + repeated.told)) - set(OURS.findall(clean.told)):
        return f"said {found}"
    if failed.whole or repeated.whole:
        return f"the log does not verify: {(failed.whole or repeated.whole)[:300]}"
    if works:
        return ""
    if failed.code == clean.code and failed.code in (0, 1) and failed.state != clean.state:
        return "told as done, and it is not"
    if repeated.code not in (clean.code, again.code):
        return f"ended with {repeated.code} the second time"
    if repeated.state not in (clean.state, again.state):
        return "what the second time did is another thing"
    return ""


def tried(stage: Stage, base: Path, name: str, points: int, chance: random.Random) -> list[str]:
    """Try points of a call; return what was wrong with each."""
    place = stage.fresh(base)
    clean, again, lines = stage.lines(place, name)
    assert clean.told.count("please report") == 0, clean
    found = []
    for _ in range(points):
        file, line, count, in_main = chance.choice(lines)
        point = {
            "file": file, "line": line, "hit": chance.randint(1, min(count, chance.choice((1, 10, 100_000)))),
            "error": chance.choice([one for one in errors() if in_main or one != "interrupt"]),
        }  # fmt: skip
        place = stage.fresh(base)
        failed, repeated = stage.call(place, name, point=point, whole=chance.random() < WHOLE_ENDS)
        if trouble := wrong(clean, again, failed, repeated, works=name in WORKING):
            found.append(f"{trouble}\n  {name} {json.dumps(point)}\n  first: {failed}\n  then: {repeated}")
    return found


def seed() -> int:
    """Return the seed: the one that is asked for, or a new one."""
    return int(os.environ.get("DATATASK_TEST_SEED") or random.SystemRandom().randrange(1 << 32))


@pytest.mark.long
@pytest.mark.scaled
@pytest.mark.parametrize("part", range(2))
def test_a_sample_of_points(stage: Stage, base: Path, part: int) -> None:
    """A few points of some commands, others each time."""
    number = seed()
    print(f"DATATASK_TEST_SEED={number}")
    chance = random.Random(f"{number} {part}")
    for name in chance.sample(sorted(CALLS), 3):
        found = tried(stage, base, name, POINTS, chance)
        assert not found, "\n".join(found)


@pytest.mark.soak
@pytest.mark.parametrize("name", sorted(CALLS))
def test_many_points(stage: Stage, base: Path, name: str) -> None:
    """Each command, at many points."""
    number = seed()
    print(f"DATATASK_TEST_SEED={number}")
    found = tried(stage, base, name, POINTS_SOAKING, random.Random(f"{number} {name}"))
    assert not found, "\n".join(found)
