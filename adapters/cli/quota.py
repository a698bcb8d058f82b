"""`quota`: new limits for a quota from now on, with an engine running or without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import click

from datatask.adapters.cli.asking import carry_out
from datatask.adapters.cli.errand import Change, Wish, who
from datatask.adapters.cli.options import changing, command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.settings import Settings
from datatask.adapters.cli.verbs import report
from datatask.adapters.history import shapes
from datatask.engine.core.quotas import QuotaState
from datatask.engine.core.state import State
from datatask.engine.ports import Blobs
from datatask.schema import messages as r
from datatask.schema.errors import InvalidValueError, UnknownNameError, one_of, unknown
from datatask.schema.resources import parse_quantity, to_nano

LAUNCHES = "launches"
NO_LIMIT = "none"


@command(
    "quota",
    example="datatask quota default cpu=8 mem=16Gi\ndatatask quota default launches=30 --reason 'the API is slow'\n"
    "datatask quota default launches=none --dry-run",
)
@click.argument("name")
@click.argument("limits", nargs=-1, required=True, metavar="WHAT=AMOUNT...")
@changing
def quota(
    settings: Settings, name: str, limits: tuple[str, ...], dry_run: bool, reason: str, exit_code: bool
) -> int:
    """Change limits of a quota; what runs goes on, and limits that are not named stay.

    WHAT is cpu, mem, a resource of your own, or launches (in each window; none: as many as there are).
    """
    given = dict(_limit(text) for text in limits)

    def plan(state: State, _: Blobs | None) -> Iterable[Wish]:
        found = state.quotas.get(name)
        if found is None:
            raise unknown("quota", name, state.quotas)
        wanted = _amounts(state, found, name, given)
        launches = given.get(LAUNCHES, found.launches)
        changes = tuple(_changes(name, found, wanted, launches))
        if changes:
            request = r.ChangeQuota(**who("quota", reason), quota=name, limits=wanted, launches=launches)
            yield Wish(request, changes)

    return report(Output(settings), carry_out(settings, plan, dry_run=dry_run), "quota", dry_run, exit_code)


def _limit(text: str) -> tuple[str, int | None]:
    """Return the name and the amount (launches as they are, the rest in billionths) of `cpu=8`."""
    what, equals, amount = text.partition("=")
    if not equals or not what:
        raise InvalidValueError(f"{text!r:.80} is no limit", remedy="write cpu=8, mem=16Gi, launches=30")
    if what == LAUNCHES:
        if amount == NO_LIMIT:
            return what, None
        if not (amount.isascii() and amount.isdigit()):
            raise InvalidValueError(
                f"{amount!r:.80} is no number of launches", where=what, remedy="write launches=30"
            )
        return what, int(amount)
    quantity = parse_quantity(amount)
    if quantity < 0:
        raise InvalidValueError(f"{amount} is less than nothing", where=what, remedy="give 0 or more")
    return what, to_nano(quantity)


def _amounts(state: State, found: QuotaState, name: str, given: Mapping[str, int | None]) -> dict[str, int]:
    """Return all limits as they will be; a name that nothing asks for is more likely a slip than a wish."""
    asked = {
        what
        for task in state.tasks.values()
        if task.definition.quota == name
        for what in task.definition.resources
    }
    known = {"cpu", "mem", *found.limits, *found.definition.limits, *asked}
    for what in given:
        if what != LAUNCHES and what not in known:
            raise UnknownNameError(f"{name} has no {what}", remedy=one_of({*known, LAUNCHES}, what))
    wanted = found.limits | {
        what: amount for what, amount in given.items() if what != LAUNCHES and amount is not None
    }
    return {what: amount for what, amount in wanted.items() if amount}


def _changes(
    name: str, found: QuotaState, wanted: Mapping[str, int], launches: int | None
) -> Iterable[Change]:
    before, after = shapes.units(found.limits), shapes.units(dict(wanted))
    for what in sorted({*before, *after}):
        if before.get(what, 0) != after.get(what, 0):
            yield Change("limit", about=f"{name}.{what} {before.get(what, 0)} -> {after.get(what, 0)}")
    if launches != found.launches:
        old, new = (NO_LIMIT if number is None else number for number in (found.launches, launches))
        yield Change("limit", about=f"{name}.{LAUNCHES} {old} -> {new}")
