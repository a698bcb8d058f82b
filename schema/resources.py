"""Amounts of cpu, memory, launches and named things: what a run takes and what a quota allows.

Quantities are read as Kubernetes reads them (`100m`, `1.5`, `2Gi`, `1e3`, `500u`), those of bytes also as people write
sizes (`512MB`, `1.5 GiB`). Arithmetic is on `Decimal`; the core works on integers of one billionth (`to_nano`), rounded up, so sums never drift.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_UP, Decimal, InvalidOperation
from enum import Enum, auto

from datatask.schema.errors import CallerError, InvalidValueError
from datatask.schema.units import in_bytes

UNLIMITED_LAUNCHES = 999_999_999
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|([KMGTPE]i|[numkMGTPE]))?", re.ASCII)
_SUFFIX = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    **{f"{letter}i": Decimal(1024**power) for power, letter in enumerate("KMGTPE", start=1)},
}
_NANO = Decimal(10**9)
_LARGEST = Decimal(2**63 - 1)
_FINEST = Decimal("1e-9")


Quantity = str | int | float | Decimal


def parse_quantity(quantity: Quantity) -> Decimal:
    """Return a Kubernetes quantity as a number, as the API server parses it; `CallerError` if it is none."""
    if isinstance(quantity, bool):
        raise _not_a_quantity(quantity)
    if isinstance(quantity, int | float | Decimal):
        number = Decimal(str(quantity))
        if not number.is_finite():
            raise _not_a_quantity(quantity)
        return number
    match = _QUANTITY.fullmatch(quantity) if isinstance(quantity, str) else None
    if match is None:
        raise _not_a_quantity(quantity)
    digits, exponent, suffix = match.groups()
    try:
        number = Decimal(digits + (exponent or ""))
    except InvalidOperation as error:
        raise _not_a_quantity(quantity) from error
    return _held(number * _SUFFIX[suffix] if suffix else number)


_SIZE = re.compile(r"(\d+\.?\d*|\.\d+)\s*([kKMGTPE]i?)?B?", re.ASCII)


def parse_size(size: Quantity) -> Decimal:
    """Return a number of bytes: a number, a quantity, or a text such as `512MB` (of 1000s) or `1.5 GiB` (of 1024s)."""
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if match is None:
        try:
            return parse_quantity(size)
        except InvalidValueError:
            raise InvalidValueError(
                f"{size!r:.80} is no size",
                remedy="write bytes, '512MB', '1.5GiB' or a quantity such as '2Gi'",
            ) from None
    factor = _SUFFIX.get({"K": "k", "ki": "Ki"}.get(match[2], match[2]), Decimal(1))
    return _held(Decimal(match[1]) * factor)


def parse_amount(name: str, amount: Quantity) -> Decimal:
    """Return an amount of a named resource: a size where it is counted in bytes, else a quantity."""
    return parse_size(amount) if in_bytes(name) else parse_quantity(amount)


IDENTITIES_MAX = 10_000
_IDENTITY = re.compile(r"[^\s,=\x00-\x1f\x7f]{1,128}")


def check_identities(name: str, given: Sequence[object]) -> tuple[str, ...]:
    """Return the identities of a resource: different texts without spaces and commas; `InvalidValueError` for others."""
    found: dict[str, None] = {}
    for one in given:
        if not isinstance(one, str) or not _IDENTITY.fullmatch(one):
            raise InvalidValueError(
                f"{one!r:.80} is no identity",
                where=name,
                remedy='use texts of 1 to 128 characters without spaces and commas, such as ["0", "1"]',
            )
        if one in found:
            raise InvalidValueError(f"{one!r} is there twice", where=name, remedy="name each identity once")
        found[one] = None
    if not 0 < len(found) <= IDENTITIES_MAX:
        raise InvalidValueError(
            f"{len(found)} identities", where=name, remedy=f"list 1 to {IDENTITIES_MAX} of them"
        )
    return tuple(found)


def _held(number: Decimal) -> Decimal:
    """Return the number as the API server holds it: no more than 2**63-1 either way, nothing finer than a billionth."""
    if abs(number) > _LARGEST:
        return _LARGEST.copy_sign(number)
    if number.as_tuple().exponent < -9:  # type: ignore[operator]  # infinities do not come here
        return number.quantize(_FINEST, rounding=ROUND_UP)
    return number


def _not_a_quantity(quantity: object) -> CallerError:
    return InvalidValueError(
        f"{quantity!r:.80} is not a quantity",
        remedy="write a number such as 2, '500m', '1.5', '2Gi' or '1e3'",
    )


def _written(number: Decimal) -> str:
    """Return the number with the largest binary suffix that divides it."""
    for letter in "EPTGMK":
        if number and number % _SUFFIX[f"{letter}i"] == 0:
            return f"{number // _SUFFIX[f'{letter}i']:f}{letter}i"
    return f"{number.normalize():f}"


def to_nano(number: Decimal | int) -> int:
    """Return the number in billionths, rounded up (as Kubernetes rounds what is finer than it can hold)."""
    return int((Decimal(number) * _NANO).to_integral_value(rounding=ROUND_CEILING))


class ResourceType(Enum):
    """The dimension that a request exceeds."""

    CPU = auto()
    MEM = auto()
    RATE = auto()
    CUSTOM = auto()


@dataclass(frozen=True, eq=True, init=False)
class Resources:
    """cpu in cores, mem in bytes, launches per window, and any named amounts; add, subtract, multiply.

    A named amount of a quota may be a list of `identities` (`gpu=["0", "1"]`): as much as there are, given out one by one.
    """

    cpu: Decimal
    mem: Decimal
    launches: int | None
    custom: Mapping[str, Decimal]
    identities: Mapping[str, tuple[str, ...]] = field(repr=False)

    def __init__(
        self,
        cpu: Quantity = 0,
        mem: Quantity = 0,
        launches: int | None = 1,
        custom: Mapping[str, Quantity | Sequence[str]] | None = None,
    ) -> None:
        object.__setattr__(self, "cpu", parse_quantity(cpu))
        object.__setattr__(self, "mem", parse_size(mem))
        object.__setattr__(self, "launches", launches)
        amounts: dict[str, Decimal] = {}
        listed: dict[str, tuple[str, ...]] = {}
        for name, amount in sorted((custom or {}).items()):
            if isinstance(amount, list | tuple):
                listed[name] = check_identities(name, amount)
                amounts[name] = Decimal(len(amount))
            else:
                amounts[name] = parse_amount(name, amount)  # type: ignore[arg-type]
        object.__setattr__(self, "custom", amounts)
        object.__setattr__(self, "identities", listed)

    def __hash__(self) -> int:
        return hash((self.cpu, self.mem, self.launches, tuple(self.custom.items())))

    def __str__(self) -> str:
        """Say the amounts as a person writes them: `cpu 1.5, mem 2Gi, gpu 1`."""
        named = {"cpu": self.cpu, "mem": self.mem, **self.custom}
        return (
            ", ".join(f"{name} {_written(amount)}" for name, amount in named.items() if amount) or "nothing"
        )

    @classmethod
    def parse(
        cls,
        cpu: Quantity,
        mem: Quantity,
        launches: Quantity | None = None,
        **custom: Quantity | Sequence[str],
    ) -> Resources:
        """Return the amounts that the quantities say; launches default to as good as unlimited."""
        limit = UNLIMITED_LAUNCHES if launches is None else int(parse_quantity(launches))
        return cls(cpu, mem, limit, custom)

    def __add__(self, other: Resources) -> Resources:
        return self._combined(other, 1)

    def __sub__(self, other: Resources) -> Resources:
        return self._combined(other, -1)

    def __mul__(self, factor: int) -> Resources:
        custom = {name: amount * factor for name, amount in self.custom.items()}
        return Resources(self.cpu * factor, self.mem * factor, (self.launches or 0) * factor, custom)

    def _combined(self, other: Resources, sign: int) -> Resources:
        names = self.custom.keys() | other.custom.keys()
        zero = Decimal(0)
        return Resources(
            self.cpu + sign * other.cpu,
            self.mem + sign * other.mem,
            (self.launches or 0) + sign * (other.launches or 0),
            {name: self.custom.get(name, zero) + sign * other.custom.get(name, zero) for name in names},
        )

    def excess(self, limit: Resources) -> ResourceType | None:
        """Return the first dimension in which this is strictly more than `limit`, or None."""
        if self.cpu > limit.cpu:
            return ResourceType.CPU
        if self.mem > limit.mem:
            return ResourceType.MEM
        if limit.launches is not None and (self.launches or 0) > limit.launches:
            return ResourceType.RATE
        if any(amount > limit.custom.get(name, Decimal(0)) for name, amount in self.custom.items()):
            return ResourceType.CUSTOM
        return None

    def to_amounts(self) -> dict[str, int]:
        """Return the non-zero cpu, mem and named amounts in billionths, as events carry them."""
        amounts = {"cpu": to_nano(self.cpu), "mem": to_nano(self.mem)}
        amounts.update((name, to_nano(amount)) for name, amount in self.custom.items())
        return {name: amount for name, amount in amounts.items() if amount}
