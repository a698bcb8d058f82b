"""`logs`: what a run printed, kept beside the log; or what one that goes on prints, as it comes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import click

from datatask.adapters.cli.commands import JOB, command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import Recorded, changed, recorded
from datatask.adapters.cli.settings import Settings
from datatask.adapters.cli.terminal import note_interrupts
from datatask.adapters.history import shapes
from datatask.adapters.history.printed import printed_by, run_of, shape, text_of
from datatask.adapters.history.states import follow as fold_more
from datatask.engine.core.tasks import OpenRun
from datatask.engine.ports import Filters
from datatask.schema.errors import NotPossibleError
from datatask.schema.messages import Printed
from datatask.schema.troubles import shown

FOLLOW_SECONDS = 0.3


@command(
    "logs",
    example="datatask logs resize cat\ndatatask logs resize cat --tail 20\ndatatask logs resize cat --follow",
)
@click.argument("task")
@click.argument("job", type=JOB)
@click.option("--run", "run", type=click.IntRange(1), metavar="N", help="That run, in place of the last one.")
@click.option("--tail", type=click.IntRange(1), metavar="N", help="Only the last N lines of each stream.")
@click.option("-f", "--follow", is_flag=True, help="Print what a run that goes on prints, until it is over.")
def logs(settings: Settings, task: str, job: str, run: int | None, tail: int | None, follow: bool) -> None:
    """Show what a job's run printed: its standard output and error, and what a function logged.

    With --json: {"task", "job", "run", "open", "streams": [{"stream", "size", "text"}]}.
    """
    output = Output(settings)
    with recorded(settings) as log:
        shapes.find_task(log.state, task)
        number = run_of(log.reader, log.state, task, job, run)
        going = log.state.open_runs.get(number)
        if follow and going is not None:
            note_interrupts()
            if _follow(settings, log, going):
                return
        printed = printed_by(log.reader, [number]).get(number, [])
        still = number in log.state.open_runs
        if output.json:
            document = {"task": task, "job": job, "run": number, "open": still}
            output.document(document | {"streams": [shape(one) for one in printed]})
            return
        _show(output, printed, tail)
        if not printed:
            output.say(_why_nothing(log, task, number, still))


def _why_nothing(log: Recorded, task: str, run: int, still: bool) -> str:
    if not log.state.tasks[task].definition.logs:
        return f"nothing is kept of what runs of {task} print: logs=False"
    if still:
        return f"run {run} goes on: --follow prints what it prints"
    return f"run {run} printed nothing, or what it printed has been removed"


def _show(output: Output, printed: Sequence[Printed], tail: int | None) -> None:
    for one in printed:
        if len(printed) > 1:
            output.line(f"--- {one.stream}")
        lines = text_of(one).splitlines()
        for line in lines[-tail:] if tail else lines:
            output.line(shown(line))


def _follow(settings: Settings, log: Recorded, run: OpenRun) -> bool:
    """Print what an open run prints until it is over; return whether all of it was printed."""
    from datatask.adapters.cli.shell import place_of

    try:
        place = place_of(settings, log, run)
    except NotPossibleError:  # a function: its engine tells what it printed
        _follow_kept(log, run)
        return True
    streams = ("logs",) if "pod" in (run.handle or {}) else ("stdout", "stderr")

    async def following() -> None:
        offsets, after, over = dict.fromkeys(streams, 0), log.state.position, False
        try:
            while True:
                for name in streams:
                    while data := await place.read(name, offsets[name]):
                        sys.stdout.buffer.write(data)
                        sys.stdout.buffer.flush()
                        offsets[name] += len(data)
                if over:
                    return
                await asyncio.sleep(FOLLOW_SECONDS)
                ended = Filters(kinds=("RunEnded",), runs=(run.run,))
                over = any(True for _ in log.reader.read(after, filters=ended))
        finally:
            await place.close()

    asyncio.run(following())
    return True


def _follow_kept(log: Recorded, run: OpenRun) -> None:
    """Print what the engine keeps of a function's run as it comes, until it is over."""
    state, seen = log.state, {"stdout": 0, "stderr": 0}
    over = False
    while True:
        for one in printed_by(log.reader, [run.run]).get(run.run, []):
            data = one.head + one.tail
            fresh = data[max(0, len(data) - (one.size - seen[one.stream])) :]
            seen[one.stream] = one.size
            sys.stdout.buffer.write(fresh)
            sys.stdout.buffer.flush()
        if over:
            return
        changed(log.reader, state.position, FOLLOW_SECONDS)
        state = fold_more(log.reader, state)
        if run.run not in state.open_runs:
            changed(log.reader, state.position, FOLLOW_SECONDS)  # the last of it is written a moment later
            over = True
