"""Distributions of durations in seconds, their samplers, and durations by job from a CSV table.

In: numbers that a person chose or a log recorded, or a file of `job,seconds` or `task,job,seconds` lines with or
without headings. Out: `sampler(chance)`, a function that returns nanoseconds, or seconds by job, by task. A sampler draws
ahead from its own stream (`random_streams`), by inverse transforms throughout: one number drawn is one returned. What
is no job, no number or negative is refused by name, in a file by line.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf, log
from pathlib import Path

from datatask.adapters.sim.random_streams import Chance, exp, ln, normal
from datatask.schema.errors import CallerError, InvalidValueError
from datatask.schema.ids import is_job
from datatask.schema.units import SECOND

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


def as_distribution(told: Distribution | float | int) -> Distribution:
    """Return a value as a distribution: a number is a constant."""
    return told if isinstance(told, Distribution) else Constant(told)


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
        raise CallerError(f"the table cannot be read: {error.strerror}", where=str(path)) from error
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
    task, job, told = ("", *cells) if len(cells) == 2 else cells
    if not is_job(job):
        raise InvalidValueError(f"{job!r:.80} is not a job id", where=where, remedy="write job,seconds")
    try:
        seconds = float(told)
    except ValueError:
        raise InvalidValueError(f"{told!r:.80} is no number of seconds", where=where) from None
    if not 0 <= seconds < inf:
        raise InvalidValueError(f"{told} seconds is no duration", where=where, remedy="give 0 or more")
    if job in found.setdefault(task, {}):
        raise InvalidValueError(
            f"{job} is in the table twice", where=where, remedy="leave one line for each job"
        )
    found[task][job] = seconds
