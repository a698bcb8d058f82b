"""`ls`, `cat`, `inject`, `rm`: which jobs are where, their values, and changes to both.

Reading works on the log alone; a value that only a foreign store has is read from there when it is a file, or
with the pipeline when `-p` names one.
"""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click

from datatask.adapters.cli import shapes
from datatask.adapters.cli.asking import Change, Wish, carry_out, sliced, who
from datatask.adapters.cli.downstream import positive, reached
from datatask.adapters.cli.injecting import document_of, portions, read_many
from datatask.adapters.cli.options import JOB, WHEN, changing, command
from datatask.adapters.cli.output import Output, shown
from datatask.adapters.cli.people import told
from datatask.adapters.cli.present import seen
from datatask.adapters.cli.recorded import Recorded, recorded
from datatask.adapters.cli.settings import Settings
from datatask.adapters.cli.when import When
from datatask.adapters.wiring.sets import evaluate, parse
from datatask.engine.core.members import get_at
from datatask.engine.core.state import State
from datatask.engine.ports import Blobs
from datatask.schema import definition as d
from datatask.schema import requests as r
from datatask.schema.errors import CallerError, UnknownNameError
from datatask.schema.events import ValuePut
from datatask.schema.ids import check_job
from datatask.schema.values import decode_value

EVERY_JOB = "__all__"
_LOCATED = re.compile(r"\w+:(?P<folder>/.*)/\*(?P<extension>[^?]*)")


@command(
    "ls",
    example="datatask ls resize.photo - resize.done\ndatatask ls 'resize.failed & (a.in | b.in)'\n"
    "datatask ls resize.ready --at -1h",
    ignore_unknown=True,
)
@click.argument("expression", nargs=-1, required=True, metavar="EXPR...")
@click.option("--at", type=WHEN, metavar="WHEN", help="As of a position, an ISO time or an age such as -2h.")
def ls(settings: Settings, expression: tuple[str, ...], at: When | None) -> None:
    """List the jobs of a set expression, sorted.

    Names are task.link, task.ready, task.live, task.succeeded, task.failed, or repository ids, in quotes where
    they hold spaces; operators are & | - ^ and parentheses, with Python's precedence.
    """
    with seen(settings, at) as log:
        known = shapes.set_names(log.state)
        tree = parse(" ".join(expression), known)
        found = evaluate(tree, lambda name: shapes.named_set(log.state, known, name))
        jobs = shapes.job_names(log.state, found)
    output = Output(settings)
    if output.json:
        output.document(jobs)
    else:
        for job in jobs:
            output.line(job)


# --- cat --------------------------------------------------------------------------------------------


class Value(NamedTuple):
    """A job's value: a document, or bytes."""

    repository: str
    position: int | None
    document: Any = None
    data: bytes | None = None


@command("cat", example="datatask cat resize.done cat\ndatatask cat resize.photo cat > cat.png")
@click.argument("repository", metavar="TASK.LINK")
@click.argument("job", type=JOB)
@click.option("--at", type=WHEN, metavar="WHEN", help="As of a position, an ISO time or an age such as -2h.")
def cat(settings: Settings, repository: str, job: str, at: When | None) -> None:
    """Print a job's value: bytes as they are, a document as YAML.

    With --json: {"repository", "job", "position", "value"}, or "base64" instead of "value" for bytes.
    """
    with recorded(settings, at) as log:
        found = _value(settings, log, repository, job, present=at is None)
    if Output(settings).json:
        content = (
            {"value": found.document}
            if found.data is None
            else {"base64": base64.b64encode(found.data).decode()}
        )
        shape = {"repository": found.repository, "job": job, "position": found.position, **content}
        Output(settings).document(shape)
        return
    if found.data is not None:
        data = found.data
    else:
        from datatask.adapters.store.yamls import dump_yaml

        data = dump_yaml(found.document, f"{repository} {job}")
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _value(settings: Settings, log: Recorded, name: str, job: str, *, present: bool) -> Value:
    state = log.state
    expr = shapes.find_link(state, name)
    index = state.job_index.get(job)
    leaves = [leaf for leaf in positive(expr) if state.contains(leaf, job)]
    if index is None or not leaves or index not in shapes.members(state, expr):
        raise UnknownNameError(
            f"{job} is not there", where=name, remedy=f"see `{settings.command('ls', name)}`"
        )
    definition = state.leaves[leaves[0]].definition
    if definition.derived is None:
        position = get_at(state.leaves[leaves[0]].positions, index)
        (event,) = log.reader.fetch([position])
        assert isinstance(event, ValuePut)
        if event.value:
            return Value(leaves[0], position, document=decode_value(event.value))
        if event.digest is not None and (blob := _blob(log, event.digest)) is not None:
            document = decode_value(blob) if takes_documents(definition) else None
            return Value(leaves[0], position, document, None if takes_documents(definition) else blob)
        if present and (data := _file(definition, job)) is not None:
            return Value(leaves[0], position, data=data)
    if not present or not settings.names_pipeline:
        raise CallerError(
            "the log has only that this job is there, not its value",
            where=f"{leaves[0]} {job}",
            remedy="name the pipeline with -p to read it from its store, without --at",
        )
    return _from_store(settings, name, job)


