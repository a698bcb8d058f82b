"""Commands that take long: they say how far they are, and end when the time is over that they were given.

In: a command at work, and `--budget`. Out: after two seconds of silence a line on stderr that is drawn anew, on a terminal;
elsewhere a line every five seconds, none with --json. When the budget is spent, what was found so far, and exit code 7.

A bar for what takes long: on stderr, on a terminal only, and only once it has taken a while.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from datatask.adapters.cli.output import Output, is_terminal
from datatask.adapters.clock import SpentError, effort
from datatask.adapters.wiring.last_bound import guard
from datatask.schema.errors import InvalidValueError, TimeLimitError
from datatask.schema.troubles import shown
from datatask.schema.units import duration_words

if TYPE_CHECKING:
    from rich.progress import Progress

    from datatask.adapters.cli.settings import Settings

T = TypeVar("T")

AFTER_SECONDS = 2.0
DRAW_SECONDS = 0.5
LINE_SECONDS = 5.0
AGAIN_SECONDS = 0.2
LOOP_SECONDS = 1.0
"""An event loop hears of it by itself (see `looping`), unless it is blocked."""
SPARE_SECONDS = 5.0
SPENT = 7
UNTOLD = frozenset(("run", "enter", "shell", "init", "completion"))
"""Commands that tell for themselves, or last as long as somebody wishes."""


def reporting(settings: Settings, name: str, work: Callable[[], T]) -> T:
    """Do the work of a command, report its progress, and end it when its budget is spent.

    A result of `SPENT` is that of work which has caught `SpentError` and given the results that it had.
    """
    effort.begin(name)
    budget = settings.budget
    if name in UNTOLD:
        if budget is not None:
            raise InvalidValueError(
                f"{name} has no budget",
                where="--budget",
                remedy="`run` has --timeout" if name == "run" else "leave it out",
            )
        return work()
    teller = _Teller(settings)
    try:
        with teller:
            return _limited(budget, work)
    except SpentError:
        teller.clear()
        raise _spent(settings, budget or 0.0) from None


def _spent(settings: Settings, budget: float) -> TimeLimitError:
    """Print what was found until now, and return the error that tells how far that is."""
    if not settings.json:
        for line in effort.so_far():
            sys.stdout.write(shown(line) + "\n")
    return TimeLimitError(
        f"not through in {budget:g} s{effort.words()}", where=effort.name, remedy="give it more by --budget"
    )


def _limited(budget: float | None, work: Callable[[], T]) -> T:
    """Do the work; raise `SpentError` in it after this many seconds.

    Where it is swallowed, as by Python in a callback of the garbage collector, it is raised again behind the work; after
    `SPARE_SECONDS` the process is ended. No context manager stands between: an error that is raised while one is entered passes
    it by.
    """
    if budget is None or threading.current_thread() is not threading.main_thread():
        return work()

    def spent(number: int, frame: FrameType | None) -> None:
        effort.was_raised = True
        late = time.monotonic() - (effort.ends or 0.0)
        if not _loop_runs() or late > LOOP_SECONDS:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise SpentError

    before = signal.signal(signal.SIGALRM, spent)

    def end() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        effort.ends = None
        guard.put_off()

    try:
        effort.ends = time.monotonic() + budget
        guard.within(budget + SPARE_SECONDS, SPENT, f"not through in {budget:g} s, nor ended since")
        signal.setitimer(signal.ITIMER_REAL, budget, AGAIN_SECONDS)
        result = work()
        if effort.was_raised and result != SPENT:
            raise SpentError
        return result
    finally:
        try:
            end()
        except SpentError:
            end()  # the time was over in the middle of it
            raise


def _loop_runs() -> bool:
    asyncio = sys.modules.get("asyncio")  # most commands do without, and it takes long to import
    return asyncio is not None and asyncio._get_running_loop() is not None


class _Teller:
    """A thread that looks now and then how far the work is."""

    def __init__(self, settings: Settings) -> None:
        self._draws = is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"
        self._silent = settings.json and not self._draws
        self._ended = threading.Event()
        self._began = time.monotonic()
        self._drawn = False

    def __enter__(self) -> None:
        if not self._silent:
            threading.Thread(target=self._tell, name="datatask-progress", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.clear()

    def clear(self) -> None:
        """Take away what is drawn."""
        if self._drawn:
            self._drawn = False
            _write("\r\x1b[2K")

    def _tell(self) -> None:
        every = DRAW_SECONDS if self._draws else LINE_SECONDS
        wait = AFTER_SECONDS if self._draws else LINE_SECONDS
        while not self._ended.wait(wait):
            now = time.monotonic()
            quiet = now - max(effort.said, self._began)
            if effort.is_idle or effort.is_drawn or quiet < AFTER_SECONDS:
                self.clear()
                wait = AFTER_SECONDS if self._draws else LINE_SECONDS
                continue
            wait = every
            line = shown(f"{effort.name}: {duration_words(now - self._began)}{effort.words()}")
            if not self._ended.is_set():
                _write(f"\r\x1b[2K{line[: _columns()]}" if self._draws else f"{line}\n")
                self._drawn = self._draws


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns - 1
    except (OSError, ValueError):
        return 79


def _write(text: str) -> None:
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


BAR_AFTER_SECONDS = 0.5

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
        if bar is None and time.monotonic() - began < BAR_AFTER_SECONDS:
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
