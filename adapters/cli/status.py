"""`status` and `trace`: how many jobs are where, and where a job is, link by link and over time; from the log alone.

Piped, `status` is pydatatask's text, line for line; on a terminal a table per task, with what is held, paused, or wrong with the
engine. `--watch` folds only what was appended since, and prints again when the numbers changed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from datatask.adapters.cli.commands import JOB, WHEN, command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import Recorded, Seen, changed, seen
from datatask.adapters.cli.settings import Settings
from datatask.adapters.cli.terminal import note_interrupts
from datatask.adapters.history import shapes
from datatask.adapters.history.moments import When
from datatask.adapters.history.printed import last_lines, printed_by
from datatask.adapters.history.stale import counts as stale_counts
from datatask.adapters.history.stale import find_stale, stale_lines
from datatask.adapters.history.states import follow
from datatask.adapters.history.timeline import Timeline, draw, save
from datatask.adapters.history.timeline import lines as text_lines
from datatask.adapters.history.timeline_spans import timeline
from datatask.adapters.history.verify.progress import verified
from datatask.adapters.log.lease import probe
from datatask.engine.core.cells import get_at
from datatask.engine.core.expressions import set_text
from datatask.engine.core.state import State
from datatask.schema import definition as d
from datatask.schema.errors import InvalidValueError, NoLogError, UnknownNameError, unknown
from datatask.schema.troubles import shown
from datatask.schema.units import NANO, amount_figure

WATCH_SECONDS = 1.0
NEAR_AMONG_MAX = 10_000
"""Among more jobs no similar name is looked for."""
ENGINE_SECONDS = 2.0


@command(
    "status",
    example="datatask status\ndatatask status --all --at -2h\ndatatask --log .datatask/log.db status --json",
)
@click.option("--watch", is_flag=True, help="Print again whenever something changes, until interrupted.")
@click.option("--at", type=WHEN, metavar="WHEN", help="As of a position, an ISO time or an age such as -2h.")
@click.option(
    "-a", "--all", "all_links", is_flag=True, help="Also links that are no input, output or status."
)
def status(settings: Settings, all_links: bool, at: When | None, watch: bool) -> None:
    """Count jobs per task and link."""
    if watch and at is not None:
        raise InvalidValueError("--watch looks at the present", remedy="leave out --at or --watch")
    output = Output(settings)
    if watch:
        note_interrupts()
    with seen(settings, at) as log:
        show(output, log, all_links)
        if watch:
            _watch(output, log, all_links)


def _watch(output: Output, log: Seen, all_links: bool) -> None:
    if log.reader is None:
        raise NoLogError(
            "there is no log yet to watch", where=str(log.about["url"]), remedy="start `datatask run`"
        )
    while True:
        before = shapes.status(log.state, all_links)
        if not changed(log.reader, log.state.position, WATCH_SECONDS):
            continue
        state = follow(log.reader, log.state)
        log = log._replace(state=state, about=Recorded(log.reader, state).about())
        if shapes.status(log.state, all_links) != before:
            show(output, log, all_links, again=True)
        time.sleep(0.2)


def show(output: Output, log: Seen, all_links: bool, *, again: bool = False) -> None:
    """Print the status once."""
    counts = shapes.status(log.state, all_links)
    found = troubles(log.state) | ({} if log.past or log.reader is None else _engine(log.reader.path))
    outdated = {} if log.reader is None else stale_counts(find_stale(log.reader, log.state))
    if output.json:
        chosen = output.chosen(("log", "tasks", "quotas", "troubles", "stale", "verified"))
        document = {
            "log": log.about,
            **counts,
            "troubles": found,
            "stale": outdated,
            "verified": verified(log.reader)._asdict(),
        }
        output.document({name: document[name] for name in chosen})
    elif output.draws or output.colored:
        _draw(output, log, counts, found | stale_lines(outdated), again)
    else:
        for line in lines(counts):
            output.line(line)
        for name, trouble in (found | stale_lines(outdated)).items():
            output.say(f"{name} {trouble}")
        if log.reader is not None and not log.past:
            output.say(str(verified(log.reader)))
    sys.stdout.flush()


def lines(counts: dict[str, Any]) -> list[str]:
    """Return the counts as pydatatask's text: task, `task.link COUNT`, an empty line."""
    found = []
    for name, task in counts["tasks"].items():
        found.append(name)
        found += [f"{name}.{link} {shape['count']}" for link, shape in task["links"].items()]
        found.append("")
    return found


