"""What a process task hands to the machine that its runs are on, and the verbs by which any machine is reached.

In: a task's script, input, environment and limits, as a `Recipe`. Out: processes and files, by a `Machine`'s verbs.
Users name machines as managers (`targets`), which bring the runner for a recipe along.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datatask.engine.api.repositories import BlobRepository
from datatask.schema.messages import RunSpec, Write
from datatask.schema.resources import Resources


class _StderrIsStdout:
    """The type of `STDOUT`."""

    def __repr__(self) -> str:
        return "STDOUT"


STDOUT = _StderrIsStdout()
"""Given as a process task's `stderr`: both streams, interleaved, go to the stdout repository."""


Enforce = Literal[False, True, "ulimit"]
"""Whether a run's resources are enforced, by control groups (True), or by a shell's `ulimit` on each process's memory."""


@dataclass(frozen=True)
class Recipe:
    """How to make the runs of one process task."""

    task: str
    render: Callable[[RunSpec], Awaitable[str]]
    stdin: BlobRepository | None
    stdout: BlobRepository | None
    stderr: BlobRepository | _StderrIsStdout | None
    environ: Mapping[str, str] | None
    resources: Resources | None = None
    enforce: Enforce = False

    def __repr__(self) -> str:
        return f"Recipe({self.task!r})"  # the environment may hold secrets

    @property
    def outputs(self) -> dict[str, BlobRepository]:
        """What keeps a run's outputs, by stream."""
        found = {"stdout": self.stdout, "stderr": self.stderr}
        return {name: repo for name, repo in found.items() if isinstance(repo, BlobRepository)}

    def writes(self, job: str, contents: Mapping[str, bytes | Path | None]) -> tuple[Write, ...]:
        """Return what goes into the repositories, of what a run's streams contain."""
        found = []
        for name, repository in self.outputs.items():
            content = contents.get(name)
            if isinstance(content, bytes):
                found.append(Write(repository=repository.id, job=job, data=content, size=len(content)))
            elif content is not None:
                found.append(Write(repository=repository.id, job=job, source=content))
        return tuple(found)


class Machine(ABC):
    """Start, watch and kill processes on a machine, and reach its files. Pids are decimal strings."""

    @property
    @abstractmethod
    def basedir(self) -> Path:
        """The folder on the machine that is this application's own."""

    @abstractmethod
    async def get_live_pids(self, hint: set[str]) -> set[str]:
        """Return the pids that are alive, at least those of `hint`."""

    @abstractmethod
    async def spawn(
        self,
        args: list[str],
        environ: dict[str, str] | None,
        cwd: str,
        return_code: str,
        stdin: str | None,
        stdout: str | None,
        stderr: str | _StderrIsStdout | None,
    ) -> str:
        """Start a process that outlives us, in a session of its own; its exit code goes to the file `return_code`."""

    @abstractmethod
    async def kill(self, pid: str) -> None:
        """Kill the process and its session; a dead one is fine."""

    @abstractmethod
    def open(self, path: Path, mode: Literal["r", "rb", "w", "wb"]) -> AbstractAsyncContextManager[Any]:
        """Open a file on the machine."""

    @abstractmethod
    async def mkdir(self, path: Path) -> None:
        """Make a folder and those above it; existing is fine."""

    @abstractmethod
    async def rmtree(self, path: Path) -> None:
        """Remove a folder with all that is in it; absent is fine."""
