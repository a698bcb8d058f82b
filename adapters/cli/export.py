"""`export`: the log as files for other programs."""

from __future__ import annotations

import click

from datatask.adapters.cli.options import JOB, WHEN, command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import recorded
from datatask.adapters.cli.settings import Settings
from datatask.adapters.history.export.files import FORMATS, STDOUT, Format, Order, Written, export
from datatask.adapters.history.export.tables import TABLES, Wanted
from datatask.adapters.history.moments import When
from datatask.engine.ports import Filters
from datatask.schema.errors import unknown
from datatask.schema.events import KINDS


@command(
    "export",
    example="datatask export history --format parquet\ndatatask export runs.parquet --table runs --since -7d\n"
    "datatask export events.jsonl --task resize\ndatatask export - --format openlineage",
)
@click.argument("target")
@click.option("--format", "form", type=click.Choice(FORMATS), help="How; by default as TARGET ends.")
@click.option("--table", "names", multiple=True, type=click.Choice(TABLES), help="Which; may be repeated.")
@click.option("--force", is_flag=True, help="Write over what is there.")
@click.option("--at", type=WHEN, metavar="WHEN", help="As of a position, an ISO time or an age such as -2h.")
@click.option("--grep", "text", default="", metavar="TEXT", help="Only events that hold this text.")
@click.option("--until", type=WHEN, metavar="WHEN", help="Only what was recorded up to then.")
@click.option("--since", type=WHEN, metavar="WHEN", help="Only what was recorded from then on.")
@click.option("--actor", multiple=True, help="Only events that this one caused.")
@click.option("--run", type=click.IntRange(1), multiple=True, metavar="RUN", help="Only this run.")
@click.option("--kind", multiple=True, metavar="KIND", help="Only this kind of event.")
@click.option("--repository", multiple=True, metavar="REPO", help="Only this repository (id).")
@click.option("--job", type=JOB, multiple=True, help="Only this job.")
@click.option("--task", multiple=True, metavar="TASK", help="Only this task.")
def export_(
    settings: Settings,
    target: str,
    form: Format | None,
    names: tuple[str, ...],
    force: bool,
    at: When | None,
    task: tuple[str, ...],
    job: tuple[str, ...],
    repository: tuple[str, ...],
    kind: tuple[str, ...],
    run: tuple[int, ...],
    actor: tuple[str, ...],
    since: When | None,
    until: When | None,
    text: str,
) -> None:
    """Write the log as files: Parquet, CSV, JSON lines, OpenLineage.

    TARGET is a file, a directory (Parquet of all tables, or several tables), or - for stdout.
    """
    for name in kind:
        if name not in KINDS:
            raise unknown("kind of event", name, KINDS)
    filters = Filters(kind, task, repository, job, run, actor, text=text)
    order = Order(target, form, names, Wanted(filters, since, until), force)
    output = Output(settings)
    with recorded(settings, at, events=True) as log:
        written = export(log.reader, log.state, order)
        position = log.state.position
    if target != STDOUT:
        _tell(output, written, position)


def _tell(output: Output, written: list[Written], position: int) -> None:
    if output.json:
        output.document({"position": position, "files": [file._asdict() for file in written]})
        return
    for file in written:
        output.line(f"{file.path}: {file.rows} rows")
