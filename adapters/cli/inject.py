"""`inject` and `rm`: values put into repositories and jobs deleted from them, with an engine running or without.

What a deletion reaches follows from the recorded definition: a task its open runs and its outputs, a repository itself, and with
`--recursive` everything downstream; in a combined repository its required members, never the excluded ones.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from datatask.adapters.cli.asking import carry_out
from datatask.adapters.cli.commands import JOB, changing, command, waits
from datatask.adapters.cli.errand import Change, Wish, sliced, who
from datatask.adapters.cli.inject_items import Content, Spooled, document_of, portions, read_many
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.settings import Settings
from datatask.adapters.cli.verbs import report
from datatask.adapters.history import shapes
from datatask.engine.core.expressions import set_text, unnegated
from datatask.engine.core.state import State
from datatask.engine.ports import Blobs
from datatask.schema import definition as d
from datatask.schema import messages as r
from datatask.schema.errors import CallerError, InvalidValueError, NotPossibleError
from datatask.schema.troubles import shown
from datatask.schema.values import check_job

EVERY_JOB = "__all__"


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
        raise InvalidValueError(
            "inject takes a job, with its value on stdin, or --from", remedy="give one of the two"
        )
    spooled = Spooled(sys.stdin.buffer, job) if job is not None else None

    @functools.cache
    def read() -> bytes:
        return document_of(sys.stdin.buffer.read(), "stdin")

    def plan(state: State, blobs: Blobs | None) -> Iterable[Wish]:
        leaf = _target(state, repository)
        documents = _is_document(settings, leaf, form)

        if spooled is not None and not documents and blobs is not None:
            items = (spooled.item(blobs),)
            changes: tuple[Change, ...] = (Change("put", repository=leaf.id, job=items[0].job),)
            return [Wish(r.PutValues(**who("inject", reason), repository=leaf.id, items=items), changes)]

        def pairs() -> Iterator[tuple[str, Content]]:
            if source is not None:
                yield from read_many(source, documents, extension)
            else:
                assert job is not None
                yield job, read() if documents else b""

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

    done = carry_out(settings, plan, dry_run=dry_run, needed=(repository,))
    return report(Output(settings), done, "inject", dry_run, exit_code)


def _target(state: State, name: str) -> d.RepositoryDef:
    expr = shapes.find_link(state, name)
    definition = state.leaves[expr.leaf].definition if isinstance(expr, d.In) else None
    if definition is None or definition.derived is not None:
        raise NotPossibleError(
            f"{name} follows from other repositories",
            where=set_text(expr),
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
    if shapes.takes_documents(definition):
        return True
    if "Directory" in definition.kind:
        raise _neither(definition)
    if "Blob" in definition.kind or definition.kind in ("FileRepository", "S3BucketRepository"):
        return False
    raise InvalidValueError(
        f"{definition.kind} does not tell whether it holds documents",
        where=definition.id,
        remedy="say --as document or --as bytes",
    )


def _neither(definition: d.RepositoryDef) -> CallerError:
    return NotPossibleError(
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
@waits
@changing
def rm(
    settings: Settings, target: str, jobs: tuple[str, ...], recursive: bool, wait: bool, dry_run: bool,
    reason: str, exit_code: bool,
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
            raise NotPossibleError(
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

    done = carry_out(settings, plan, dry_run=dry_run, wait=wait)
    output = Output(settings)
    if output.json or dry_run:
        return report(output, done, "rm", dry_run, exit_code)
    for change in done.changes:
        output.line(shown(f"{change.job} {change.repository}"))
    return 0


Node = tuple[str, str]
"""("task" or "leaf", name)."""


def reached(state: State, task: str | None, expr: d.AnyExpr | None, recursive: bool) -> list[str]:
    """Return the leaves to delete from, nearest first, for a task or for a repository's membership."""
    following = _edges(state.definition)
    start: list[Node] = [("task", task)] if task is not None else []
    start += [("leaf", leaf) for leaf in unnegated(expr)] if expr is not None else []
    found: dict[Node, None] = {}
    stack = list(reversed(start))
    while stack:
        node = stack.pop()
        if node in found:
            continue
        found[node] = None
        if recursive or (node[0] == "task" and node in start):
            stack += reversed(following.get(node, []))
    leaves = [name for kind, name in found if kind == "leaf" and is_deletable(state, name)]
    return sorted(leaves, key=lambda leaf: _turn(state, leaf))


def _turn(state: State, leaf: str) -> int:
    """Stop runs first, and delete last what keeps a job from starting: it would start on what is half deleted."""
    if state.leaves[leaf].definition.derived is not None:
        return 0
    inhibits = (link for task in state.definition.tasks for link in task.links if link.inhibits_start)
    return 2 if any(leaf in unnegated(link.expr) for link in inhibits) else 1


def is_deletable(state: State, leaf: str) -> bool:
    """Whether jobs can be deleted from a leaf: stored ones, and `live` views, where it stops the run."""
    rule = state.leaves[leaf].definition.derived
    return rule is None or (isinstance(rule, d.ViewDef) and rule.view == "live")


def _edges(definition: d.PipelineDef) -> dict[Node, list[Node]]:
    found: dict[Node, list[Node]] = {}
    for task in definition.tasks:
        this = ("task", task.name)
        found[this] = [("leaf", d.view_id(task.name, "live"))]
        for link in task.links:
            into = link.is_input or link.required_for_start or link.inhibits_start
            for leaf in unnegated(link.expr):
                if into:
                    found.setdefault(("leaf", leaf), []).append(this)
                if not into or link.is_output or link.is_status:
                    found[this].append(("leaf", leaf))
    for leaf, derived in _filtered(definition):
        found.setdefault(("leaf", leaf), []).append(("leaf", derived))
    return found


def _filtered(definition: d.PipelineDef) -> Iterator[tuple[str, str]]:
    for repository in definition.repositories:
        if isinstance(repository.derived, d.FilteredDef):
            for leaf in unnegated(repository.derived.base):
                yield leaf, repository.id
