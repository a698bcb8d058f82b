"""Runs over SSH on the shared server: a task with both streams, one run to its end, runs that an engine left behind.

In: a folder, a script. Out: facts, and the files that the target has of a run.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    InProcessBlobRepository,
    InProcessMetadataRepository,
    ProcessTask,
    Resources,
    SSHHost,
    SSHLinuxManager,
)
from datatask.schema.messages import Ended, RunSpec, Started
from tests.run_kit import Facts, opened, spec
from tests.ssh_kit import Proxy, Server, proxied, server

SECOND = 1_000_000_000
LOG = "0123456789abcdef"
on_each_server = pytest.mark.usefixtures("each_server")
"""Run a test against OpenSSH and against dropbear."""


def make(manager: SSHLinuxManager, template: str, **more: Any) -> ProcessTask:
    """Return a task with both streams."""
    out, err = InProcessBlobRepository(), InProcessBlobRepository()
    out._id, err._id = "out", "err"
    resources = more.pop("resources", Resources())
    streams = {"stdout": out, "stderr": err} | more
    task = ProcessTask("t", manager, None, resources, InProcessMetadataRepository(), template, **streams)
    task.link("inp", InProcessMetadataRepository(), is_input=True)
    return task


def on_server(path: Path, at: Server | None = None) -> SSHLinuxManager:
    """Return a manager on the shared server, or another one, below a folder of its own."""
    return SSHLinuxManager("app", (at or server()).host(), path / "remote")


def ssh_task(path: Path, template: str, host: SSHHost | None = None, **more: Any) -> ProcessTask:
    """Return a task on the shared server, or another host, below a folder of its own."""
    return make(SSHLinuxManager("app", host or server().host(), path / "remote"), template, **more)


async def ended(manager: SSHLinuxManager, template: str, **more: Any) -> Ended:
    """Run a script to its end."""
    runner = make(manager, template, **more).runner
    async with opened(runner) as facts:
        runner.start(spec(1))
        end = await facts.end_of(1)
        runner.forget(1)
        return end


def message(end: Ended) -> str:
    """Return what the end says."""
    return end.ending.error.message if end.ending.error else ""


def effects(path: Path) -> list[str]:
    """Return the lines that the scripts appended."""
    return (path / "effects").read_text().splitlines() if (path / "effects").exists() else []


def runs_of(path: Path) -> Path:
    """Return the folder of the log's runs on the target."""
    return path / "remote/app/target" / LOG


def record_of(path: Path, name: str) -> Path | None:
    """Return the record of how a run ended, under the name that it has now; None until it is whole."""
    for file in (runs_of(path) / name / name, runs_of(path) / "ended" / name):
        with contextlib.suppress(FileNotFoundError):
            if file.read_text().rstrip().endswith("\n."):
                return file
    return None


@contextlib.asynccontextmanager
async def left_behind(path: Path, template: str, *jobs: str) -> AsyncIterator[list[RunSpec]]:
    """Runs that an engine started and let go of, as a later engine knows them from its log."""
    runner = ssh_task(path, template).runner
    specs = []
    async with opened(runner) as facts:
        for run, job in enumerate(jobs, 1):
            runner.start(spec(run, job))
        for run, job in enumerate(jobs, 1):
            fact = await facts.first(run, Started)
            assert isinstance(fact, Started)
            specs.append(spec(run, job)._replace(handle=fact.handle))
    yield specs


@contextlib.asynccontextmanager
async def through_proxy(path: Path, template: str) -> AsyncIterator[tuple[Proxy, Any, Facts]]:
    """A runner that reaches the target through a proxy."""
    async with proxied(server()) as proxy:
        runner = ssh_task(path, template, server().host(port=proxy.port)).runner
        async with opened(runner) as facts:
            yield proxy, runner, facts


def called(*command: str) -> str:
    """Run a program; return what it prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
