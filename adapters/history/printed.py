"""What runs printed, for people: as text, its last lines, and the run that is meant by a task and a job.

In: a log, its state, runs. Out: `Printed` by run from the file beside the log, and lines of text, where what is no text is replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datatask.adapters.log.kept import read_kept
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.cells import get_at
from datatask.engine.core.state import State
from datatask.schema.errors import UnknownNameError
from datatask.schema.events import LaunchDecided
from datatask.schema.messages import Printed

LINES = 5
LINE_CHARS_MAX = 500


def run_of(reader: LogReader, state: State, task: str, job: str, run: int | None = None) -> int:
    """Return the number of a job's last run in a task, or check the one that is given; `UnknownNameError` where it has none."""
    if run is not None:
        found = reader.fetch([run])[0] if 0 < run <= state.position else None
        if not isinstance(found, LaunchDecided) or (found.task, found.job) != (task, job):
            raise UnknownNameError(
                f"run {run} is none of {job} in {task}", remedy="`datatask runs` lists the runs"
            )
        return run
    index = state.job_index.get(job)
    last = 0 if index is None else get_at(state.tasks[task].last_run, index)
    if not last:
        raise UnknownNameError(f"{job} has had no run in {task}", remedy="`datatask runs` lists the runs")
    return last


def printed_by(reader: LogReader, runs: Sequence[int]) -> dict[int, list[Printed]]:
    """Return what is kept of these runs."""
    return read_kept(reader.path, reader.uuid, runs)


def text_of(printed: Printed) -> str:
    """Return a stream as text; where something was left out in the middle, a line says how much."""
    left_out = printed.size - len(printed.head) - len(printed.tail)
    middle = f"\n… {left_out} bytes left out …\n" if left_out > 0 else ""
    return printed.head.decode(errors="replace") + middle + printed.tail.decode(errors="replace")


def last_lines(printed: Sequence[Printed], most: int = LINES) -> list[str]:
    """Return the last lines of stderr, or of stdout where nothing was printed there."""
    streams = {one.stream: one for one in printed}
    chosen = streams.get("stderr") or next(iter(streams.values()), None)
    if chosen is None:
        return []
    lines = text_of(chosen).rstrip().splitlines()[-most:]
    return [line if len(line) <= LINE_CHARS_MAX else f"{line[:LINE_CHARS_MAX]}…" for line in lines]


def shape(printed: Printed) -> dict[str, Any]:
    """Return a stream as plain values."""
    return {"stream": printed.stream, "size": printed.size, "text": text_of(printed)}
