"""Distributions of durations in seconds, their samplers, durations by job from CSV, and reproducible random numbers.

In: numbers from a person or a log, or lines of `job,seconds` or `task,job,seconds` with or without headings. Out:
`sampler(chance)`, a function that returns nanoseconds, or seconds by job, by task. Each owner and purpose has its own
random stream (Python's Mersenne Twister), so that scenarios differ by their differences only. `ln`, `exp` and `normal`
use only operations that IEEE 754 fixes, as C libraries differ in the last bit; they are right to about 1e-15
(the quantile: 1.2e-9), relative.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from math import floor, frexp, inf, ldexp, log, sqrt
from pathlib import Path
from random import Random

from datatask.schema.errors import InvalidValueError, NotPossibleError
from datatask.schema.units import SECOND
from datatask.schema.values import is_job

AHEAD = 256
SMALLEST = 2.0**-54

Sampler = Callable[[], int]


def _positive(what: str, **numbers: float) -> None:
    for name, number in numbers.items():
        _number(what, name, number)
        if number <= 0:
            raise InvalidValueError(f"{what}: {name} is {number:g}", remedy="give a number above 0")


def _not_negative(what: str, **numbers: float) -> None:
    for name, number in numbers.items():
        _number(what, name, number)
        if number < 0:
            raise InvalidValueError(
                f"{what}: {name} is {number:g}, which is negative", remedy="give 0 or more"
            )


def _number(what: str, name: str, number: float) -> None:
    if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < inf:
        raise InvalidValueError(
            f"{what}: {name} is {number!r}, which is no number", remedy="give a number of seconds"
        )


@dataclass(frozen=True)
class Distribution:
    """A random duration in seconds."""

    def seconds(self, u: float) -> float:
        """Return the duration below which one lies with probability u, 0 <= u < 1."""
        raise NotImplementedError

    @property
    def mean(self) -> float:
        """The expected duration in seconds, by 1,000 quantiles where there is no formula."""
        return sum(self.seconds((index + 0.5) / 1000) for index in range(1000)) / 1000

    def sampler(self, chance: Chance) -> Sampler:
        """Return a function that draws nanoseconds."""
        return _ahead(self.seconds, chance).__next__


def _ahead(seconds: Callable[[float], float], chance: Chance) -> Iterator[int]:
    while True:
        yield from [int(seconds(chance()) * SECOND + 0.5) for _ in range(AHEAD)]


@dataclass(frozen=True)
class Constant(Distribution):
    """Always the same."""

    value: float

    def __post_init__(self) -> None:
        _not_negative("constant", seconds=self.value)

    def seconds(self, u: float) -> float:
        return self.value

    @property
    def mean(self) -> float:
        return self.value

    def sampler(self, chance: Chance) -> Sampler:
        nanoseconds = int(self.value * SECOND + 0.5)
        return lambda: nanoseconds


@dataclass(frozen=True)
class Uniform(Distribution):
    """Between low and high, all equally likely."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _not_negative("uniform", low=self.low, high=self.high)
        if self.high < self.low:
            raise InvalidValueError(
                f"uniform: high {self.high:g} is below low {self.low:g}", remedy="swap them"
            )

    def seconds(self, u: float) -> float:
        return self.low + (self.high - self.low) * u

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2


@dataclass(frozen=True)
class Exponential(Distribution):
    """Without memory; known by its mean."""

    average: float

    def __post_init__(self) -> None:
        _positive("exponential", mean=self.average)

    def seconds(self, u: float) -> float:
        return -self.average * ln(1.0 - u)

    def sampler(self, chance: Chance) -> Sampler:
        return self._ahead(chance).__next__

    def _ahead(self, chance: Chance) -> Iterator[int]:
        """Draw by the platform's logarithm, and by the exact one where an error in its last digits could show."""
        scale = -self.average * SECOND
        doubt = min(0.5, max(1e-6, -scale * 1e-13))
        low, high, exact = doubt, 1.0 - doubt, self.seconds
        while True:
            drawn = []
            for _ in range(AHEAD):
                u = chance()
                nanoseconds = log(1.0 - u) * scale + 0.5
                if low < nanoseconds % 1.0 < high:
                    drawn.append(int(nanoseconds))
                else:
                    drawn.append(int(exact(u) * SECOND + 0.5))
            yield from drawn

    @property
    def mean(self) -> float:
        return self.average