def _blob(log: Recorded, digest: str) -> bytes | None:
    from datatask.adapters.log.blobs import FileBlobs
    from datatask.adapters.log.locate import blobs_path

    try:
        return FileBlobs(blobs_path(log.reader.path)).path(digest).read_bytes()
    except UnknownNameError:
        return None


def _file(definition: d.RepositoryDef, job: str) -> bytes | None:
    """Return the content of a file whose place the definition tells."""
    located = _LOCATED.fullmatch(definition.locator or "")
    if located is None:
        return None
    path = Path(located["folder"]) / f"{job}{located['extension']}"
    return path.read_bytes() if path.is_file() else None


def _from_store(settings: Settings, name: str, job: str) -> Value:
    import asyncio

    pipeline = settings.load_pipeline()

    async def read() -> Value:
        await pipeline.session.open()
        try:
            found: Any = pipeline.find(name)
            if found.is_metadata():
                return Value(name, None, document=await found.info(job))
            if not found.is_blob():
                raise CallerError("cannot cat a repository which is not a blob or metadata", where=name)
            async with found.open(job, "rb") as stream:
                return Value(name, None, data=await stream.read())
        finally:
            await pipeline.session.close()

    return asyncio.run(read())


def takes_documents(definition: d.RepositoryDef) -> bool:
    """Whether a repository of this kind holds documents, as far as its kind tells."""
    return "Metadata" in definition.kind


# --- inject -----------------------------------------------------------------------------------------


@command(
    "inject",
    example="echo 'size: 3' | datatask inject resize.settings cat\n"
    "datatask inject resize.photo --from photos/ --extension .png\ndatatask inject resize.settings --from jobs.csv",
)
@click.argument("repository", metavar="TASK.LINK")
@click.argument("job", required=False, type=JOB)
@click.option("--as", "form", type=click.Choice(("document", "bytes")),
              help="What the values are, where the repository's kind does not tell.")  # fmt: skip
@click.option(
    "--extension", metavar="EXT", help="With a directory: only these files, the job being what is before."
)
@click.option("--from", "source", type=click.Path(path_type=Path), metavar="PATH",
              help="Many values: a directory (a file a job), .csv (with a column job), .jsonl.")  # fmt: skip
