"""`undo`: take back changes that a person made, and say first what cannot be taken back.

The past is not changed: what takes a change back is a change of its own, in the log, and can be undone as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import click

from datatask.adapters.cli.asking import carry_out
from datatask.adapters.cli.commands import WHEN, changing, command
from datatask.adapters.cli.errand import Change, Wish, sliced, who
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import recorded
from datatask.adapters.cli.settings import Settings
from datatask.adapters.cli.verbs import report
from datatask.adapters.history.moments import When, position_of
from datatask.adapters.history.undo import Changes, Undo
from datatask.adapters.log.blobs import FileBlobs
from datatask.adapters.log.locate import blobs_path
from datatask.adapters.wiring.opening import actor as this_actor
from datatask.engine.core.state import State
from datatask.engine.ports import Blobs
from datatask.schema import messages as r
from datatask.schema.errors import InvalidValueError, NotPossibleError
from datatask.schema.messages import Item

ITEMS_MAX = 1000
SHOWN_MAX = 20


@command(
    "undo",
    example="datatask undo 4711 --dry-run\ndatatask undo 4711 --reason 'wrong file'\ndatatask undo --since -10m",
)
@click.argument("position", type=click.IntRange(1), required=False)
@click.option(
    "--since", type=WHEN, metavar="WHEN", help="All changes of --actor since then, in place of one."
)
@click.option(
    "--actor", metavar="NAME", help="Whose changes with --since: a user, user@host, or all of an actor (you)."
)
@click.option("--partly", is_flag=True, help="Take back what can be taken back, although the rest stays.")
@changing
def undo(
    settings: Settings,
    position: int | None,
    since: When | None,
    actor: str | None,
    partly: bool,
    dry_run: bool,
    reason: str,
    exit_code: bool,
) -> int:
    """Take back what a person changed: values put or deleted, pauses, limits, accepted results.

    POSITION is that of an event of the change, such as `datatask log --actor anna` lists them. What ran meanwhile stays, and what was changed
    again since: that is told first, and without --partly nothing is done then.
    """
    if (position is None) is (since is None):
        raise InvalidValueError(
            "undo takes a position, or --since", remedy=f"see `{settings.program} undo --help`"
        )
    with recorded(settings) as log:
        changes = Changes(log.reader, log.state, FileBlobs(blobs_path(log.reader.path)))
        if position is not None:
            changes.at(position)
        elif since is not None:
            changes.since(position_of(log.reader, since), actor or this_actor("").partition(":")[0])
        found = changes.undo()
    _tell(Output(settings), found.left)
    if found.left and not (partly or dry_run):
        raise NotPossibleError(
            f"{len(found.left)} of these changes cannot be taken back",
            remedy="take the others back with --partly",
        )
    why = reason or (f"undo {position}" if position is not None else "undo")

    def plan(state: State, _: Blobs | None) -> Iterable[Wish]:
        return _wishes(found, why, state)

    return report(Output(settings), carry_out(settings, plan, dry_run=dry_run), "undo", dry_run, exit_code)


def _tell(output: Output, left: Sequence[str]) -> None:
    for line in left[:SHOWN_MAX]:
        output.say(f"cannot be taken back: {line}")
    if len(left) > SHOWN_MAX:
        output.say(f"… and {len(left) - SHOWN_MAX} more")


def _wishes(found: Undo, reason: str, state: State) -> Iterator[Wish]:
    for repository, items in found.puts.items():
        for part in _portions(items):
            changes = tuple(Change("put", repository=repository, job=item.job) for item in part)
            yield Wish(r.PutValues(**who("undo", reason), repository=repository, items=part), changes)
    for repository, jobs in found.deletes.items():
        for names in sliced(jobs):
            changes = tuple(Change("delete", repository=repository, job=job) for job in names)
            yield Wish(r.DeleteValues(**who("undo", reason), repository=repository, jobs=names), changes)
    for task, pause in found.pauses.items():
        kind, op = (r.PauseTask, "pause") if pause else (r.ResumeTask, "resume")
        yield Wish(kind(**who("undo", reason), task=task), (Change(op, task=task),))
    for quota, (limits, launches) in found.quotas.items():
        request = r.ChangeQuota(**who("undo", reason), quota=quota, limits=limits, launches=launches)
        yield Wish(request, (Change("limit", about=f"{quota} as before"),))
    for (task, withdrawn), jobs in found.accepted.items():
        op = "accept no more" if withdrawn else "accept"
        for names in sliced(jobs):
            wanted = r.AcceptResults(
                **who("undo", reason), task=task, jobs=names, seen=state.position, withdrawn=withdrawn
            )
            yield Wish(wanted, tuple(Change(op, task=task, job=job) for job in names))


def _portions(items: Sequence[Item]) -> Iterator[tuple[Item, ...]]:
    for start in range(0, len(items), ITEMS_MAX):
        yield tuple(items[start : start + ITEMS_MAX])
