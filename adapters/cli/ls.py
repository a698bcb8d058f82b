"""`ls` and `cat`: which jobs are where, and their values.

Reading works on the log alone; a value that only a foreign store has is read from there when it is a file, or
with the pipeline when `-p` names one.
"""

from __future__ import annotations

import base64
import re
import shutil
import sys
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import click
from pyroaring import BitMap

from datatask.adapters.cli.commands import JOB, WHEN, command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import Recorded, Seen, recorded, seen
from datatask.adapters.cli.settings import Settings
from datatask.adapters.history import shapes
from datatask.adapters.history.moments import When
from datatask.adapters.history.stale import find_stale
from datatask.adapters.wiring.sets import evaluate, names, parse
from datatask.engine.api.streams import BLOCK_BYTES
from datatask.engine.core.cells import get_at
from datatask.engine.core.expressions import unnegated
from datatask.schema import definition as d
from datatask.schema.errors import CallerError, NotPossibleError, UnknownNameError
from datatask.schema.events import ValuePut
from datatask.schema.values import decode_value

_LOCATED = re.compile(r"\w+:(?P<folder>/.*)/\*(?P<extension>[^?]*)")


@command(
    "ls",
    example="datatask ls resize.photo - resize.done\ndatatask ls 'resize.failed & (a.in | b.in)'\n"
    "datatask ls resize.ready --at -1h\ndatatask ls 'stale(resize)'",
    ignore_unknown=True,
)
@click.argument("expression", nargs=-1, required=True, metavar="EXPR...")
@click.option("--at", type=WHEN, metavar="WHEN", help="As of a position, an ISO time or an age such as -2h.")
def ls(settings: Settings, expression: tuple[str, ...], at: When | None) -> None:
    """List the jobs of a set expression, sorted.

    Names are task.link, task.ready, task.live, task.succeeded, task.failed, stale(task), or repository ids, in quotes
    where they hold spaces; operators are & | - ^ and parentheses, with Python's precedence.
    """
    with seen(settings, at) as log:
        jobs = job_set(log, " ".join(expression))
    output = Output(settings)
    if output.json:
        output.document(jobs)
    else:
        for job in jobs:
            output.line(job)


def job_set(log: Recorded | Seen, expression: str) -> list[str]:
    """Return the jobs of a set expression, sorted."""
    known = shapes.set_names(log.state)
    outdated = {f"stale({task.name})": task.name for task in log.state.definition.tasks}
    tree = parse(expression, [*known, *outdated])
    stale: dict[str, BitMap] = {}
    if log.reader is not None and not outdated.keys().isdisjoint(names(tree)):
        stale = find_stale(log.reader, log.state).stale

    def lookup(name: str) -> BitMap:
        if name in outdated and name not in known:
            return stale.get(outdated[name], BitMap())
        return shapes.named_set(log.state, known, name)

    return shapes.job_names(log.state, evaluate(tree, lookup))


# --- cat --------------------------------------------------------------------------------------------


class Value(NamedTuple):
    """A job's value: a document, or bytes."""

    repository: str
    position: int | None
    document: Any = None
    data: BinaryIO | None = None


@command("cat", example="datatask cat resize.done cat\ndatatask cat resize.photo cat > cat.png")
@click.argument("repository", metavar="TASK.LINK")
@click.argument("job", type=JOB)
@click.option("--at", type=WHEN, metavar="WHEN", help="As of a position, an ISO time or an age such as -2h.")
def cat(settings: Settings, repository: str, job: str, at: When | None) -> None:
    """Print a job's value: bytes as they are, a document as YAML.

    With -p, TASK.stdout, TASK.stderr and a pod's TASK.logs of a run that goes on are printed as they come, until it is over.

    With --json: {"repository", "job", "position", "value"}, or "base64" instead of "value" for bytes.
    """
    printed = 0
    if at is None and settings.names_pipeline and not Output(settings).json:
        printed = _tail(settings, repository, job)
    with recorded(settings, at) as log:
        if printed and log.state.jobs and not _is_there(log, repository, job):
            return  # the run ended without leaving its output: what there was has been printed
        found = _value(settings, log, repository, job, present=at is None)
    if Output(settings).json:
        content = {"value": found.document}
        if found.data is not None:
            with found.data as data:
                content = {"base64": base64.b64encode(data.read()).decode()}
        shape = {"repository": found.repository, "job": job, "position": found.position, **content}
        Output(settings).document(shape)
        return
    sys.stdout.flush()
    if found.data is not None:
        with found.data as data:
            data.seek(printed)
            shutil.copyfileobj(data, sys.stdout.buffer, BLOCK_BYTES)
    else:
        from datatask.adapters.yaml_text import dump_yaml

        sys.stdout.buffer.write(dump_yaml(found.document, f"{repository} {job}"))
    sys.stdout.buffer.flush()


