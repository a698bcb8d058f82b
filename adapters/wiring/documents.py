"""Documents of scenarios: what each name in them may hold, and how it is read.

In: what YAML or options made of a text. Out: shapes with values that msgspec has converted, with a hook for each kind of
value that it does not know (durations, distributions, arrivals); or one line that says which value is wrong, where it
stands, and how it is written. `scenarios` makes scenarios of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec

from datatask.adapters.sim.distributions import (
    Constant,
    Distribution,
    Empirical,
    Exponential,
    Lognormal,
    Uniform,
    Weibull,
)
from datatask.adapters.sim.scenario import Arrivals
from datatask.schema.errors import CallerError, InvalidValueError, one_of
from datatask.schema.units import parse_span


class Table(msgspec.Struct):
    """A file with durations by job."""

    path: Path


class _Kind(type):
    """A kind of value that a hook reads: msgspec asks whether what the hook returns is one."""

    def __instancecheck__(cls, value: object) -> bool:
        return True


def _kind(read: Callable[[Any], Any]) -> Any:
    """Make the kind of value that a function reads."""
    return _Kind(read.__name__, (), {"read": staticmethod(read)})


@_kind
def seconds(value: Any) -> Any:
    """Seconds: a number, or a text such as `90`, `5m` or `1h30m`."""
    found = None
    if isinstance(value, str):
        found = parse_span(value.strip().removeprefix("-"))
        if found is not None and value.strip()[0] == "-":
            raise InvalidValueError(f"the duration {value} is negative", remedy="give 0 or more")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found = float(value)
    if found is None or not abs(found) < float("inf"):
        raise InvalidValueError(
            f"{value!r:.60} is no duration", remedy="write seconds, or such as 90s, 5m, 2h"
        )
    if found < 0:
        raise InvalidValueError(f"the duration {value} is negative", remedy="give 0 or more")
    return found


@_kind
def duration(value: Any) -> Any:
    """Seconds or a distribution."""
    if not isinstance(value, Mapping):
        return seconds.read(value)
    known = [*DISTRIBUTIONS, "empirical"]
    if len(value) != 1:
        raise InvalidValueError("is not one distribution", remedy=one_of(known))
    ((shape, numbers),) = value.items()
    if shape == "empirical":
        return Empirical(tuple(_below(shape, numbers, list[seconds])))  # type: ignore[valid-type]
    if shape not in DISTRIBUTIONS:
        raise InvalidValueError(f"has no distribution {shape}", remedy=one_of(known, shape))
    made, names = DISTRIBUTIONS[shape]
    if not isinstance(numbers, Mapping):
        row = numbers if isinstance(numbers, list) else [numbers]
        if len(row) != len(names):
            needs = f"{shape} needs {len(names)}: " + ", ".join(names)
            raise InvalidValueError(f"has {len(row)} numbers", where=f".{shape}", remedy=needs)
        numbers = dict(zip(names, row, strict=True))
    return made(*msgspec.structs.astuple(_below(shape, numbers, NUMBERS[shape])))


@_kind
def durations(value: Any) -> Any:
    """A duration, seconds by job (`{jobs: {JOB: …}}`), or a `Table` (`{table: FILE}`)."""
    if isinstance(value, Mapping) and list(value) == ["table"]:
        return Table(Path(_below("table", value["table"], str)))
    if isinstance(value, Mapping) and list(value) == ["jobs"]:
        return _below("jobs", value["jobs"], dict[str, seconds])  # type: ignore[valid-type]
    return duration.read(value)


@_kind
def spawned(value: Any) -> Any:
    """A whole number or a duration."""
    return value if isinstance(value, int) and not isinstance(value, bool) else duration.read(value)


@_kind
def arriving(value: Any) -> Any:
    """A way of arriving, or `{WAY: JOBS_A_SECOND}`."""
    if isinstance(value, str):
        return Arrivals(value)  # type: ignore[arg-type]
    if not isinstance(value, Mapping) or len(value) != 1:
        remedy = "write at_once, recorded, {even: JOBS_A_SECOND} or {poisson: …}"
        raise InvalidValueError("is not one way of arriving", remedy=remedy)
    ((how, rate),) = value.items()
    return Arrivals(how, _below(how, rate, float))


Amounts = dict[str, int | float | str]


def _shape(of: str, /, **fields: Any) -> type[msgspec.Struct]:
    """Return the shape of a mapping of which each name may be left out, and no other is known."""
    optional = [(field, kind | None, None) for field, kind in fields.items()]
    return msgspec.defstruct(of, optional, forbid_unknown_fields=True)


RETRY = _shape("Retry", attempts=int)
TASK = _shape(
    "Task",
    duration=durations,
    failure=float,
    outcomes=list[str] | dict[str, float],
    latency=duration,
    outputs=list[str] | dict[str, float],
    spawns=dict[str, spawned],  # type: ignore[valid-type]
    attempts=int,
    concurrency=int,
    timeout=seconds,
    resources=Amounts,
    machines=str,
    retry=RETRY,
)
MACHINES = _shape(
    "Machines",
    name=str,
    count=int,
    amounts=Amounts | list[Amounts],
    start=duration,
    latency=duration,
    speed=float | list[float],
    mtbf=seconds,
    repair=duration,
    preempted=seconds,
    loss=str,
)
SCENARIO = _shape(
    "Scenario",
    jobs=int | list[str],
    arrivals=arriving,
    entries=list[str],
    tasks=dict[str, TASK],  # type: ignore[valid-type]
    default=TASK,
    quotas=dict[str, Amounts],
    machines=list[MACHINES],  # type: ignore[valid-type]
    replications=int,
    seed=int,
    until=seconds,
    own=bool,
)

_SHAPES = {"tasks": TASK, "default": TASK, "retry": RETRY, "machines": MACHINES}

DISTRIBUTIONS: dict[str, tuple[Callable[..., Distribution], dict[str, Any]]] = {
    "constant": (Constant, {"value": seconds}),
    "uniform": (Uniform, {"low": seconds, "high": seconds}),
    "exponential": (Exponential, {"mean": seconds}),
    "lognormal": (Lognormal, {"median": seconds, "sigma": float}),
    "weibull": (Weibull, {"scale": seconds, "shape": float}),
}
"""Distributions by name, with their numbers in the order in which a list gives them."""

NUMBERS = {
    name: msgspec.defstruct(name, numbers.items(), forbid_unknown_fields=True)
    for name, (_, numbers) in DISTRIBUTIONS.items()
}


def fields_of(value: msgspec.Struct) -> dict[str, Any]:
    """Return the fields that a document has."""
    return {name: it for name, it in msgspec.structs.asdict(value).items() if it is not None}


def read(value: Any, kind: Any, where: str = "") -> Any:
    """Return the value as this kind; `CallerError` names the document `where` and the place in it, such as `.tasks.a`."""
    try:
        return msgspec.convert(value, kind, dec_hook=_hook)
    except msgspec.ValidationError as error:
        refusal = _refusal(error, value, kind, where)
    raise refusal


def _below(key: str, value: Any, kind: Any) -> Any:
    """Read what is below a key."""
    return read({key: value}, dict[str, kind])[key]


def _hook(kind: Any, value: Any) -> Any:
    try:
        return kind.read(value)
    except CallerError as error:
        raise ValueError from error  # msgspec adds the place


_WRITTEN = {
    "int": ("whole number", "write one without quotes"),
    "float": ("number", "write one without quotes"),
    "str": ("text", "put it in quotes"),
    "object": ("mapping of names", "write `name: value` lines"),
    "array": ("list", "write [a, b, …]"),
    "bool": ("truth value", "write true or false"),
    "int | float | str": ("amount", "write such as 16, 500m or 4Gi"),
}
"""What msgspec expects, in our words, and how it is written."""


def _refusal(error: msgspec.ValidationError, value: Any, kind: Any, where: str) -> InvalidValueError:
    """Return what msgspec refuses with the value and the names in mappings, for which it says `[...]`."""
    path = re.findall(r"\.(\w+)|\[([\d.]+)\]", str(error).rpartition("`$")[2])
    place, found, shape = "", value, kind
    for name, index in path:
        if index == "...":
            name = _culprit(error, value, kind, found)
        found = found[name if name else int(index)]
        place += f".{name}" if name else f"[{index}]"
        shape = get_args(shape)[-1] if index == "..." and get_args(shape) else _SHAPES.get(name, shape)
    cause = error.__cause__.__cause__ if error.__cause__ is not None else None
    said = re.match("Object (?:contains unknown|missing required) field `(.+?)`", str(error))
    if isinstance(cause, CallerError):
        what, remedy, place = cause.what, cause.remedy, place + cause.where
    elif said and "unknown" in said[0]:
        what, remedy = f"{said[1]} is not known here", one_of(shape.__struct_fields__, said[1])
    elif said:
        what, remedy = f"lacks {said[1]}", "a distribution needs all its numbers"
    else:
        wanted = re.match("Expected `(.+?)(?: [|] null)?`, got", str(error))
        expected = "object" if wanted is None or "`key`" in str(error) else wanted[1]
        either = [_WRITTEN[one] for one in ([expected] if expected in _WRITTEN else expected.split(" | "))]
        what, remedy = f"{found!r:.60} is no " + " and no ".join(noun for noun, _ in either), either[0][1]
    if where:
        place = ": ".join(part for part in (where, place.removeprefix(".")) if part)
    return InvalidValueError(what, where=place, remedy=remedy)


def _culprit(error: msgspec.ValidationError, value: Any, kind: Any, mapping: dict[str, Any]) -> str:
    """Return the name in a mapping inside the value at which the error arises: with those before it it does not."""
    items = dict(mapping)
    mapping.clear()
    try:
        for name, below in items.items():
            mapping[name] = below
            try:
                msgspec.convert(value, kind, dec_hook=_hook)
            except msgspec.ValidationError as again:
                if str(again) == str(error):
                    return name
    finally:
        mapping.update(items)
    raise error
