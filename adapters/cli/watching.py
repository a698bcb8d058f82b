"""A bar for what takes long: on stderr, on a terminal only, and only once it has taken a while."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from datatask.adapters.cli.output import Output, is_terminal
from datatask.adapters.effort import effort

if TYPE_CHECKING:
    from rich.progress import Progress

AFTER_SECONDS = 0.5

Tell = Callable[[int, int], None]


@contextmanager
def progress_bar(output: Output, what: str, total: int) -> Iterator[Tell]:
    """Give the function to call with (done, in all)."""
    if not is_terminal(sys.stderr) or os.environ.get("TERM") == "dumb":
        yield lambda done, in_all: effort.at(f"{what} events", done, in_all)
        return
    began, bar = time.monotonic(), None
    task = None

    def tell(done: int, in_all: int) -> None:
        nonlocal bar, task
        if bar is None and time.monotonic() - began < AFTER_SECONDS:
            return
        if bar is None:
            bar = _bar(output)
            bar.start()
            effort.is_drawn = True
            task = bar.add_task(what, total=in_all)
        assert task is not None
        effort.at(f"{what} events", done, in_all)
        bar.update(task, completed=done, total=in_all)

    try:
        yield tell
    finally:
        if bar is not None:
            bar.stop()
            effort.is_drawn = False


def _bar(output: Output) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("events"),
        TimeRemainingColumn(),
        console=output.console(stderr=True),
        transient=True,
    )
