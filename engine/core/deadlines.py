"""When open runs are out of time, or have come so far that those lost before them count no more.

In come runs that have started; out come those that are due, by time. A run that is over by then is passed by.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from datatask.engine.core.state import State
from datatask.engine.core.tasks import OpenRun


class Deadlines:
    """Two queues by time: timeouts of tasks, and the progress after which a run forgives the lost ones before it."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._timeouts: list[tuple[int, int]] = []
        self._milestones: list[tuple[int, int]] = []
        self.tells_progress = False
        """Whether a run's progress after lost ones is logged, for the engine that comes after this one."""

    def watch(self, run: OpenRun) -> None:
        """Note when a run that has started is out of time, and when it has made progress."""
        if run.started_at is None:
            return
        task = self._state.tasks[run.task]
        timeout = task.definition.timeout
        if timeout is not None:
            heapq.heappush(self._timeouts, (run.started_at + timeout, run.run))
        if run.attempt > 1 and self.tells_progress and task.episodes[run.job].lost_in_a_row:
            progress = task.definition.retry.progress
            if progress is not None:
                heapq.heappush(self._milestones, (run.started_at + progress, run.run))

    def overdue(self, now: int) -> Iterator[OpenRun]:
        """Yield the open runs that have outlived their task's timeout, each once."""
        return self._due(self._timeouts, now)

    def progressed(self, now: int) -> Iterator[OpenRun]:
        """Yield the open runs that have made progress since, each once."""
        return self._due(self._milestones, now)

    def _due(self, times: list[tuple[int, int]], now: int) -> Iterator[OpenRun]:
        while times and times[0][0] <= now:
            run = self._state.open_runs.get(heapq.heappop(times)[1])
            if run is not None:
                yield run

    def next(self) -> int | None:
        """Return the time of the next one, or None."""
        due = []
        for times in (self._timeouts, self._milestones):
            while times and times[0][1] not in self._state.open_runs:
                heapq.heappop(times)
            due += times[:1]
        return min(due)[0] if due else None
