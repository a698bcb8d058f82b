"""`simulate --finish-by`: the options of the search for the cheapest limits, and its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from datatask.adapters.cli.output import Output
from datatask.adapters.cli.progress_bar import SPENT
from datatask.adapters.cli.settings import Settings
from datatask.adapters.clock import effort
from datatask.adapters.history.moments import parse_when
from datatask.schema.errors import InvalidValueError
from datatask.schema.resources import parse_amount, parse_quantity
from datatask.schema.units import SECOND, duration_words, iso, parse_span

if TYPE_CHECKING:
    from datatask.adapters.sim.result import Result
    from datatask.adapters.sim.scenario import Scenario
    from datatask.schema.definition import PipelineDef

NOTHING_MAKES_IT = 6
COLUMNS = ("limit", "level", "seconds", "in time", "chosen", "knee")


class CapacityOptions(NamedTuple):
    """Seconds, the share of replications, and what may vary and costs how much."""

    by: float
    confidence: float
    axes: Mapping[str, Sequence[float]]
    prices: Mapping[str, float]


def seconds_until(text: str, begin: int) -> float:
    """Return the seconds from the beginning to a WHEN: a length of time, or a time."""
    seconds = parse_span(text)
    if seconds is not None:
        return seconds
    at = parse_when(text, begin).at
    if at is None or at <= begin:
        raise InvalidValueError(
            f"{text} is not after {iso(begin)}",
            where="--finish-by",
            remedy="write such as 2h, or a time to come",
        )
    return (at - begin) / SECOND


def axes(varying: Sequence[str]) -> dict[str, list[float]]:
    """Return the levels of each limit that `--vary` names."""
    from datatask.adapters.wiring.scenarios import axis

    found = {}
    for text in varying:
        place, values = axis(text)
        found[limit(place, "--vary")] = [
            float(parse_amount(place.rpartition(".")[2], value)) for value in values
        ]
    return found


def prices(told: Sequence[str]) -> dict[str, float]:
    """Return the price of a unit of each limit that `--price` names."""
    from datatask.adapters.wiring.scenarios import axis

    found = {}
    for text in told:
        place, values = axis(text, "--price")
        found[limit(place, "--price")] = float(parse_quantity(values[0]))
    return found


def limit(place: str, option: str) -> str:
    """Return what simulations call the limit at a place such as `quota.NAME.cpu`."""
    match place.split("."):
        case ["quota" | "quotas", *name] if len(name) > 1:
            return ".".join(name)
        case ["machines", *name, "count"] if name:
            return f"machines {'.'.join(name)}"
        case [*task, "concurrency"] if task:
            return place
    raise InvalidValueError(
        f"{place} is no limit",
        where=option,
        remedy="with --finish-by: quota.NAME.AMOUNT, TASK.concurrency or machines.NAME.count",
    )


def tell(
    output: Output,
    settings: Settings,
    definition: PipelineDef,
    scenario: Scenario,
    run: Callable[[Scenario], Result],
    asked: CapacityOptions,
) -> int:
    """Search, print the answer, and return the exit code."""
    from datatask.adapters.sim.capacity import finish_by

    found = finish_by(
        definition,
        scenario,
        run,
        asked.by,
        confidence=asked.confidence,
        axes=asked.axes,
        prices=asked.prices,
    )
    code = SPENT if effort.is_spent else NOTHING_MAKES_IT if found.why else 0
    if output.json and not settings.fields:
        output.document(found.to_json())
        return code
    output.rows(found.table(), COLUMNS)
    if code == SPENT and found.why:
        output.say(f"{found.why}: {found.simulations} scenarios were tried; give it more by --budget")
        return code
    if found.why:
        output.say(f"nothing makes it in {duration_words(asked.by)}: {found.why}")
        return code
    limits = ", ".join(f"{name} {level:g}" for name, level in found.limits.items()) or "what there is now"
    output.say(
        f"in time with {limits}: {duration_words(found.seconds)} in {asked.confidence:.0%} of the replications; "
        f"then {found.binds} binds; {found.simulations} scenarios were tried"
        + ("" if found.proven else ", and a cheaper one may be among those that were not")
    )
    if code == SPENT:
        output.say(
            f"the time was over in {settings.budget:g} s: this is the best so far; give it more by --budget"
        )
    return code