def _tail(settings: Settings, name: str, job: str) -> int:
    """Print what a stream of an open run has, as it comes; return how much it was."""
    from datatask.adapters.cli.shell import STREAMS, find_run, tail

    task, _, link = name.rpartition(".")
    if link not in STREAMS:
        return 0
    with recorded(settings) as log:
        run = find_run(log, task, job)
        if run is None or run.started_at is None or (link == "logs") is not ("pod" in (run.handle or {})):
            return 0
        return tail(settings, log, run, link)


def _is_there(log: Recorded, name: str, job: str) -> bool:
    expr, index = shapes.find_link(log.state, name), log.state.job_index.get(job)
    return index is not None and index in shapes.members(log.state, expr)


def _value(settings: Settings, log: Recorded, name: str, job: str, *, present: bool) -> Value:
    state = log.state
    expr = shapes.find_link(state, name)
    index = state.job_index.get(job)
    leaves = [leaf for leaf in unnegated(expr) if state.contains(leaf, job)]
    if index is None or not leaves or index not in shapes.members(state, expr):
        raise UnknownNameError(
            f"{job} is not there", where=name, remedy=f"see `{settings.command('ls', name)}`"
        )
    definition = state.leaves[leaves[0]].definition
    if definition.derived is None:
        position = get_at(state.leaves[leaves[0]].positions, index)
        from datatask.adapters.log.checkpoints import CheckedReader

        (event,) = CheckedReader(log.reader).fetch([position])
        assert isinstance(event, ValuePut)
        if event.value:
            return Value(leaves[0], position, document=decode_value(event.value))
        if event.digest is not None and (blob := _blob(log, event.digest)) is not None:
            if shapes.takes_documents(definition):
                return Value(leaves[0], position, document=decode_value(blob.read_bytes()))
            return Value(leaves[0], position, data=blob.open("rb"))
        if present and (data := _file(definition, job)) is not None:
            return Value(leaves[0], position, data=data)
    if not present or not settings.names_pipeline:
        raise CallerError(
            "the log has only that this job is there, not its value",
            where=f"{leaves[0]} {job}",
            remedy="name the pipeline with -p to read it from its store, without --at",
        )
    return _from_store(settings, log, name, job)


def _blob(log: Recorded, digest: str) -> Path | None:
    from datatask.adapters.log.blobs import FileBlobs
    from datatask.adapters.log.locate import blobs_path

    try:
        return FileBlobs(blobs_path(log.reader.path)).intact(digest)
    except UnknownNameError:
        return None


def _file(definition: d.RepositoryDef, job: str) -> BinaryIO | None:
    """Return a file whose place the definition tells."""
    located = _LOCATED.fullmatch(definition.locator or "")
    if located is None:
        return None
    path = Path(located["folder"]) / f"{job}{located['extension']}"
    return path.open("rb") if path.is_file() else None


def _from_store(settings: Settings, log: Recorded, name: str, job: str) -> Value:
    import asyncio

    from datatask.adapters.cli.foreseen import Foreseen

    pipeline = settings.load_pipeline()
    values = Foreseen(log.state, log.reader.path)

    async def read() -> Value:
        await pipeline.session.open()
        try:
            found: Any = pipeline.find(name)
            values.bind(pipeline.declare().objects, pipeline.tasks.values())
            if found.is_metadata():
                return Value(name, None, document=await found.info(job))
            if not found.is_blob():
                raise NotPossibleError("cannot cat a repository which is not a blob or metadata", where=name)
            from tempfile import TemporaryFile

            spooled = TemporaryFile()  # noqa: SIM115 - whoever prints it closes it
            async with found.open(job, "rb") as stream:
                while block := await stream.read(BLOCK_BYTES):
                    spooled.write(block)
            spooled.seek(0)
            return Value(name, None, data=spooled)
        finally:
            values.unbind()
            await pipeline.session.close()

    return asyncio.run(read())