@changing
def inject(
    settings: Settings, repository: str, job: str | None, source: Path | None, extension: str | None,
    form: str | None, dry_run: bool, reason: str, exit_code: bool,
) -> int:  # fmt: skip
    """Put values into a repository: one from stdin, or many with --from.

    Documents are written in YAML (or JSON). Everything is checked before the first value is put.
    """
    if (job is None) is (source is None):
        raise CallerError(
            "inject takes a job, with its value on stdin, or --from", remedy="give one of the two"
        )
    data = sys.stdin.buffer.read() if source is None else b""

    def plan(state: State, blobs: Blobs | None) -> Iterable[Wish]:
        leaf = _target(state, repository)
        documents = _is_document(settings, leaf, form)

        def pairs() -> Iterator[tuple[str, bytes]]:
            if source is not None:
                yield from read_many(source, documents, extension)
            else:
                assert job is not None
                yield job, document_of(data, "stdin") if documents else data

        jobs = [name for name, _ in pairs()]
        if blobs is None:
            changes = tuple(Change("put", repository=leaf.id, job=name) for name in jobs)
            return [Wish(r.PutValues(**who("inject", reason), repository=leaf.id, items=()), changes)]
        return (
            Wish(
                r.PutValues(**who("inject", reason), repository=leaf.id, items=items),
                tuple(Change("put", repository=leaf.id, job=item.job) for item in items),
            )
            for items in portions(pairs(), documents, blobs)
        )

    return told(Output(settings), carry_out(settings, plan, dry_run=dry_run), "inject", dry_run, exit_code)


def _target(state: State, name: str) -> d.RepositoryDef:
    expr = shapes.find_link(state, name)
    definition = state.leaves[expr.leaf].definition if isinstance(expr, d.In) else None
    if definition is None or definition.derived is not None:
        raise CallerError(
            f"{name} follows from other repositories",
            where=shapes.text_of(expr),
            remedy="inject into one that it is made of",
        )
    return definition


def _is_document(settings: Settings, definition: d.RepositoryDef, form: str | None) -> bool:
    if form is not None:
        return form == "document"
    if (pipeline := settings.loaded_pipeline) is not None:
        leaf = pipeline.declare().repositories[definition.id]
        if not leaf.is_metadata() and not leaf.is_blob():
            raise _neither(definition)
        return leaf.is_metadata()
    if takes_documents(definition):
        return True
    if "Directory" in definition.kind:
        raise _neither(definition)
    if "Blob" in definition.kind or definition.kind in ("FileRepository", "S3BucketRepository"):
        return False
    raise CallerError(
        f"{definition.kind} does not tell whether it holds documents",
        where=definition.id,
        remedy="say --as document or --as bytes",
    )


def _neither(definition: d.RepositoryDef) -> CallerError:
    return CallerError(
        "cannot inject data into a repository which is not a blob or metadata", where=definition.id
    )


# --- rm ---------------------------------------------------------------------------------------------


@command(
    "rm",
    example="datatask rm resize.done cat        # resize runs again for cat\n"
    "datatask rm -r resize cat --dry-run   # all that follows from it\ndatatask rm resize.done __all__",
)
@click.argument("target", metavar="TASK|TASK.LINK")
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...|__all__")
@click.option("-r", "--recursive", is_flag=True, help="Also from everything downstream.")
@changing
def rm(
    settings: Settings, target: str, jobs: tuple[str, ...], recursive: bool, dry_run: bool, reason: str,
    exit_code: bool,
) -> int:  # fmt: skip
    """Delete jobs from a repository, or from all that a task fills (stopping its runs).

    Prints a line `JOB REPOSITORY` for each deletion.
    """
    wanted = None if jobs == (EVERY_JOB,) else [check_job(job) for job in dict.fromkeys(jobs)]

    def plan(state: State, _: Blobs | None) -> Iterable[Wish]:
        is_task = target in state.tasks
        expr = None if is_task else shapes.find_link(state, target)
        leaves = reached(state, target if is_task else None, expr, recursive)
        if not leaves:
            raise CallerError(
                f"nothing can be deleted from {target}", remedy="delete from what it is made of"
            )
        for leaf in leaves:
            present = (
                state.members(leaf)
                if wanted is None
                else [job for job in wanted if state.contains(leaf, job)]
            )
            for part in sliced(present):
                request = r.DeleteValues(**who("rm", reason), repository=leaf, jobs=part)
                yield Wish(request, tuple(Change("delete", repository=leaf, job=job) for job in part))

    done = carry_out(settings, plan, dry_run=dry_run)
    output = Output(settings)
    if output.json or dry_run:
        return told(output, done, "rm", dry_run, exit_code)
    for change in done.changes:
        output.line(shown(f"{change.job} {change.repository}"))
    return 0