def troubles(state: State) -> dict[str, str]:
    """Return the trouble of each repository: held contents, failed listings, missed changes."""
    found = {}
    for leaf in state.leaves.values():
        if leaf.held:
            found[leaf.id] = f"is held: {leaf.held}; if that is true: datatask run --accept-loss {leaf.id}"
        elif leaf.trouble:
            found[leaf.id] = f"cannot be listed: {leaf.trouble}"
        elif leaf.missed:
            found[leaf.id] = missed(leaf.missed)
    return found


def missed(count: int) -> str:
    """Return the line about changes that a repository's notices missed."""
    changes = "1 change was" if count == 1 else f"{count} changes were"
    return (
        f"{changes} not told by the file system since the engine opened; a comparison found and mended that"
    )


def _engine(path: Path) -> dict[str, str]:
    """Return what is wrong with the engine on the log, by its own word."""
    if probe(path) is None:
        return {}
    from datatask.adapters.log.inbox_client import take_pulse
    from datatask.adapters.wiring.opening import actor

    return take_pulse(path, actor("datatask status"), ENGINE_SECONDS).troubles()


def _draw(output: Output, log: Seen, counts: dict[str, Any], found: dict[str, str], again: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    console = output.console()
    if again:
        console.clear()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("task", "ready", "live", "succeeded", "failed"):
        table.add_column(title, justify="left" if title == "task" else "right")
    for name, task in counts["tasks"].items():
        paused = " (paused)" if task["paused"] else ""
        table.add_row(
            Text(name, "bold") + Text(paused, "yellow"),
            str(task["ready"]),
            Text(str(task["live"]), "cyan" if task["live"] else ""),
            Text(str(task["succeeded"]), "green" if task["succeeded"] else ""),
            Text(str(task["failed"]), "red" if task["failed"] else ""),
        )
        for link, shape in task["links"].items():
            table.add_row(Text(f"  {link} {shape['count']}", "dim"))
    console.print(table)

    def figure(what: str, amount: float) -> str:
        return amount_figure(what, round(amount * NANO))

    for name, quota in counts["quotas"].items():
        used = ", ".join(
            f"{what} {figure(what, quota['used'].get(what, 0))} of {figure(what, limit)}"
            for what, limit in quota["limit"].items()
        )
        console.print(Text(f"quota {name}: {used}"))
    for name, trouble in found.items():
        console.print(Text(shown(f"{name} {trouble}"), "yellow"))
    about = (
        f"as of position {log.about['head']}, {log.about['at']}" if log.reader else "no log yet: as found now"
    )
    console.print(Text(about, "dim"))
    if log.reader is not None and not log.past:
        console.print(Text(str(verified(log.reader)), "dim"))


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
        for job in jobs:
            if job not in log.state.job_index:
                few = log.state.job_index if len(log.state.jobs) <= NEAR_AMONG_MAX else ()
                raise unknown("job", job, few)
        wanted = output.json or svg is not None or (output.draws if with_timeline is None else with_timeline)
        lines = _timelines(log, jobs) if wanted else {}
        if svg is not None:
            _draw_jobs(output, svg, log, list(lines.values()))
        if svg == "-":
            return
        if output.json:
            output.document(
                [
                    _path(log.state, job, all_links)
                    | _timeline_shape(lines.get(job))
                    | {"printed": _printed(log, job)}
                    for job in jobs
                ]
            )
            return
        for line in _lines(log.state, jobs, all_links):
            output.line(line)
        for found in lines.values() if with_timeline or (with_timeline is None and output.draws) else ():
            for line in text_lines(found):
                output.line(shown(line))
            for task, printed in _printed(log, found.job).items():
                output.line(shown(f"{task} run {printed['run']} printed:"))
                for line in printed["lines"]:
                    output.line(shown(f"  | {line}"))
            output.line()


def _timelines(log: Seen, jobs: tuple[str, ...]) -> dict[str, Timeline]:
    """Return the time lines of those jobs that the log knows."""
    if log.reader is None:
        return {}
    known = [job for job in dict.fromkeys(jobs) if job in log.state.job_index]
    return {job: timeline(log.reader, log.state, job) for job in known}


def _printed(log: Seen, job: str) -> dict[str, dict[str, Any]]:
    """Return the last lines of a job's last run in each task, where any are kept."""
    index = log.state.job_index.get(job)
    if log.reader is None or index is None:
        return {}
    runs = {task.name: get_at(task.last_run, index) for task in log.state.tasks.values()}
    printed = printed_by(log.reader, [run for run in runs.values() if run])
    return {
        task: {"run": run, "lines": last_lines(printed[run])} for task, run in runs.items() if run in printed
    }


def _draw_jobs(output: Output, svg: str, log: Seen, lines: list[Timeline]) -> None:
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
