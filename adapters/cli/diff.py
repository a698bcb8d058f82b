"""`diff`: what differs between two runs of a job in a task."""

from __future__ import annotations

import click
import msgspec

from datatask.adapters.cli.commands import JOB, WHEN, command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import Recorded, recorded
from datatask.adapters.cli.settings import Settings
from datatask.adapters.history import shapes
from datatask.adapters.history.difference import differences
from datatask.adapters.history.moments import When, position_of
from datatask.schema.errors import UnknownNameError
from datatask.schema.troubles import shown


@command("diff", example="datatask diff resize cat\ndatatask diff resize cat --from -1d --to 4711")
@click.argument("task")
@click.argument("job", type=JOB)
@click.option(
    "--from", "before", type=WHEN, metavar="WHEN", help="The last run by then (the one before --to)."
)
@click.option("--to", "after", type=WHEN, metavar="WHEN", help="The last run by then (the last one).")
def diff(settings: Settings, task: str, job: str, before: When | None, after: When | None) -> None:
    """Tell what differs between two runs of JOB in TASK that succeeded: code, inputs, outputs.

    WHEN is a position (the number of a run is one), an ISO time or an age. With --json: {"task", "job", "runs", "differences"}.
    """
    with recorded(settings) as log:
        shapes.find_task(log.state, task)
        until = position_of(log.reader, after)
        runs = _runs(log, task, job, until)
        if not runs:
            raise UnknownNameError(
                f"no run of {task} {job} has succeeded by position {until}",
                remedy=f"`{settings.program} runs --task {task} --job {job}` lists its runs",
            )
        last = runs[0]
        earlier = _runs(log, task, job, position_of(log.reader, before)) if before is not None else runs[1:]
        if not earlier:
            raise UnknownNameError(
                f"{task} {job} has one run that succeeded by position {until}: run {last}",
                remedy=f"`{settings.program} why {task} {job}` tells what has changed since",
            )
        found = differences(log.reader, log.state, task, job, (earlier[0], last))
    output = Output(settings)
    if output.json:
        output.document(
            {"task": task, "job": job, "runs": [earlier[0], last], "differences": msgspec.to_builtins(found)}
        )
        return
    output.line(shown(f"{task} {job}: run {earlier[0]} -> run {last}"))
    for one in found:
        output.line(shown(f"  {one.text}"))
        for line in one.lines:
            output.line(shown(f"    {line}"))
    if not found:
        output.line("  nothing differs: code, inputs and outputs are the same")


def _runs(log: Recorded, task: str, job: str, until: int) -> list[int]:
    """Return the two last runs that were launched up to a position and succeeded, the newest first."""
    sql = (
        "SELECT run FROM runs WHERE task = ? AND job = ? AND run <= ? AND state = 'succeeded'"
        " ORDER BY run DESC LIMIT 2"
    )
    return [int(run) for (run,) in log.reader.query(sql, (task, job, until)).rows]
