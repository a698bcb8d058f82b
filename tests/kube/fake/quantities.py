"""Quantities as Kubernetes writes them: `100m`, `1.5Gi`, `2e3`; read into exact fractions, and written again."""

from __future__ import annotations

import re
from fractions import Fraction

_FORM = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]|[eE][-+]?\d+)?$")
_BINARY = {f"{letter}i": 1024**power for power, letter in enumerate("KMGTPE", 1)}
_DECIMAL = {letter: 1000**power for power, letter in enumerate("kMGTPE", 1)}
_SMALL = {"n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000)}


def amount(text: str | float) -> Fraction:
    """Read a quantity; ValueError where it is none."""
    found = _FORM.match(str(text))
    if found is None:
        raise ValueError(text)
    number, suffix = found.groups()
    if suffix and suffix[0] in "eE" and len(suffix) > 1 and suffix != "Ei":
        return Fraction(number) * Fraction(10) ** int(suffix[1:])
    scale = {"": 1, **_BINARY, **_DECIMAL, **_SMALL}[suffix or ""]
    return Fraction(number) * scale


def written(value: Fraction, *, binary: bool) -> str:
    """Write an amount with the largest suffix that leaves a whole number."""
    scales = _BINARY if binary else _DECIMAL
    for suffix in reversed(scales):
        if value and value % scales[suffix] == 0:
            return f"{value // scales[suffix]}{suffix}"
    for suffix, scale in ({"": Fraction(1)} | dict(reversed(_SMALL.items()))).items():
        if value % scale == 0:
            return f"{value // scale}{suffix}"
    return str(float(value))


def is_binary(text: str | float) -> bool:
    """Tell whether a quantity counts in 1024."""
    return str(text).endswith("i")
