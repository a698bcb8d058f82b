"""How a run is going, for people: a live table on a terminal, a plain line every few seconds elsewhere.

In: the open pipeline's state, the batches that become durable, and the log's place. Out: per task what is done, live, ready and failed,
the runs that end per second, and `Foreseen`, the time that is left. That is worked out by a process that simulates
(`simulate --continue`) at the lowest priority, in an eighth of the memory, and rests a hundred times as long as cores worked.
Where it cannot tell (no run has ended, nothing can go on, too large a log), nothing is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from datatask.adapters.cli.output import Output
from datatask.adapters.log.locate import locate
from datatask.schema import events as e
from datatask.schema.units import duration_words

if TYPE_CHECKING:
    from rich.table import Table

    from datatask.adapters.wiring.pipeline import Pipeline


DRAW_SECONDS = 0.25
LINE_SECONDS = 5.0
WINDOW_SECONDS = 30.0
ENDINGS_MAX = 4096


FIRST_SECONDS = 5.0
REST_SECONDS = 20.0
REST_FACTOR = 100
REPLICATIONS = 5
WORTH_SECONDS = 4.0
LOWEST_PRIORITY = 19
MEMORY_SHARE = 8
"""Each of its processes may take one part in so many of the machine's memory."""


class TaskProgress(NamedTuple):
    """One task's numbers; `rate` is endings a second of late, `seconds_left` None where nobody can know."""

    name: str
    done: int
    live: int
    ready: int
    failed: int
    rate: float
    seconds_left: float | None


class Progress:
    """Counts what happens while the pipeline is open; `ended` by outcome, since this engine opened."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.began = time.monotonic()
        self.launched = 0
        self.ended: dict[str, int] = {}
        self.foreseen: Foreseen | None = None
        self._pipeline = pipeline
        self._endings: dict[str, deque[float]] = {}
        self._forget = pipeline.subscribe(self._batch)

    def close(self) -> None:
        """Count no more."""
        self._forget()

    @property
    def log(self) -> str:
        """The URL of the log."""
        return self._pipeline.runtime.log.url

    @property
    def seconds(self) -> float:
        """How long this has been going on."""
        return time.monotonic() - self.began

    def _batch(self, batch: e.Batch) -> None:
        now = time.monotonic()
        for event in batch.events:
            if isinstance(event, e.LaunchDecided):
                self.launched += 1
            elif isinstance(event, e.RunEnded):
                self.ended[event.outcome] = self.ended.get(event.outcome, 0) + 1
                self._endings.setdefault(event.task or "", deque(maxlen=ENDINGS_MAX)).append(now)

    def tasks(self) -> list[TaskProgress]:
        """Return the numbers of every task of the pipeline."""
        state = self._pipeline.state
        return [self._task(name) for name in self._pipeline.tasks if name in state.tasks]

    def _task(self, name: str) -> TaskProgress:
        task = self._pipeline.state.tasks[name]
        ready = len(task.queue) + len(task.awaiting)
        rate = self._rate(name)
        left = ready + task.open_runs
        seconds = left / rate if rate else None
        return TaskProgress(
            name,
            task.succeeded.count,
            task.open_runs,
            ready,
            task.failed.count,
            rate,
            seconds if left else 0.0,
        )

    def _rate(self, name: str) -> float:
        endings, now = self._endings.get(name), time.monotonic()
        if not endings:
            return 0.0
        since = max(self.began, now - WINDOW_SECONDS, endings[0] if len(endings) == ENDINGS_MAX else 0.0)
        recent = sum(1 for ending in reversed(endings) if ending >= since)
        return recent / max(now - since, 0.001)

    def line(self) -> str:
        """Return all tasks together in one line."""
        tasks = self.tasks()
        done, live, ready, failed = (
            sum(getattr(task, name) for task in tasks) for name in ("done", "live", "ready", "failed")
        )
        rate = sum(task.rate for task in tasks)
        return f"{duration_words(self.seconds)}: {done} done, {live} live, {ready} ready, {failed} failed" + (
            f", {rate:.1f}/s" if rate else ""
        )

    def foresee(self, foreseen: Foreseen | None) -> None:
        """Take what is left, as it was worked out beside."""
        self.foreseen = foreseen

    def caption(self) -> str:
        """Return how long it has been going on, and how long it still will where that is known."""
        if self.foreseen is None or not self.foreseen.now()[0]:
            return duration_words(self.seconds)
        middle, least, most = (duration_words(seconds) for seconds in self.foreseen.now())
        return f"{duration_words(self.seconds)}, about {middle} left" + (
            f" ({least} to {most})" if least != most else ""
        )

    def table(self) -> Table:
        """Return the drawn form."""
        from rich.table import Table
        from rich.text import Text

        table = Table(
            box=None, pad_edge=False, header_style="bold", caption=self.caption(), caption_justify="left"
        )
        for title in ("task", "done", "live", "ready", "failed", "rate", "left"):
            table.add_column(title, justify="left" if title == "task" else "right", min_width=6)
        for task in self.tasks():
            left = "" if not task.seconds_left else duration_words(task.seconds_left)
            table.add_row(
                Text(task.name, "bold"),
                Text(str(task.done), "green"),
                Text(str(task.live), "cyan" if task.live else ""),
                str(task.ready),
                Text(str(task.failed), "red" if task.failed else ""),
                f"{task.rate:.1f}/s" if task.rate else "",
                left,
            )
        return table


@asynccontextmanager
async def shown(output: Output, progress: Progress) -> AsyncIterator[None]:
    """Show the progress while the body runs: drawn, in lines, or with --json not at all."""
    if output.json:
        yield
        return
    teller = asyncio.create_task(_draw(output, progress) if output.draws else _tell(output, progress))
    try:
        yield
    finally:
        teller.cancel()
        await asyncio.gather(teller, return_exceptions=True)


async def _draw(output: Output, progress: Progress) -> None:
    log = locate(progress.log).path
    beside = None if log is None else asyncio.create_task(foresee(log, progress.foresee))
    try:
        with _live(output, progress) as refresh:
            while True:
                await asyncio.sleep(DRAW_SECONDS)
                refresh()
    finally:
        if beside is not None:
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)


@contextmanager
def _live(output: Output, progress: Progress) -> Iterator[Callable[[], None]]:
    from rich.live import Live

    with Live(progress.table(), console=output.console(), auto_refresh=False, transient=False) as live:
        try:
            yield lambda: live.update(progress.table(), refresh=True)
        finally:
            live.update(progress.table(), refresh=True)


async def _tell(output: Output, progress: Progress) -> None:
    while True:
        await asyncio.sleep(LINE_SECONDS)
        output.progress(progress.line())


class Foreseen(NamedTuple):
    """Seconds left, of five imagined futures the middle, the shortest and the longest; `at` is the monotonic clock's."""

    middle: float
    least: float
    most: float
    at: float

    def now(self) -> tuple[float, float, float]:
        """Return (middle, least, most) as of now."""
        passed = time.monotonic() - self.at
        return max(0.0, self.middle - passed), max(0.0, self.least - passed), max(0.0, self.most - passed)


