"""`trace`: where a job is, link by link, and its way through every task as a time line; from the log alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from datatask.adapters.cli.options import JOB, WHEN, command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import Seen, seen
from datatask.adapters.cli.settings import Settings
from datatask.adapters.history import shapes
from datatask.adapters.history.moments import When
from datatask.adapters.history.timeline import Timeline, draw, save
from datatask.adapters.history.timeline import lines as text_lines
from datatask.adapters.history.timeline_spans import timeline
from datatask.engine.core.expressions import set_text
from datatask.engine.core.leaves import get_at
from datatask.engine.core.state import State
from datatask.schema import definition as d
from datatask.schema.errors import UnknownNameError
from datatask.schema.troubles import shown


@command(
    "trace",
    example="datatask trace cat dog\ndatatask trace cat --timeline\ndatatask trace cat --svg cat.svg\n"
    "datatask trace cat --at -1d --json",
)
@click.argument("jobs", nargs=-1, required=True, type=JOB, metavar="JOB...")
@click.option("--at", type=WHEN, metavar="WHEN", help="As of a position, an ISO time or an age such as -2h.")
@click.option(
    "--svg", metavar="FILE", help="Also draw the time lines into this file (`-`: only that, to stdout)."
)
@click.option(
    "--timeline/--no-timeline",
    "with_timeline",
    default=None,
    help="Also print the time lines; by default on a terminal.",
)
@click.option(
    "-a", "--all", "all_links", is_flag=True, help="Also links that are no input, output or status."
)
def trace(
    settings: Settings,
    jobs: tuple[str, ...],
    all_links: bool,
    with_timeline: bool | None,
    svg: str | None,
    at: When | None,
) -> None:
    """Show in which links jobs are, and their time lines: waiting, ready, running, ended in each task.

    With --json: [{"job", "tasks": {…}, "position", "until", "timeline": {NAME: […]}, "cut"}] as docs/cli.md says.
    """
    output = Output(settings)
    with seen(settings, at) as log:
        wanted = output.json or svg is not None or (output.draws if with_timeline is None else with_timeline)
        lines = _timelines(log, jobs) if wanted else {}
        if svg is not None:
            _draw(output, svg, log, list(lines.values()))
        if svg == "-":
            return
        if output.json:
            output.document(
                [_path(log.state, job, all_links) | _timeline_shape(lines.get(job)) for job in jobs]
            )
            return
        for line in _lines(log.state, jobs, all_links):
            output.line(line)
        for found in lines.values() if with_timeline or (with_timeline is None and output.draws) else ():
            for line in text_lines(found):
                output.line(shown(line))
            output.line()


def _timelines(log: Seen, jobs: tuple[str, ...]) -> dict[str, Timeline]:
    """Return the time lines of those jobs that the log knows."""
    if log.reader is None:
        return {}
    known = [job for job in dict.fromkeys(jobs) if job in log.state.job_index]
    return {job: timeline(log.reader, log.state, job) for job in known}


def _draw(output: Output, svg: str, log: Seen, lines: list[Timeline]) -> None:
    if not lines:
        raise UnknownNameError("the log knows none of these jobs", remedy="list jobs with `datatask ls`")
    text = draw(lines)
    if svg == "-":
        output.line(text.rstrip())
        return
    save(Path(svg), text)
    output.say(f"drawn: {svg}")


def _timeline_shape(line: Timeline | None) -> dict[str, Any]:
    """Return what the time line adds to the documented shape."""
    if line is None:
        return {"position": None, "until": None, "timeline": {}, "cut": False}
    plain = line.to_json()
    return {
        "position": plain["position"],
        "until": plain["until"],
        "timeline": {name: lane["spans"] for name, lane in plain["tasks"].items()},
        "cut": plain["cut"],
    }


def _lines(state: State, jobs: tuple[str, ...], all_links: bool) -> list[str]:
    """Return pydatatask's text: task, `task.link JOB JOB`, an empty line."""
    lines = []
    for task in state.definition.tasks:
        lines.append(task.name)
        for link in shapes.shown_links(task, all_links):
            there = shapes.members(state, link.expr)
            present = [job for job in jobs if job in state.job_index and state.job_index[job] in there]
            lines.append(f"{task.name}.{link.name} {' '.join(present)}".rstrip())
        lines.append("")
    return lines


def _path(state: State, job: str, all_links: bool) -> dict[str, Any]:
    tasks = {}
    for task in state.definition.tasks:
        links = {}
        for link in shapes.shown_links(task, all_links):
            index = state.job_index.get(job)
            present = index is not None and index in shapes.members(state, link.expr)
            links[link.name] = {
                "repository": set_text(link.expr),
                "present": present,
                "since": _since(state, link.expr, index) if present and index is not None else None,
            }
        tasks[task.name] = {"state": _state_of(state, task.name, job), "links": links}
    return {"job": job, "tasks": tasks}


def _since(state: State, expr: d.AnyExpr, job: int) -> int | None:
    position = get_at(state.leaves[expr.leaf].positions, job) if isinstance(expr, d.In) else 0
    return position if position > 0 else None


def _state_of(state: State, name: str, job: str) -> str:
    task, index = state.tasks[name], state.job_index.get(job)
    if index is None:
        return "absent"
    for leaf in (task.live, task.succeeded, task.failed):
        if state.contains(leaf.id, job):
            return leaf.id.partition("(")[0]
    episode = task.episodes.get(index)
    if episode is not None and episode.not_before is not None:
        return "retrying"
    return "ready" if index in task.queue or index in task.awaiting else "waiting"
