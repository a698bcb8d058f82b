"""Where the time of jobs went, asked of a log: one job's intervals, and sums over all by task, host, day, job, cause.

In: a reader and what is asked. Out: `Interval`s, or a `Table`. The whole log is folded once, beside it the episodes
that are open are kept, and nothing that grows with the number of events.
"""

from __future__ import annotations

from datatask.adapters.history.states import beginning, collector_off
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.timelines import Episode, Interval
from datatask.engine.core.waiting import Waits


def intervals_of(reader: LogReader, job: str, until: int) -> list[Interval]:
    """Return what a job's time went to, in every task, up to the batch boundary `until`.

    Sorted by task, then by time. Those of one episode follow on each other without gaps; `ended` is None on the
    last one of an episode that is still open.
    """
    found = episodes_of(reader, job, until)
    return sorted(
        (one for episode in found for one in episode.intervals), key=lambda one: (one.task, one.start)
    )


def episodes_of(reader: LogReader, job: str, until: int, at: int = 0) -> list[Episode]:
    """Return a job's episodes with their intervals, in the order of their ends; open ones up to `at` if it is later."""
    found: list[Episode] = []
    with collector_off():
        waits = Waits(beginning(reader), found.append, job=job)
        for batch in reader.batches(waits.state.position, until):
            waits.take(batch)
        waits.finish(at)
    return found
