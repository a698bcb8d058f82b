"""What runners share: a run is prepared or refused, started once, accounted for after recovery, and ended once.

In: runs from the engine, errors of preparing, reports of the process that watches the runs. Out: facts. A runner owns one
`TrackedRuns` and subclasses `TrackedRun`. `Questions` are the open requests to a launcher or an agent over a connection that
may break: what to send again over the next connection, and who is to hear of silence and of contact, each once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

import msgspec

from datatask.adapters.execute.base.endings import stopped_ending
from datatask.adapters.execute.base.pressure import NO_ROOM, Pressure, is_momentary
from datatask.engine.ports import Sink
from datatask.engine.run_context import RunContext, current_run
from datatask.engine.runtime.calls import error_info
from datatask.engine.runtime.services import current
from datatask.schema.errors import TemporaryError
from datatask.schema.events import Ending, ErrorInfo, StopReason
from datatask.schema.messages import (
    Adopted,
    Ended,
    Noticed,
    Printed,
    Reachable,
    RunSpec,
    Started,
    Unreachable,
    Write,
)

CLOSE_SECONDS = 5.0
NOTICE_MAX = 1000


class TrackedRun:
    """One run between start and forget. `over`: it is known how it ended; `ended`: so is it to the engine."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.work: asyncio.Task[None] | None = None
        self.reason: StopReason | None = None
        self.context: RunContext | None = None
        self.noticed = ""
        self.recovering = self.started = self.silent = self.over = self.ended = False

    @property
    def reads(self) -> dict[str, int] | None:
        """What its preparation has read, as endings tell it."""
        return (self.context.reads if self.context else None) or None


R = TypeVar("R", bound=TrackedRun)
C = TypeVar("C", bound=TrackedRun, contravariant=True)


class Executes(Protocol[C]):
    """What a runner does with one of its runs when it is time, and where the run is."""

    def begin(self, run: C) -> None:
        """Begin the run; again, when the machine had no room for it."""

    def let_go(self, run: C) -> None:
        """Ask nothing more about the run: it has ended, or its start waits for room."""

    def where(self, run: C) -> str:
        """Return where the run is, in a word, as far as that is known."""


class TrackedRuns(Generic[R]):
    """The runs of one runner, from its opening to its closing."""

    def __init__(self, task: str, runner: Executes[R], sink: Sink) -> None:
        self.pressure = Pressure(task, sink)
        self._runner = runner
        self._sink = sink
        self._services = current()
        self._runs: dict[int, R] = {}
        self._by_identity: dict[str, R] = {}
        self._unaccounted: set[int] = set()
        self._accounted = asyncio.Event()

    def __iter__(self) -> Iterator[R]:
        return iter(list(self._runs.values()))

    def __contains__(self, run: int) -> bool:
        return run in self._runs

    def get(self, run: int) -> R | None:
        """Return a run that has not ended."""
        found = self._runs.get(run)
        return None if found is None or found.ended else found

    def named(self, identity: str) -> R | None:
        """Return a run that has not ended, by its identity."""
        found = self._by_identity.get(identity)
        return None if found is None or found.ended else found

    # --- starting ---------------------------------------------------------------------------------

    def start(self, run: R) -> None:
        """Begin a run that is not tracked yet, or have it wait behind others that the machine has no room for."""
        self._track(run)
        self.pressure.admit(run.spec.run, lambda: self._runner.begin(run))

    def _track(self, run: R) -> None:
        self._runs[run.spec.run] = self._by_identity[run.spec.identity] = run

    def prepare(self, run: R, work: Callable[[R], Awaitable[None]]) -> None:
        """Do what a start takes, in the run's context; where it fails, the run waits for room or ends."""
        run.work = asyncio.get_running_loop().create_task(self._prepare(run, work))
        self._services.mind(run.work, f"the start of a run of {run.spec.task}")

    async def _prepare(self, run: R, work: Callable[[R], Awaitable[None]]) -> None:
        run.context = RunContext(run.spec.run, run.spec.task, run.spec.job)
        run.context.identities = run.spec.identities
        current_run.set(run.context)
        try:
            await work(run)
        except asyncio.CancelledError:
            return
        except Exception as error:
            run.work = None
            self.failed(run, error)
        finally:
            run.work = None

    def failed(self, run: R, error: BaseException) -> None:
        """A start failed, and nothing of it has begun."""
        if is_momentary(error):
            self.no_room(run, error_info(error).message)
        else:
            self.end(run, unprepared_ending(run.spec, error))

    def no_room(self, run: R, why: str, reason: str = NO_ROOM) -> None:
        """Begin a run later, since the machine or the target refuses it for the moment."""
        if run.ended:
            return
        if run.reason is not None:
            self.end(run, stopped_ending(run.reason))
            return
        self._runner.let_go(run)
        self.pressure.refused(run.spec.run, lambda: self._runner.begin(run), why, reason)

    def started(self, run: R, handle: Mapping[str, str | int], began: int | None = None) -> None:
        """The run's process is there: tell of a start, or of what was recovered, once."""
        self.pressure.accepted(run.spec.run)
        known, run.started = run.started, True
        if run.recovering:
            self.account(run)
            self._sink(Adopted(run.spec.run, dict(handle), self._runner.where(run)))
        elif not known:
            run.silent = False
            self._sink(Started(run.spec.run, dict(handle), self._runner.where(run), began))

    # --- recovering -------------------------------------------------------------------------------

    def recover(self, run: R) -> R:
        """Track a run of an earlier engine, until it has started, ended or cannot be watched."""
        self._track(run)
        run.recovering = True
        self._unaccounted.add(run.spec.run)
        return run

    def account(self, run: R) -> None:
        """It is known what became of a run that is recovered; it may not have begun, and tells of its start then."""
        run.recovering = run.silent = False
        self._accounted_for(run)

    def resume(self, run: R) -> None:
        """Begin a run that is recovered: its start has no effect where it has happened already."""
        self.account(run)
        self.pressure.admit(run.spec.run, lambda: self._runner.begin(run))

    def _accounted_for(self, run: R) -> None:
        self._unaccounted.discard(run.spec.run)
        self._accounted.set()

    async def accounted(self) -> None:
        """Wait until each run that is recovered is accounted for."""
        while self._unaccounted:
            self._accounted.clear()
            await self._accounted.wait()

    # --- notices and silence ----------------------------------------------------------------------

    def notice(self, run: R, phase: str, reason: str, message: str) -> None:
        """Tell what keeps a run, once for each reason in a row."""
        key = f"{phase}:{reason}"
        if key != run.noticed and not run.ended:
            run.noticed = key
            self._sink(Noticed(run.spec.run, phase, reason, message[:NOTICE_MAX]))

    def unreachable(self, run: R, message: str, where: str = "") -> None:
        """Tell that a run cannot be watched."""
        if not run.silent and not run.ended:
            run.silent = True
            self._accounted_for(run)
            self._sink(Unreachable(run.spec.run, where or self._runner.where(run), message[:NOTICE_MAX]))

    def reachable(self, run: R, where: str = "") -> None:
        """Tell that it can be watched again."""
        if run.silent and not run.ended:
            run.silent = False
            self._sink(Reachable(run.spec.run, where or self._runner.where(run)))

    # --- ends -------------------------------------------------------------------------------------

    def end(
        self, run: R, ending: Ending, writes: tuple[Write, ...] = (), printed: tuple[Printed, ...] = ()
    ) -> None:
        """Tell how a run ended, once; an ending that says no time is of now."""
        if run.ended:
            return
        run.over = run.ended = True
        self.account(run)
        self.pressure.accepted(run.spec.run)
        self.pressure.freed()
        self._runner.let_go(run)
        if ending.ended_at is None:
            now = time.time_ns()  # noqa: TID251 - the runner's clock
            where = self._runner.where(run)
            ending = msgspec.structs.replace(ending, ended_at=now, reads=run.reads, where=where)
        self._sink(Ended(run.spec.run, ending, writes, printed))

    def forget(self, run: int) -> R | None:
        """Track a run no more; return it."""
        found = self._runs.pop(run, None)
        if found is not None:
            self._by_identity.pop(found.spec.identity, None)
        return found

    async def close(self) -> None:
        """Track nothing any more: starts that are not handed over never are."""
        self.pressure.close()
        working = [run.work for run in self._runs.values() if run.work is not None]
        for task in working:
            task.cancel()
        if working:
            await asyncio.wait(working, timeout=CLOSE_SECONDS)
        self._runs.clear()
        self._by_identity.clear()


