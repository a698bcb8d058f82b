"""A runner whose place to run is known only once the session is open.

In: what makes the runner. Out: the runner port; the runner is made when this is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from datatask.engine.ports import Runner, RunSpec, Sink, hold_back
from datatask.schema.events import StopReason


class LateRunner:
    """The runner that `make` returns, from `open` on."""

    def __init__(self, make: Callable[[], Runner]) -> None:
        self._make = make

    async def open(self, sink: Sink) -> None:
        """Make the runner and open it."""
        self._runner = self._make()
        await self._runner.open(sink)

    def start(self, spec: RunSpec) -> None:
        """Have it start a run."""
        self._runner.start(spec)

    def stop(self, run: int, reason: StopReason, grace: int) -> None:
        """Have it stop a run."""
        self._runner.stop(run, reason, grace)

    def hold_back(self) -> Iterable[int]:
        """Have it begin nothing more."""
        return hold_back(self._runner)

    async def recover(self, specs: Iterable[RunSpec]) -> None:
        """Have it account for the runs of an earlier engine."""
        await self._runner.recover(specs)

    def forget(self, run: int) -> None:
        """Have it remove what there is of a run."""
        self._runner.forget(run)

    async def close(self, *, abandon: bool = False) -> None:
        """Have it let go."""
        await self._runner.close(abandon=abandon)
