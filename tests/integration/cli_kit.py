"""The command line as tests use it: a folder with a pipeline, commands in this process, engines beside it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from click.testing import CliRunner

from datatask.adapters.cli.main import invoke
from datatask.adapters.log.lease import probe
from tests.unmeasured import plain_environment

PIPELINE = """
import asyncio
import datatask

session = datatask.Session()
numbers = datatask.LogMetadataRepository("numbers")
doubled = datatask.LogMetadataRepository("doubled")
done = datatask.LogMetadataRepository("done")
blobs = datatask.LogBlobRepository("blobs")
files = datatask.FileRepository("files", extension=".txt")

double = datatask.InProcessSyncTask("double", done)
double.link("numbers", numbers, is_input=True)
double.link("doubled", doubled, is_output=True)


@double
async def run_double(job, numbers, doubled):
    value = await numbers.info(job)
    await asyncio.sleep(value.get("seconds", 0))
    await doubled.dump(job, {"n": 2 * value["n"]})


shout = datatask.InProcessSyncTask("shout", datatask.LogMetadataRepository("shouted"))
shout.plug(double)
shout.link("blobs", blobs, is_output=True)
shout.link("files", files)


@shout
async def run_shout(job, doubled, blobs):
    async with blobs.open(job, "w") as stream:
        await stream.write(f"{(await doubled.info(job))['n']}!")


pipeline = datatask.Pipeline([double, shout], session, [])

if __name__ == "__main__":
    datatask.main(pipeline)
"""


def complaints(err: str) -> list[str]:
    """Return what a command says on stderr besides how far the log was verified."""
    return [line for line in err.splitlines() if not line.startswith("verified up to position ")]


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The JSON document on stdout: one, and nothing beside it."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        """The lines on stdout."""
        return self.out.splitlines()


class Project:
    """A folder with a pipeline file."""

    def __init__(self, folder: Path, text: str = PIPELINE) -> None:
        self.folder = folder
        (folder / "pipeline.py").write_text(text)
        self.log = folder / ".datatask" / "log.db"

    @classmethod
    def after_a_run(cls, folder: Path) -> Project:
        """Return a project with a log in which one job is done."""
        project = cls(folder)
        project.put(a=1)
        project.ok("run")
        return project

    def call(self, *arguments: str | Path, stdin: bytes = b"", env: dict[str, str] | None = None) -> Result:
        """Run a command in this process, from the project's folder."""
        clean = dict.fromkeys(("DATATASK_PIPELINE", "DATATASK_LOG", "DATATASK_DEBUG", "NO_COLOR"))
        runner = CliRunner()
        with (
            contextlib.chdir(self.folder),
            runner.isolation(input=stdin, env={**clean, **(env or {})}) as streams,
        ):
            code = invoke([str(argument) for argument in arguments])
            sys.stdout.flush()
            sys.stderr.flush()
            return Result(code, streams[0].getvalue().decode(), streams[1].getvalue().decode())

    def ok(self, *arguments: str | Path, stdin: bytes = b"") -> Result:
        """Run a command that must succeed."""
        result = self.call(*arguments, stdin=stdin)
        assert result.code == 0, result
        return result

    def put(self, **numbers: int) -> None:
        """Inject numbers for `double`."""
        lines = "".join(json.dumps({"job": job, "n": n}) + "\n" for job, n in numbers.items())
        (self.folder / "numbers.jsonl").write_text(lines)
        self.ok("inject", "double.numbers", "--from", "numbers.jsonl")

    @contextlib.contextmanager
    def engine(self, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """Have `datatask run --forever` at work in a process of its own."""
        process = self.spawn("run", "--forever", *options)
        try:
            deadline = time.monotonic() + 100
            while not (
                self.log.exists() and probe(self.log) == process.pid and b"started" in _peeked(process)
            ):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline, "the engine does not start"
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=100)
            except subprocess.TimeoutExpired:
                process.kill()  # what does not end by itself must not outlive its test
                process.communicate()
                raise

    def spawn(
        self, *arguments: str, stdin: IO[bytes] | int | None = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        """Start a command in a process of its own, which may be interrupted anywhere."""
        environment = {
            key: value for key, value in plain_environment().items() if not key.startswith("DATATASK_")
        }
        return subprocess.Popen(
            [sys.executable, "-m", "datatask", *arguments],
            cwd=self.folder,
            env=environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def interrupt(self, process: subprocess.Popen[bytes], answer: bytes) -> None:
        """Send Ctrl-C, and wait until the command has taken it: it says so on stderr."""
        assert process.stderr is not None
        process.send_signal(signal.SIGINT)
        told = b""
        while answer not in told:
            line = process.stderr.readline()
            assert line, told
            told += line

    def until(self, expected: str, *arguments: str, seconds: float = 120) -> None:
        """Repeat a command until its output holds what is expected, and leave the engine half of the time."""
        deadline = time.monotonic() + seconds
        begun = time.monotonic()
        while expected not in (result := self.call(*arguments)).out:
            assert time.monotonic() < deadline, result
            time.sleep(max(0.01, min(1.0, time.monotonic() - begun)))
            begun = time.monotonic()


def _peeked(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline() if process.stdout.readable() else b""