def unprepared_ending(spec: RunSpec, error: BaseException) -> Ending:
    """Return the ending of a run whose start failed: `lost`, to be tried again, or `refused` for good."""
    info = error_info(error)
    if isinstance(error, TemporaryError | OSError):
        return Ending(outcome="lost", error=info)
    job = f"{spec.task}[{spec.job}]"
    text = info.message if info.message.startswith(job) else f"{job}: {info.message}"
    return Ending(outcome="refused", error=ErrorInfo(type=info.type, message=text))


Q = TypeVar("Q")
L = TypeVar("L")


class Question(Generic[Q, L]):
    """What is asked about one run, and that it is to stop where that is so."""

    __slots__ = ("listener", "silent", "stop", "text")

    def __init__(self, text: Q, listener: L) -> None:
        self.text = text
        self.listener = listener
        self.stop: Q | None = None
        self.silent = False


class Questions(Generic[Q, L]):
    """The questions that are open, by the identity of their run."""

    def __init__(self) -> None:
        self._open: dict[str, Question[Q, L]] = {}

    def __iter__(self) -> Iterator[tuple[str, Question[Q, L]]]:
        return iter(list(self._open.items()))

    def __bool__(self) -> bool:
        return bool(self._open)

    def get(self, identity: str) -> Question[Q, L] | None:
        """Return the question about a run, if there is one."""
        return self._open.get(identity)

    def ask(self, identity: str, text: Q, listener: L) -> None:
        """Begin to ask about a run; its listener gets every answer until it is closed."""
        self._open[identity] = Question(text, listener)

    def change(self, identity: str, text: Q) -> None:
        """Ask something else about a run from the next connection on."""
        if (question := self._open.get(identity)) is not None:
            question.text = text

    def close(self, identity: str) -> None:
        """Ask nothing more about a run."""
        self._open.pop(identity, None)

    def clear(self) -> None:
        """Ask nothing more about any run."""
        self._open.clear()

    def silence(self, silent: bool) -> list[tuple[str, L]]:
        """Return the runs, with their listeners, that were not known to be in silence, or in contact, and now are."""
        changed = [(identity, one) for identity, one in self._open.items() if one.silent is not silent]
        for _, one in changed:
            one.silent = silent
        return [(identity, one.listener) for identity, one in changed]
