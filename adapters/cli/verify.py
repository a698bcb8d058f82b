"""`verify` and `log-anchor`: whether a log is what was written, and the hash to note so that anybody can tell later.

In: a log, and anchors that were noted elsewhere. Out: a line for each thing that does not fit, with file, position and
remedy; what was checked; and what the answer rests on. Exit code 3 when anything does not fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from datatask.adapters.cli.options import command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.progress_bar import progress_bar
from datatask.adapters.cli.recorded import opened
from datatask.adapters.cli.settings import Settings
from datatask.adapters.history.verify.verify import LogVerified, verify_log
from datatask.adapters.log.integrity.verify import append_anchor, head_anchor, read_anchors
from datatask.schema.troubles import shown
from datatask.schema.units import iso

DIFFERENT = 3


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

    Exit code 3 when anything does not fit; each thing is told with its position and what to do.
    """
    output = Output(settings)
    noted = [anchor for path in anchors for anchor in read_anchors(path)]
    with opened(settings) as reader, progress_bar(output, "verifying", reader.head) as progress:
        found = verify_log(reader, anchors=noted, progress=progress)
    _tell(output, found)
    return 0 if found.ok else DIFFERENT


def _tell(output: Output, found: LogVerified) -> None:
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
    """Print the hash of the log's head as one line of JSON, to be kept where nobody who writes the log can change it.

    With FILE it is also appended there. `datatask verify --anchor FILE` then finds a rewritten or cut log.
    """
    from datatask.adapters.clock import SystemClock

    with opened(settings) as reader:
        anchor = head_anchor(reader, iso(SystemClock().now()) or "")
    if file is not None:
        append_anchor(file, anchor)
    Output(settings).line(anchor.line())
