"""`replay`, `verify` and `log-anchor`: a log folded from its beginning, checked, or compared with another definition.

In: a log; no checkpoint is used; a definition (`--against PIPELINE`); anchors. Out: the state that follows, each difference with
file, position and remedy, what was checked, and what the answer rests on. Exit code 3 where anything does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from datatask.adapters.cli.commands import WHEN, command
from datatask.adapters.cli.loading import load, parse_reference
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.progress_bar import progress_bar
from datatask.adapters.cli.recorded import opened
from datatask.adapters.cli.settings import Settings
from datatask.adapters.cli.status import lines
from datatask.adapters.history.compare import OtherDefinition, other_definition, read_definition, texts
from datatask.adapters.history.moments import When, position_of
from datatask.adapters.history.replay import Replayed, replayed
from datatask.adapters.history.verify.verify import LogVerified, verify_log
from datatask.adapters.log.integrity.verify import append_anchor, head_anchor, read_anchors
from datatask.adapters.log.locate import at_home, locate
from datatask.adapters.log.reader import LogReader
from datatask.schema.errors import InvalidValueError
from datatask.schema.troubles import shown
from datatask.schema.units import iso

DIFFERENT = 3


@command(
    "replay",
    example="datatask replay --at -1h\ndatatask replay .datatask/log.db --verify --json\n"
    "datatask replay --against changed.py\ndatatask replay --step",
)
@click.argument("place", required=False, metavar="[LOG]")
@click.option("--step", is_flag=True, help="Walk through event by event; `help` tells how.")
@click.option(
    "--verify", "checks", is_flag=True, help="Also check the chain, and each decision where it stands."
)
@click.option(
    "--at", type=WHEN, metavar="WHEN", help="Only up to a position, an ISO time or an age such as -2h."
)
@click.option(
    "--against",
    metavar="PIPELINE",
    help="Also tell what would have been different under this definition: FILE[:NAME], MODULE[:NAME], a definition"
    " in JSON, or another log.",
)
def replay(
    settings: Settings, place: str | None, at: When | None, checks: bool, step: bool, against: str | None
) -> int:
    """Fold a log from its beginning, without any checkpoint, and show the state that follows.

    Exit code 3 when something does not hold or would have been different. With --json: {"events", "head", "chain",
    "divergences", "differences", "seconds", "state"}.
    """
    output = Output(settings)
    if step and (checks or against is not None or output.json):
        raise InvalidValueError("--step walks by itself", remedy="leave out --verify, --against and --json")
    other = named_definition(against) if against is not None else None
    with _reading(settings, place) as reader:
        until = position_of(reader, at)
        if step:
            from datatask.adapters.cli.replay_step import walk

            walk(output, reader, until if at is not None else 0)
            return 0
        with progress_bar(output, "replaying", until) as progress:
            found = replayed(reader, until, verify=checks, against=other, progress=progress)
    _tell(output, found, reader, compared=other is not None and found.head == until)
    return DIFFERENT if found.divergences or found.differences else 0


@contextmanager
def _reading(settings: Settings, place: str | None) -> Iterator[LogReader]:
    if place is not None:
        if settings.log is not None:
            raise InvalidValueError("two logs are named", remedy="leave out --log or the argument")
        settings.log = place
    with opened(settings) as reader:
        yield reader


def _tell(output: Output, found: Replayed, reader: LogReader, *, compared: bool) -> None:
    shape = found.to_json()
    if output.json:
        output.document({name: shape[name] for name in output.chosen(tuple(shape))})
        return
    for one in found.divergences:
        output.line(shown(f"{reader.path.name} {one}"))
    output.line(found.summary())
    output.line()
    for line in lines(shape["state"]):
        output.line(line)
    if compared:
        for line in texts(list(found.differences), found.skipped):
            output.line(shown(line))


def named_definition(text: str) -> OtherDefinition:
    """Return the definition of a pipeline (as -p names one: declared, not run), of a JSON file, or of a log."""
    path = locate(text).path if "://" in text else at_home(text)
    found = read_definition(path) if path is not None else None
    if found is not None:
        return found
    return other_definition(load(parse_reference(text)).pipeline)


@command(
    "verify",
    example="datatask verify\ndatatask verify --anchor /mnt/elsewhere/anchors.jsonl\ndatatask verify --log log.db --json",
)
@click.option(
    "--anchor",
    "anchors",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also compare with the head hashes in a file that `log-anchor` wrote; may be repeated.",
)
def verify(settings: Settings, anchors: tuple[Path, ...]) -> int:
    """Check a log: its file, chain, blobs, and that all in it could follow on what came before.

    Exit code 3 when anything does not fit; each divergence is printed with its position and a remedy.
    """
    output = Output(settings)
    noted = [anchor for path in anchors for anchor in read_anchors(path)]
    with opened(settings) as reader, progress_bar(output, "verifying", reader.head) as progress:
        found = verify_log(reader, anchors=noted, progress=progress)
    _print_findings(output, found)
    return 0 if found.ok else DIFFERENT


def _print_findings(output: Output, found: LogVerified) -> None:
    if output.json:
        shape: dict[str, Any] = found.to_json()
        output.document({name: shape[name] for name in output.chosen(tuple(shape))})
        return
    for one in found.divergences:
        output.line(shown(f"{found.path} {one}"))
    for line in found.checked:
        output.line(shown(f"checked: {line}"))
    for line in found.rests_on:
        output.line(shown(f"rests on: {line}"))
    output.line(found.replayed.summary() if found.ok == found.replayed.ok else found.summary())


@command("log-anchor", example="datatask log-anchor\ndatatask log-anchor /mnt/elsewhere/anchors.jsonl")
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
def log_anchor(settings: Settings, file: Path | None) -> None:
    """Print the hash of the log's head as one line of JSON, to be kept where users who can write the log cannot change it.

    With FILE it is also appended there. `datatask verify --anchor FILE` then finds a rewritten or cut log.
    """
    from datatask.adapters.clock import SystemClock

    with opened(settings) as reader:
        anchor = head_anchor(reader, iso(SystemClock().now()) or "")
    if file is not None:
        append_anchor(file, anchor)
    Output(settings).line(anchor.line())
