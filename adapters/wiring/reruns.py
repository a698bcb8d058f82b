"""Results of tasks with `on_change="rerun"` that are out of date by themselves are computed again, as `retry` does.

In: an engine over a log in a file. Out: a request to retry, of the engine's own, for each such job: once the engine is open, and whenever
a value that it has read is put, or one that it has written is changed. What was made of a result follows only where the new value
differs, since only then its own input has changed. A job that was run again `RERUNS_MAX` times by one engine is left, and told.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from datatask.adapters.history.images import images_in, outdated
from datatask.adapters.history.stale import Checks
from datatask.adapters.log.reader import LogReader
from datatask.adapters.wiring.contents import Contents
from datatask.engine.core.cells import get_at
from datatask.engine.core.staleness import Suspect, look, read_by, suspected
from datatask.engine.core.state import State
from datatask.engine.core.tasks import TaskState
from datatask.engine.runtime.closing import in_own_thread
from datatask.engine.runtime.loop import Runtime
from datatask.schema import events as e
from datatask.schema import messages as r

logger = logging.getLogger("datatask.engine")

RERUNS_MAX = 10
REASON = "the result is out of date"

Ask = Callable[[r.RetryJobs], Awaitable[r.Reply]]
Result = tuple[str, int]
"""A task and a job."""

Check = Callable[[Sequence[Suspect], bool], Awaitable[set[Result]]]
"""Returns the results whose suspects differ; where that is asked for, also those whose images have been others since."""


def checked_in(path: Path, state: State) -> Check:
    """Return the check against the log at a path, made in a thread."""

    def changed(suspects: Sequence[Suspect], images: bool) -> set[Result]:
        with LogReader(path) as reader:
            found = Checks(reader, state).changed(suspects)
            results = {(each.suspect.task, each.suspect.job) for each in found}
            return (
                results | {(each.task, each.job) for each in outdated(reader, state)} if images else results
            )

    async def check(suspects: Sequence[Suspect], images: bool) -> set[Result]:
        return await in_own_thread(partial(changed, suspects, images), "the log")

    return check


class Reruns:
    """Looks for stale results of one engine; `open` begins, `close` ends."""

    def __init__(self, runtime: Runtime, contents: Contents, check: Check, ask: Ask) -> None:
        self._runtime = runtime
        self._contents = contents
        self._check = check
        self._ask = ask
        self._tasks = {
            task.name: runtime.state.tasks[task.name]
            for task in runtime.state.definition.tasks
            if task.on_change == "rerun"
        }
        self._readers: dict[str, list[TaskState]] = {}
        self._due: set[tuple[str, int]] = set()
        self._again: Counter[tuple[str, int]] = Counter()
        self._is_busy = False
        self._images: dict[str, str] = {}
        self._images_differ = any(task.definition.done_shape == "pod" for task in self._tasks.values())

    def open(self) -> None:
        """Look at all results, and listen from now on."""
        state = self._runtime.state
        for task in self._tasks.values():
            for leaf in read_by(state, task):
                self._readers.setdefault(leaf, []).append(task)
        found = look(state, self._tasks)
        self._due |= {(task, job) for task, jobs in found.code.items() for job in jobs}
        self._due |= {(suspect.task, suspect.job) for suspect in found.suspects}
        self._runtime.listeners.append(self._see)
        self._begin()

    def close(self) -> None:
        """Listen no more."""
        if self._see in self._runtime.listeners:
            self._runtime.listeners.remove(self._see)

    def _see(self, batch: e.Batch) -> None:
        state = self._runtime.state
        for event in batch.events:
            if isinstance(event, e.ValuePut | e.ValueDeleted):
                for task in self._readers.get(event.repository, ()):
                    self._suspect(task, suspected(state, task, event.repository, state.job_index[event.job]))
            elif isinstance(event, e.RunEnded) and event.outcome == "succeeded" and event.task in self._tasks:
                self._suspect(self._tasks[event.task], (state.job_index[event.job],))
                self._note_images((event.detail or {}).get(e.IMAGES, ""))
        self._begin()

    def _note_images(self, text: str) -> None:
        """Look at all pods' results where an image is another one than that of the run before, or the first here."""
        for name, digest in images_in(text).items():
            if self._images.get(name) != digest:
                self._images_differ = True
            self._images[name] = digest

    def _suspect(self, task: TaskState, jobs: tuple[int, ...]) -> None:
        masks = self._runtime.state.masks
        self._due |= {(task.name, job) for job in jobs if masks[job] & task.succeeded.bit}

    def _begin(self) -> None:
        if (self._due or self._images_differ) and not self._is_busy and self._runtime.failure is None:
            self._is_busy = True
            self._runtime.background.spawn(self._look(), "the look for results that are out of date")

    async def _look(self) -> None:
        try:
            while (self._due or self._images_differ) and self._runtime.failure is None:
                await self._contents.hashed()
                await self._runtime.flushed()
                due, self._due = self._due, set()
                images, self._images_differ = self._images_differ, False
                found = look(self._runtime.state, {task for task, _ in due})
                stale = {(task, job) for task, jobs in found.code.items() for job in jobs}
                suspects = [one for one in found.suspects if (one.task, one.job) in due - stale]
                changed = await self._check(suspects, images) if suspects or images else set()
                await self._retry((stale & due) | changed)
        finally:
            self._is_busy = False

    async def _retry(self, stale: set[tuple[str, int]]) -> None:
        state = self._runtime.state
        for name, task in self._tasks.items():
            jobs = sorted(job for of, job in stale if of == name and self._may_run(task, job))
            if jobs:
                self._again.update((name, job) for job in jobs)
                names = tuple(state.jobs[job] for job in jobs)
                await self._ask(
                    r.RetryJobs(id=str(uuid.uuid4()), actor=e.ENGINE, reason=REASON, task=name, jobs=names)
                )

    def _may_run(self, task: TaskState, job: int) -> bool:
        """Whether a job is still as it was looked at, and may be run again."""
        if not self._runtime.state.masks[job] & task.succeeded.bit or get_at(task.last_run, job) == 0:
            return False
        if self._again[task.name, job] < RERUNS_MAX:
            return True
        if self._again[task.name, job] == RERUNS_MAX:
            self._again[task.name, job] += 1
            logger.warning(
                "%s %s was run again %d times since its result was out of date each time: it is left as it is",
                task.name,
                self._runtime.state.jobs[job],
                RERUNS_MAX,
            )
        return False
