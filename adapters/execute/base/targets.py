"""The machines that users name for their process tasks, and the runner for those that have only their own verbs.

In: a `Recipe`, which makes a run's script, input and environment. Out: a `Runner`. A manager for another kind of machine
subclasses `AbstractProcessManager`: it gets the polling runner, which asks about all runs once a second in one call, kills
where it stops, and has a run's folder at `{basedir}/{task}/{identity}/`; or it returns a better runner. Ours are in `local` and `ssh`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from datatask.adapters.execute.base.endings import (
    ended_by_machine,
    exit_ending,
    judged,
    on_full_disk,
    stopped_ending,
    unstarted_ending,
)
from datatask.adapters.execute.base.machines import ClaimedFolder, Machine, Recipe, live_pids
from datatask.adapters.execute.base.runner import TrackedRun, TrackedRuns
from datatask.adapters.execute.base.shutdowns import hit_us_too, stopped_from_outside
from datatask.adapters.spools import Spool
from datatask.engine.ports import Runner, Sink
from datatask.engine.runtime.services import Service, current
from datatask.schema.errors import InvalidValueError, NotPossibleError
from datatask.schema.events import Ending, ErrorInfo, StopReason
from datatask.schema.messages import RunSpec

logger = logging.getLogger("datatask.proc_manager")

POLL_SECONDS = 1.0
SETTLE_SECONDS = 2.0
REMOVAL_SECONDS = 5.0
CODE_POLLS_MAX = 5
POLLS_PER_LOOK = 10
"""The start time of a live pid is compared once in this number of polls: the pid may have been given to another process."""


class PolledRun(TrackedRun):
    """A run that is asked about; `refused`: the machine had no room for it, yet it may have begun."""

    def __init__(self, spec: RunSpec, folder: ClaimedFolder) -> None:
        super().__init__(spec)
        self.folder = folder
        self.pid = ""
        self.codeless = self.polls = self.started_at = 0
        self.refused = False
        self.fetched: list[Path] = []


class PollingRunner:
    """One task's runs on a machine that can only be asked."""

    def __init__(self, manager: Machine, recipe: Recipe, poll_seconds: float = POLL_SECONDS) -> None:
        self._manager = manager
        self._recipe = recipe
        self._poll_seconds = poll_seconds
        self._tasks: set[asyncio.Task[None]] = set()
        self._removals: set[asyncio.Task[None]] = set()
        self._where = type(manager).__name__
        self._spool = Spool()

    async def open(self, sink: Sink) -> None:
        """Begin to ask."""
        self._services = current()
        self._runs = TrackedRuns[PolledRun](self._recipe.task, self, sink)
        self._tasks.add(self._services.keep(f"the asking of {self._where}", self._poll_for_ever))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._services.mind(task, f"what is done with a run by {self._where}")

    def _made(self, spec: RunSpec) -> PolledRun:
        path = self._manager.basedir / self._recipe.task / spec.identity
        return PolledRun(spec, ClaimedFolder(self._manager, path))

    # --- starting and stopping --------------------------------------------------------------------

    def start(self, spec: RunSpec) -> None:
        """Prepare the folder and start the process, once per identity."""
        if spec.run not in self._runs:
            self._runs.start(self._made(spec))

    def begin(self, run: PolledRun) -> None:
        """Begin a run."""
        self._runs.prepare(run, self._start)

    def let_go(self, run: PolledRun) -> None:
        """Look whether a run that was refused has begun all the same, before it is begun again."""
        run.refused = True

    def where(self, run: PolledRun) -> str:
        """Return what kind of machine it is."""
        return self._where

    def hold_back(self) -> Iterable[int]:
        """Return the runs that the machine has no room for."""
        return self._runs.pressure.waiting()

    async def _start(self, run: PolledRun) -> None:
        script = await self._recipe.render(run.spec)
        await run.folder.make(self._recipe, run.spec.job, script)
        if run.reason is not None:
            self._runs.end(run, stopped_ending(run.reason))
            return
        if run.refused and await run.folder.pid():
            run.recovering = True
            await self._adopt(run)
            return
        run.pid = await run.folder.launch(self._recipe, run.spec.variables)
        run.started_at = time.time_ns()  # noqa: TID251 - the runner's clock
        await self._started(run)

    async def _started(self, run: PolledRun) -> None:
        self._runs.started(run, {"pid": run.pid, "folder": str(run.folder)})
        if run.reason is not None:
            await self._kill(run)

    def stop(self, run: int, reason: StopReason, grace: int) -> None:
        """Kill the process."""
        found = self._runs.get(run)
        if found is not None and found.reason is None:
            found.reason = reason
            if self._runs.pressure.withdraw(run):
                self._runs.end(found, stopped_ending(reason))
            elif found.pid:
                self._spawn(self._kill(found))

    async def _kill(self, run: PolledRun) -> None:
        try:
            await run.folder.kill(run.pid)
        except Exception as error:
            logger.warning("%s[%s] cannot be killed: %s", run.spec.task, run.spec.job, error)

    # --- asking -----------------------------------------------------------------------------------

    async def _poll_for_ever(self, service: Service) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            await self._poll()
            service.works()

    async def _poll(self) -> None:
        watched = [run for run in self._runs if run.pid and not run.ended]
        if not watched:
            return
        try:
            alive = await live_pids(self._manager, {run.pid for run in watched})
            for run in watched:
                self._runs.reachable(run)
                run.polls += 1
                if run.pid not in alive:
                    await self._gone(run)
                elif run.polls % POLLS_PER_LOOK == 0 and not await run.folder.is_ours(run.pid):
                    run.codeless = CODE_POLLS_MAX
                    await self._gone(run)
        except Exception as error:
            for run in watched:
                self._runs.unreachable(run, str(error))

    async def _gone(self, run: PolledRun) -> None:
        code, noted = await run.folder.exit_code(), await run.folder.noted()
        if not code:
            run.codeless += 1
            if run.codeless < CODE_POLLS_MAX and run.reason is None:
                return
            why = "; the disk of its outputs was full when it ended" if "full" in (noted or ()) else ""
            lost = ErrorInfo(type="Lost", message="the process is gone and left no exit code" + why)
            ending = Ending(outcome="lost", error=lost) if run.reason is None else stopped_ending(run.reason)
        elif run.reason is not None:
            ending = stopped_ending(run.reason, int(code))
        elif hit_us_too(int(code), run.started_at, time.time_ns()):  # noqa: TID251 - the runner's clock
            ending = ended_by_machine("stopped", stopped_from_outside(int(code)))
        else:
            ending = exit_ending(int(code))
        if ending.outcome == "lost":
            self._runs.end(run, ending)
            return
        if noted is None:
            ending = judged(ending, {"": "how long its outputs were was not written down when it ended"}, ())
        elif "full" in noted:
            ending = on_full_disk(ending)
        fetched = {name: self._spool.path(f"{run.spec.identity}.{name}") for name in self._recipe.outputs}
        run.fetched += fetched.values()
        found, wrong = await run.folder.fetch(noted or {}, fetched)
        ending = judged(ending, wrong, found)
        writes = () if ending.outcome == "lost" else self._recipe.writes(run.spec.job, found)
        self._runs.end(run, ending, writes)

    # --- other engines ----------------------------------------------------------------------------

    async def recover(self, specs: Iterable[RunSpec]) -> None:
        """Find each run's process by the pid in its folder; what never claimed its folder never will."""
        await self._recover([self._runs.recover(self._made(spec)) for spec in specs])

    async def _recover(self, runs: list[PolledRun]) -> None:
        try:
            for run in runs:
                await run.folder.bar()
            if any(run.spec.handle is None for run in runs):
                await asyncio.sleep(SETTLE_SECONDS)
            for run in runs:
                await self._adopt(run)
        except Exception as error:
            for run in runs:
                if not run.pid and not run.ended:
                    self._runs.unreachable(run, str(error))
                    self._spawn(self._recover_later(run))

    async def _recover_later(self, run: PolledRun) -> None:
        await asyncio.sleep(10 * self._poll_seconds)
        await self._recover([run])

    async def _adopt(self, run: PolledRun) -> None:
        pid = await run.folder.pid()
        if not pid:
            self._runs.end(run, unstarted_ending())
            return
        run.pid = str((run.spec.handle or {}).get("pid") or pid)
        over = await run.folder.exit_code()  # then its pid may be somebody else's
        if not over and await run.folder.is_alive(run.pid):
            await self._started(run)
        else:
            run.codeless = CODE_POLLS_MAX
            await self._gone(run)

    def forget(self, run: int) -> None:
        """Remove the run's folder and what was fetched from it."""
        if (found := self._runs.forget(run)) is not None:
            for path in found.fetched:
                path.unlink(missing_ok=True)
            removal = asyncio.create_task(found.folder.remove())
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)

    async def close(self, *, abandon: bool = False) -> None:
        """Stop asking; what runs goes on. Folders of runs that are over still go, in a bounded time."""
        if self._removals:
            await asyncio.wait(self._removals, timeout=REMOVAL_SECONDS)
        await self._runs.close()
        tasks = [*self._tasks, *self._removals]
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
        self._spool.close()


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
