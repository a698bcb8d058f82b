"""A virtual clock, which moves on request and rings its alarms on the way, and a runner that runs nothing.

In: a pipeline for `recording(pipeline)`, before it opens. Out: a `RecordingRunner` in place of every task's runner: it
records the runs that it is asked for, and ends them as a test says, so that decisions, retries and limits can be
tested without the tasks' code.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from datatask.engine.api.tasks import Task
from datatask.engine.ports import Sink
from datatask.schema.errors import UnknownNameError
from datatask.schema.events import Ending, ErrorInfo, Outcome, StopReason
from datatask.schema.messages import Ended, Fact, RunSpec, Started, Write
from datatask.schema.units import SECOND

BEGINNING = 1_700_000_000 * SECOND


class VirtualClock:
    """A clock for tests: `advance` moves it, `advance_to_alarm` moves it to the next alarm."""

    def __init__(self, start: int = BEGINNING) -> None:
        self._now = start
        self._alarms: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0

    def now(self) -> int:
        """Return engine time in nanoseconds."""
        return self._now

    def wall_step(self) -> tuple[int, int] | None:
        """Return None: virtual time never jumps by itself."""
        return None

    def call_at(self, at: int, ring: Callable[[], None]) -> Callable[[], None]:
        """Ring when time reaches `at`; return the function that calls it off."""
        self._count += 1
        entry = (at, self._count, ring)
        heapq.heappush(self._alarms, entry)

        def cancel() -> None:
            if entry in self._alarms:
                self._alarms.remove(entry)
                heapq.heapify(self._alarms)

        return cancel

    def advance(self, seconds: float) -> None:
        """Advance by seconds; alarms that are due ring, each at its own time."""
        self._move(self._now + int(seconds * SECOND))

    def advance_to_alarm(self) -> bool:
        """Move to the next alarm and ring it; False when there is none."""
        if not self._alarms:
            return False
        self._move(max(self._now, self._alarms[0][0]))
        return True

    def _move(self, until: int) -> None:
        while self._alarms and self._alarms[0][0] <= until:
            at, _, ring = heapq.heappop(self._alarms)
            self._now = max(self._now, at)
            ring()
        self._now = max(self._now, until)


class HasTasks(Protocol):
    """A pipeline that is not open yet."""

    @property
    def tasks(self) -> Mapping[str, Task]: ...


class RecordingRunner:
    """`started` and `stopped` hold the requests; `end(task, job)` reports that a run is over.

    With `outcome` set, each run ends like that by itself as soon as it starts.
    """

    def __init__(self, outcome: Outcome | None = None) -> None:
        self.outcome = outcome
        self.started: list[RunSpec] = []
        self.stopped: list[tuple[int, StopReason]] = []
        self.recovered: list[RunSpec] = []
        self._open: dict[tuple[str, str], RunSpec] = {}
        self._sink: Sink | None = None

    @property
    def jobs(self) -> list[tuple[str, str]]:
        """The (task, job) pairs that were started, in order."""
        return [(spec.task, spec.job) for spec in self.started]

    async def open(self, sink: Sink) -> None:
        """Take the sink."""
        self._sink = sink

    def start(self, spec: RunSpec) -> None:
        """Record a start."""
        if (spec.task, spec.job) in self._open:
            return
        self.started.append(spec)
        self._open[spec.task, spec.job] = spec
        self._tell(Started(spec.run, {}))
        if self.outcome is not None:
            self.end(spec.task, spec.job, self.outcome)

    def end(
        self,
        task: str,
        job: str,
        outcome: Outcome = "succeeded",
        writes: Iterable[Write] = (),
        error: str = "",
    ) -> None:
        """Tell that the job's run has ended; `UnknownNameError` when none is open."""
        spec = self._open.pop((task, job), None)
        if spec is None:
            raise UnknownNameError(f"{task} has no open run for {job}", remedy="see RecordingRunner.jobs")
        info = ErrorInfo(type="Told", message=error) if error else None
        self._tell(Ended(spec.run, Ending(outcome=outcome, error=info), tuple(writes)))

    def stop(self, run: int, reason: StopReason, grace: int) -> None:
        """Record a stop, and end the run as stopped."""
        self.stopped.append((run, reason))
        for (task, job), spec in list(self._open.items()):
            if spec.run == run:
                self.end(task, job, "timed_out" if reason == "timeout" else "cancelled")

    async def recover(self, specs: Iterable[RunSpec]) -> None:
        """Record what an earlier engine left, and end it as lost."""
        for spec in specs:
            self.recovered.append(spec)
            self._tell(Ended(spec.run, Ending(outcome="lost")))

    def forget(self, run: int) -> None:
        """Nothing is kept."""

    async def close(self, *, abandon: bool = False) -> None:
        """Nothing is left."""

    def _tell(self, fact: Fact) -> None:
        assert self._sink is not None, "the runner is not open"
        self._sink(fact)


def recording(pipeline: HasTasks, outcome: Outcome | None = None) -> RecordingRunner:
    """Put one recording runner in the place of all runners of a pipeline that is not open yet."""
    runner = RecordingRunner(outcome)
    for task in pipeline.tasks.values():
        task.runner = runner
    return runner