async def foresee(
    log: Path, tell: Callable[[Foreseen | None], None], *, first: float = FIRST_SECONDS
) -> None:
    """Tell what is left, again and again, until cancelled."""
    await asyncio.sleep(first)
    while True:
        began = time.monotonic()
        tell(await _simulated(log))
        await asyncio.sleep(rest(time.monotonic() - began))


def rest(seconds: float) -> float:
    """Return how long to do nothing after so many seconds of work; long work is spread over cores."""
    cores = min(os.cpu_count() or 1, REPLICATIONS - 1) if seconds >= WORTH_SECONDS else 1
    return max(REST_SECONDS, REST_FACTOR * seconds * cores)


def _command(log: Path) -> list[str]:
    asked = ["simulate", "--continue", str(log), "--replications", str(REPLICATIONS), "--json"]
    return [sys.executable, "-m", "datatask", *asked]


async def _simulated(log: Path) -> Foreseen | None:
    process = await asyncio.create_subprocess_exec(
        *_command(log),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, LOWEST_PRIORITY)
            share = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MEMORY_SHARE
            resource.prlimit(process.pid, resource.RLIMIT_AS, (share, share))
        told, _ = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with those that it spread its work to
        await process.wait()
        raise
    if process.returncode != 0:
        return None
    (scenario,) = msgspec.json.decode(told)["scenarios"]
    makespan = scenario["makespan"]
    read_at = datetime.fromisoformat(scenario["done_at"]).timestamp() - scenario["left"]["p50"]
    passed = time.time() - read_at  # noqa: TID251 - the command tells a time of day, and may begin late
    return Foreseen(makespan["p50"], makespan["min"], makespan["max"], time.monotonic() - passed)