@dataclass(frozen=True)
class Lognormal(Distribution):
    """Its logarithm is normal: half of all are below `median`, `sigma` is the deviation of the logarithm."""

    median: float
    sigma: float

    def __post_init__(self) -> None:
        _positive("lognormal", median=self.median)
        _not_negative("lognormal", sigma=self.sigma)

    def seconds(self, u: float) -> float:
        return self.median * exp(self.sigma * normal(max(u, SMALLEST)))

    @property
    def mean(self) -> float:
        return self.median * exp(self.sigma * self.sigma / 2)


@dataclass(frozen=True)
class Weibull(Distribution):
    """Ages with `shape` above 1, settles in with one below; 63 % are below `scale`."""

    scale: float
    shape: float

    def __post_init__(self) -> None:
        _positive("weibull", scale=self.scale, shape=self.shape)

    def seconds(self, u: float) -> float:
        below = -ln(1.0 - u)
        return self.scale * exp(ln(below) / self.shape) if below > 0 else 0.0


@dataclass(frozen=True)
class Empirical(Distribution):
    """One of those that were seen, all equally likely."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise InvalidValueError(
                "empirical: there are no values", remedy="give at least one number of seconds"
            )
        for value in self.values:
            _not_negative("empirical", value=value)

    def seconds(self, u: float) -> float:
        return self.values[int(u * len(self.values))]

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)


def as_distribution(given: Distribution | float | int) -> Distribution:
    """Return a value as a distribution: a number is a constant."""
    return given if isinstance(given, Distribution) else Constant(given)


def chooser(weights: tuple[float, ...], chance: Chance) -> Sampler:
    """Return a function that draws an index, as often as its weight says."""
    total, bounds = 0.0, []
    for weight in weights:
        total += weight
        bounds.append(total)

    def choose() -> int:
        at = chance() * total
        for index, bound in enumerate(bounds):
            if at < bound:
                return index
        return len(bounds) - 1

    return choose


HEADINGS = ("job", "task")


def durations_from_csv(path: str | Path) -> dict[str, dict[str, float]]:
    """Return {task: {job: seconds}}; the task is "" where the table does not name any. `CallerError` names the line."""
    found: dict[str, dict[str, float]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.reader(file), 1):
                cells = [cell.strip() for cell in row]
                if not any(cells) or (number == 1 and cells[0].lower() in HEADINGS):
                    continue
                _add(found, cells, f"{path}:{number}")
    except OSError as error:
        raise NotPossibleError(f"the table cannot be read: {error.strerror}", where=str(path)) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidValueError(
            f"this is no CSV: {error}", where=str(path), remedy="save it as UTF-8 CSV"
        ) from error
    if not found:
        raise InvalidValueError(
            "the table has no durations", where=str(path), remedy="write lines of job,seconds"
        )
    return found


def _add(found: dict[str, dict[str, float]], cells: list[str], where: str) -> None:
    if len(cells) not in (2, 3):
        raise InvalidValueError(
            f"{len(cells)} columns", where=where, remedy="write job,seconds or task,job,seconds"
        )
    task, job, given = ("", *cells) if len(cells) == 2 else cells
    if not is_job(job):
        raise InvalidValueError(f"{job!r:.80} is not a job id", where=where, remedy="write job,seconds")
    try:
        seconds = float(given)
    except ValueError:
        raise InvalidValueError(f"{given!r:.80} is no number of seconds", where=where) from None
    if not 0 <= seconds < inf:
        raise InvalidValueError(f"{given} seconds is no duration", where=where, remedy="give 0 or more")
    if job in found.setdefault(task, {}):
        raise InvalidValueError(
            f"{job} is in the table twice", where=where, remedy="leave one line for each job"
        )
    found[task][job] = seconds


_LN2 = 0.6931471805599453
_LN2_HIGH = 0.693147180369123816490
_LN2_LOW = 1.90821492927058770002e-10
_ROOT_HALF = 0.7071067811865476
_3, _5, _7, _9, _11, _13, _15, _17, _19 = (1.0 / odd for odd in range(3, 21, 2))
_FACTORIALS = tuple(
    1.0 / number
    for number in (
        6227020800,
        479001600,
        39916800,
        3628800,
        362880,
        40320,
        5040,
        720,
        120,
        24,
        6,
        2,
        1,
        1,
    )
)
_LARGEST = 709.0

# Peter J. Acklam's rational approximations of the inverse normal distribution.
_A = (-39.69683028665376, 220.9460984245205, -275.9285104469687, 138.3577518672690, -30.66479806614716, 2.506628277459239)  # fmt: skip
_B = (-54.47609879822406, 161.5858368580409, -155.6989798598866, 66.80131188771972, -13.28068155288572)
_C = (-0.007784894002430293, -0.3223964580411365, -2.400758277161838, -2.549732539343734, 4.374664141464968, 2.938163982698783)  # fmt: skip
_D = (0.007784695709041462, 0.3224671290700398, 2.445134137142996, 3.754408661907416)
_TAIL = 0.02425


def ln(x: float) -> float:
    """Return the natural logarithm of a positive number."""
    mantissa, exponent = frexp(x)
    if mantissa < _ROOT_HALF:
        mantissa *= 2.0
        exponent -= 1
    rest = mantissa - 1.0
    s = rest / (2.0 + rest)
    z = s * s
    more = (((((((_19 * z + _17) * z + _15) * z + _13) * z + _11) * z + _9) * z + _7) * z + _5) * z + _3
    return exponent * _LN2_HIGH + (2.0 * s * (more * z + 1.0) + exponent * _LN2_LOW)


def exp(x: float) -> float:
    """Return e to the power of x; 0 or the largest power that fits where x is out of range."""
    if x < -_LARGEST:
        return 0.0
    x = min(x, _LARGEST)
    power = floor(x / _LN2 + 0.5)
    rest = (x - power * _LN2_HIGH) - power * _LN2_LOW
    total = 0.0
    for part in _FACTORIALS:
        total = total * rest + part
    return ldexp(total, power)


def normal(u: float) -> float:
    """Return the number below which a standard normal one lies with probability u, 0 < u < 1."""
    if u < _TAIL:
        return _tail(sqrt(-2.0 * ln(u)))
    if u > 1.0 - _TAIL:
        return -_tail(sqrt(-2.0 * ln(1.0 - u)))
    q = u - 0.5
    r = q * q
    above = (((((_A[0] * r + _A[1]) * r + _A[2]) * r + _A[3]) * r + _A[4]) * r + _A[5]) * q
    below = ((((_B[0] * r + _B[1]) * r + _B[2]) * r + _B[3]) * r + _B[4]) * r + 1.0
    return above / below


def _tail(q: float) -> float:
    above = ((((_C[0] * q + _C[1]) * q + _C[2]) * q + _C[3]) * q + _C[4]) * q + _C[5]
    return above / ((((_D[0] * q + _D[1]) * q + _D[2]) * q + _D[3]) * q + 1.0)


Chance = Callable[[], float]
"""Returns a number in [0, 1)."""


def stream(seed: int, replication: int, owner: str, purpose: str) -> Chance:
    """Return the stream for a purpose of a task (or of a machine, or of none)."""
    named = f"{seed}\0{replication}\0{owner}\0{purpose}".encode()
    return Random(int.from_bytes(blake2b(named, digest_size=16).digest(), "big")).random
