"""Commands that are tried with one line of them raising: the table of calls, the stage, and what counts as wrong.

In: a project's folder, a call, a seed. Out: what was wrong, one text for each point. The commands are children of a process
of `faultlines.py`; an engine beside them is another child of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.effort import by_effort
from tests.integration.faultlines import errors
from tests.unmeasured import plain_environment

CALLS: dict[str, tuple[list[str], str]] = {
    "init": (["init", "fresh"], ""),
    "run": (["run", "--failures-ok"], ""),
    "update": (["update", "--failures-ok"], ""),
    "plan": (["plan"], ""),
    "status": (["status", "-a"], ""),
    "trace": (["trace", "a"], ""),
    "why": (["why", "double", "w1"], ""),
    "ls": (["ls", "double.done"], ""),
    "logs": (["logs", "double", "a"], ""),
    "cat": (["cat", "double.doubled", "a"], ""),
    "graph": (["graph"], ""),
    "inject": (["inject", "double.numbers", "k"], '{"n": 5}'),
    "inject --from": (["inject", "double.numbers", "--from", "some.csv"], ""),
    "inject blob": (["inject", "shout.blobs", "b"], "bytes " * 20_000),
    "rm": (["rm", "double.doubled", "a"], ""),
    "launch": (["launch", "double", "w1"], ""),
    "cancel": (["cancel", "double", "w1"], ""),
    "accept": (["accept", "double", "--reason", "looked"], ""),
    "diff": (["diff", "double", "a"], ""),
    "retry": (["retry", "double", "bad"], ""),
    "undo": (["undo", "--since", "-1d", "--partly"], ""),
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
LEFT = "waits in the inbox"
"""Said of what is left to the next engine, as a command does that does not come to an end with its own."""
WHOLE_ENDS = 0.1
"""So many of the commands end with all that the interpreter does at its end, which takes a tenth of a second."""


class Tried(NamedTuple):
    """What a command did in a folder, and what the log says afterwards."""

    code: int | str
    told: str
    state: str
    whole: str
    beside: str = ""


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

    @contextlib.contextmanager
    def engine(
        self, place: Path, trouble: list[str], *words: str, end: int = signal.SIGTERM
    ) -> Iterator[Path]:
        """Have an engine at work in a place; its stdout is given, and its trouble added."""
        streams = [os.devnull, *(str(self.folder / f"engine-{stream}") for stream in ("out", "err"))]
        out, err = map(Path, streams[1:])
        out.unlink(missing_ok=True)
        pid = self.ask(folder=str(place), argv=["run", *words], streams=streams, begin=True)
        until(lambda: out.exists() and "started" in out.read_text())
        try:
            yield out
        finally:
            code = self.ask(end=pid, signal=end)
        told = out.read_text(errors="replace") + err.read_text(errors="replace")
        if end == signal.SIGTERM and (code != 130 or OURS.search(told)):
            trouble.append(f"the engine ended with {code}: {told[-600:]}")

    def call(self, place: Path, name: str, beside: bool = False, **more: Any) -> tuple[Tried, Tried]:
        """Run one of the calls, look at the log, run it once more, and look again; with an engine at work `beside` it."""
        if not beside:
            return self._call(place, name, **more)
        trouble: list[str] = []
        with self.engine(place, trouble, "--forever"):
            first, then = self._call(place, name, **more)
        left = [path.name for path in (place / ".datatask" / "log.db.inbox").glob("quarantine/*")]
        if left:
            trouble.append(f"left in quarantine: {left}")
        return first._replace(beside="; ".join(trouble)), then

    def _call(self, place: Path, name: str, **more: Any) -> tuple[Tried, Tried]:
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

    def lines(self, place: Path, name: str, beside: bool) -> tuple[Tried, Tried, list[list[Any]]]:
        """Run a call as it is, twice, and return the lines that it executes."""
        counts = self.folder / "counts"
        clean, again = self.call(place, name, beside, counts=str(counts))
        return clean, again, sorted(json.loads(counts.read_text()))


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something to come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.005)


def _tasks(status: str) -> str:
    try:
        return json.dumps(json.loads(status).get("tasks"))
    except ValueError:
        return status


def _bare(told: str) -> set[str]:
    """Return the errors that name no remedy."""
    return {line for line in told.splitlines() if line.startswith("datatask: ") and "; " not in line}


def wrong(clean: Tried, again: Tried, failed: Tried, repeated: Tried, *, works: bool) -> str:
    """Return what is not as it should be after a failure and after the same call once more; nothing where all is well."""
    if failed.code not in CODES:
        return f"ended with {failed.code}"
    if found := set(OURS.findall(failed.told + repeated.told)) - set(OURS.findall(clean.told)):
        return f"said {found}"
    if bare := _bare(failed.told) - _bare(clean.told):
        return f"told without a remedy: {bare}"
    if failed.beside:
        return failed.beside
    if failed.whole or repeated.whole:
        return f"the log does not verify: {(failed.whole or repeated.whole)[:300]}"
    if works:
        return ""
    done = failed.code == clean.code and failed.code in (0, 1) and LEFT not in failed.told
    if done and failed.state != clean.state:
        return "told as done, and it is not"
    if repeated.code not in (clean.code, again.code):
        return f"ended with {repeated.code} the second time"
    if repeated.state not in (clean.state, again.state):
        return "what the second time did is another thing"
    return ""


def a_point(lines: list[list[Any]], chance: random.Random) -> dict[str, Any]:
    """Return one of the lines, one of its executions, and what it is to raise."""
    file, line, count, in_main = chance.choice(lines)
    return {
        "file": file, "line": line, "hit": chance.randint(1, min(count, chance.choice((1, 10, 100_000)))),
        "error": chance.choice([one for one in errors() if in_main or one != "interrupt"]),
    }  # fmt: skip


def tried(
    stage: Stage, base: Path, name: str, points: int, chance: random.Random, *, beside: bool = False
) -> list[str]:
    """Try points of a call, with an engine at work beside it or without; return what was wrong with each."""
    place = stage.fresh(base)
    clean, again, lines = stage.lines(place, name, beside)
    assert clean.told.count("please report") == 0, clean
    assert not clean.beside, clean
    found = []
    for _ in range(points):
        point = a_point(lines, chance)
        place = stage.fresh(base)
        failed, repeated = stage.call(place, name, beside, point=point, whole=chance.random() < WHOLE_ENDS)
        if trouble := wrong(clean, again, failed, repeated, works=name in WORKING):
            found.append(f"{trouble}\n  {name} {json.dumps(point)}\n  first: {failed}\n  then: {repeated}")
    return found


def seed() -> int:
    """Return the seed: the one that is asked for, or a new one."""
    return int(os.environ.get("DATATASK_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
