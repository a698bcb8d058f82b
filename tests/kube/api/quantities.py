"""Quantities: in comes what a manifest says (`100m`, `1.5Gi`, `2e3`), out goes an exact number, and back as the server writes it."""

from __future__ import annotations

import re
from decimal import ROUND_UP, Decimal

PATTERN = re.compile(r"^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$")
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
MESSAGE = f"quantities must match the regular expression '{PATTERN.pattern}'"


def parse(said: str | int | float) -> Decimal:
    """Return the amount; ValueError with the server's words for what is none."""
    match = PATTERN.match(str(said))
    if match is None:
        raise ValueError(MESSAGE)
    number, suffix = match.groups()
    try:
        if suffix in _BINARY:
            return Decimal(number) * Decimal(1024) ** _BINARY[suffix]
        if suffix in _DECIMAL:
            return Decimal(number).scaleb(_DECIMAL[suffix])
        return Decimal(number + suffix)
    except ArithmeticError:
        raise ValueError(MESSAGE if suffix else "quantities must be numbers") from None


def write(amount: Decimal, *, binary: bool = False) -> str:
    """Return the amount in the largest unit that keeps it whole."""
    if binary and amount == amount.to_integral_value():
        for suffix, power in reversed(_BINARY.items()):
            if amount and amount % 1024**power == 0:
                return f"{int(amount / 1024**power)}{suffix}"
        return str(int(amount))
    nano = int(amount.scaleb(9).to_integral_value(ROUND_UP))
    for suffix, power in reversed(_DECIMAL.items()):
        unit = 10 ** (power + 9)
        if nano and nano % unit == 0:
            return f"{nano // unit}{suffix}"
    return "0"
