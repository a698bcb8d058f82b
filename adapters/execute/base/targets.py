"""The machines that users name for their process tasks.

In: a `Recipe`, which makes a run's script, input and environment. Out: a `Runner` that runs them. A manager
for another kind of machine subclasses `AbstractProcessManager`: with its own verbs it gets the polling
runner, and may return a better one from `runner`. Ours are in `local` and `ssh`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from datatask.adapters.execute.base.machines import Machine, Recipe
from datatask.adapters.execute.base.polling import PollingRunner
from datatask.engine.ports import Runner
from datatask.schema.errors import InvalidValueError, NotPossibleError


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


class AbstractProcessManager(Machine):
    """A machine: start, watch and kill processes, and reach its files. Pids are decimal strings."""

    def place(self, identity: str, where: str) -> RunPlace:
        """Return the folder of an open run, for `enter` and the live tail of `cat`; `where` is what its start told."""
        raise NotPossibleError(
            f"{type(self).__name__} cannot show the folder of a run", remedy="see it on the machine itself"
        )

    async def list_runs(self) -> list[Leftover]:
        """Return what has a folder in the application's own one, of whichever log; `doctor` tells whose it is."""
        return []

    async def remove_runs(self, runs: list[Leftover]) -> list[Leftover]:
        """End and remove these, which no log counts as open; return those that are gone now."""
        return []

    def runner(self, recipe: Recipe) -> Runner:
        """Return what runs the recipe's processes on this machine."""
        if recipe.enforce:
            raise InvalidValueError(
                f"enforce={recipe.enforce!r} is not possible with {type(self).__name__}",
                where=recipe.task,
                remedy="leave it out, or run the task with LocalLinuxManager or SSHLinuxManager",
            )
        return PollingRunner(self, recipe)
