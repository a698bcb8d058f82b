"""What a process task asks of the machine that its processes run on, and what it gives.

In: a `Recipe`, which makes a run's script, input and environment. Out: a `Runner` that runs them. A manager
for another kind of machine subclasses `AbstractProcessManager`: with its own verbs it gets the polling
runner, and may return a better one from `runner`. Ours are in `local` and `ssh`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from datatask.engine.api.repositories import BlobRepository
from datatask.engine.ports import Runner
from datatask.schema.errors import CallerError
from datatask.schema.messages import RunSpec
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


class Leftover(NamedTuple):
    """A run that has a folder, perhaps a process, on a machine: where, its identity, and what it is in a few words.

    `home` is the file of its log, where that is known and still there.
    """

    where: str
    identity: str
    state: str
    home: str = ""


class RunPlace(Protocol):
    """A run's folder, for a person who looks into it while it runs."""

    async def read(self, name: str, offset: int) -> bytes:
        """Return what `stdout` or `stderr` has from an offset on, a bounded part; nothing where there is no more yet."""

    async def enter(self) -> int:
        """Open a shell in the folder, on the terminal if there is one; return its exit code."""

    async def close(self) -> None:
        """Let go."""


def refuse_enforcing(recipe: Recipe, manager: AbstractProcessManager) -> None:
    """Raise `CallerError` where a recipe wants its resources enforced by a manager that cannot."""
    if recipe.enforce:
        raise CallerError(
            f"enforce={recipe.enforce!r} is not possible with {type(manager).__name__}",
            where=recipe.task,
            remedy="leave it out, or run the task with LocalLinuxManager or SSHLinuxManager",
        )


class AbstractProcessManager(ABC):
    """A machine: start, watch and kill processes, and reach its files. Pids are decimal strings."""

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

    def place(self, identity: str, where: str) -> RunPlace:
        """Return the folder of an open run, for `enter` and the live tail of `cat`; `where` is what its start told."""
        raise CallerError(
            f"{type(self).__name__} cannot show the folder of a run", remedy="see it on the machine itself"
        )

    async def list_runs(self) -> list[Leftover]:
        """Return what has a folder in the application's own one, of whichever log; `doctor` tells whose it is."""
        return []

    async def remove_runs(self, runs: list[Leftover]) -> list[Leftover]:
        """End and remove these, which are nobody's any more; return those that are gone now."""
        return []

    def runner(self, recipe: Recipe) -> Runner:
        """Return what runs the recipe's processes on this machine."""
        from datatask.adapters.execute.base.polling import PollingRunner

        refuse_enforcing(recipe, self)
        return PollingRunner(self, recipe)
