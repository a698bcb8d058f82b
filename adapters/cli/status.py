"""`status`: how many jobs are where, per task and link, from the log alone.

Piped, the text is pydatatask's, line for line; on a terminal it is a table per task, with what is held or paused
beside it, and what is wrong with the engine, by its own word. `--watch` folds only what was appended since, and prints
again when the numbers changed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from datatask.adapters.cli.options import WHEN, command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import Recorded, Seen, changed, seen
from datatask.adapters.cli.settings import Settings
from datatask.adapters.cli.terminal import note_interrupts
from datatask.adapters.history import shapes
from datatask.adapters.history.moments import When
from datatask.adapters.history.states import follow
from datatask.adapters.history.verify.progress import verified
from datatask.adapters.log.lease import probe
from datatask.engine.core.state import State
from datatask.schema.errors import InvalidValueError, NoLogError
from datatask.schema.troubles import shown

WATCH_SECONDS = 1.0
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
    if output.json:
        chosen = output.chosen(("log", "tasks", "quotas", "troubles", "verified"))
        document = {"log": log.about, **counts, "troubles": found, "verified": verified(log.reader)._asdict()}
        output.document({name: document[name] for name in chosen})
    elif output.draws or output.colored:
        _draw(output, log, counts, found, again)
    else:
        for line in lines(counts):
            output.line(line)
        for name, trouble in found.items():
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
    for name, quota in counts["quotas"].items():
        used = ", ".join(
            f"{what} {quota['used'].get(what, 0):g} of {limit:g}" for what, limit in quota["limit"].items()
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
