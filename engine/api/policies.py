"""Policies that users give to tasks: quotas that several tasks share, and retries.

A `ResourceManager` is a name and amounts; its use is a view over the open runs of the log, and the core decides.
`register`, `reserve`, `relinquish` and `flush` are pydatatask's verbs, kept for users' own tasks that count by
themselves: they see only what was reserved through them.
"""

from __future__ import annotations

import datetime as dt
import re
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from datatask.schema.definition import (
    INFRASTRUCTURE_ATTEMPTS,
    LOGS_BYTES,
    OUT_OF_MEMORY,
    PROGRESS,
    Conflicts,
    OnChange,
    QuotaDef,
    RetryDef,
)
from datatask.schema.errors import TEXT, DatataskError, InvalidValueError, expect, one_of
from datatask.schema.resources import Resources, ResourceType, parse_size
from datatask.schema.units import SECOND, parse_span
from datatask.schema.values import check_name

Duration = float | str | dt.timedelta
"""Seconds, a text such as `"90s"`, `"5m"` or `"1h 30m"`, or a timedelta."""
Getter = Callable[[], Awaitable[Resources]]
LOGS_BYTES_MAX = 64 << 20
_NOTHING = Resources(launches=0)


def nanoseconds(duration: Duration, what: str) -> int:
    """Return a duration as whole nanoseconds; `CallerError` names `what` when it is none."""
    if isinstance(duration, dt.timedelta) and duration >= dt.timedelta(0):
        return duration // dt.timedelta(microseconds=1) * 1000
    seconds = parse_span(duration) if isinstance(duration, str) else duration
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e9:
        raise InvalidValueError(
            f"{what} is {duration!r:.60}, which is no duration",
            remedy="use seconds (0 or more), a text such as '90s', '5m' or '1h 30m', or a timedelta",
        )
    return round(seconds * 1e9)


def kept_bytes(logs: str | int | bool, where: str) -> int:
    """Return how many bytes of a stream `logs` says; True is the usual number, False none."""
    if isinstance(logs, bool):
        return LOGS_BYTES if logs else 0
    try:
        size = int(parse_size(logs)) if isinstance(logs, str) else logs
    except DatataskError:
        size = -1
    if not isinstance(size, int) or not 0 <= size <= LOGS_BYTES_MAX:
        raise InvalidValueError(
            f"logs={logs!r:.60} of {where} is no size",
            remedy=f"use '1MiB', bytes (at most {LOGS_BYTES_MAX}), or False to keep nothing",
        )
    return size


class ResourceManager:
    """A limit on cpu, memory, launches per window and named amounts.

    `quota.launches` is how many launches each `window` allows; a job that was passed over for longer than
    `starvation_after` gets what it lacks reserved. Without a `name` it is `default`, `default2`, …. Of amounts that are lists
    (`Resources.parse(8, "64Gi", gpu=["0", "1"])`) each run gets identities of its own, told in an environment variable:
    `CUDA_VISIBLE_DEVICES` for `gpu`, else `DATATASK_` and the name in capitals, unless `variables` has another one.
    """

    def __init__(
        self,
        quota: Resources,
        *,
        name: str | None = None,
        window: Duration = 60.0,
        starvation_after: Duration = 60.0,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        expect(self, Resources, "pass Resources.parse('4', '8Gi')", quota=quota)
        expect(self, TEXT, optional=True, name=name)
        self.quota = quota
        self.name = None if name is None else check_name(name, "quota")
        self.window = nanoseconds(window, "window")
        self.starvation_after = nanoseconds(starvation_after, "starvation_after")
        self.variables = _variables(quota, variables or {})
        self._getters: list[Getter] = []
        self._reserved = _NOTHING

    def __repr__(self) -> str:
        return f"ResourceManager({self.quota!r}, name={self.name!r})"

    def to_def(self, name: str) -> QuotaDef:
        """Return the declared form under this name (its own, if it has one)."""
        return QuotaDef(
            name=self.name or name,
            limits=self.quota.to_amounts(),
            launches=self.quota.launches,
            window=self.window,
            starvation_after=self.starvation_after,
            identities=dict(self.quota.identities),
            variables=self.variables,
        )

    def register(self, getter: Getter) -> None:
        """Count what `getter` returns as used, for `reserve` only."""
        self._getters.append(getter)

    async def reserve(self, request: Resources) -> ResourceType | None:
        """Reserve an amount, and return None; or return the dimension that it exceeds, and reserve nothing."""
        used = self._reserved
        for getter in self._getters:
            used = used + await getter()
        excess = (used + request).excess(self.quota)
        if excess is None:
            self._reserved = self._reserved + request
        return excess

    async def relinquish(self, request: Resources) -> None:
        """Give a reservation back."""
        self._reserved = self._reserved - request

    async def flush(self) -> None:
        """Forget what was read; nothing is kept here, so there is nothing to forget."""


Requests = Resources | Sequence[Resources]
"""What a run takes; or what the first attempt takes, the second and so on, of which the last repeats."""
REQUESTS_MAX = 100


def listed_requests(given: Requests, where: str, what: str = "job_resources") -> tuple[Resources, ...]:
    """Return what the attempts take; `InvalidValueError` for what is no list of `Resources`."""
    listed = (given,) if isinstance(given, Resources) else given
    if not isinstance(listed, list | tuple) or not all(isinstance(one, Resources) for one in listed):
        raise InvalidValueError(
            f"{what} of task {where} is a {type(given).__name__}, no Resources",
            remedy="pass Resources.parse('1', '1Gi'), or a list of them: for the first attempt, the second, …",
        )
    if not 0 < len(listed) <= REQUESTS_MAX:
        raise InvalidValueError(
            f"{what} is a list of {len(listed)}", where=where, remedy=f"list 1 to {REQUESTS_MAX} of them"
        )
    return tuple(listed)


_VARIABLES = {"gpu": "CUDA_VISIBLE_DEVICES"}
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def _variables(quota: Resources, given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variable for each resource with identities; `InvalidValueError` for what is none."""
    for name, variable in given.items():
        if name not in quota.identities:
            raise InvalidValueError(
                f"variables names {name!r:.80}, which has no identities",
                remedy=one_of(quota.identities, name) if quota.identities else 'list some: gpu=["0", "1"]',
            )
        if not isinstance(variable, str) or not _VARIABLE.fullmatch(variable):
            raise InvalidValueError(
                f"{variable!r:.80} is no name of an environment variable",
                where=name,
                remedy="use letters, digits and _, no digit first",
            )
    usual = {
        name: _VARIABLES.get(name, f"DATATASK_{re.sub('[^A-Za-z0-9]', '_', name).upper()}")
        for name in quota.identities
    }
    return usual | dict(given)


RETRIED = ("failed", "timed_out", "cancelled", "refused")
RetriedOn = str | int | signal.Signals | type[BaseException]


_ON = f"list {', '.join(RETRIED)}, out_of_memory, exit codes (1 to 255), signals such as 'SIGSEGV', types of exceptions"


def _recorded(reason: RetriedOn) -> str:
    """Return what is tried again as definitions have it: `failed`, `exit 75`, `SIGSEGV`, `out_of_memory`, `error OSError`."""
    match reason:
        case signal.Signals():
            return reason.name
        case bool():
            pass
        case int() if 1 <= reason <= 255:
            return f"exit {reason}"
        case str() if reason in (*RETRIED, OUT_OF_MEMORY) or reason in signal.Signals.__members__:
            return reason
        case type() if issubclass(reason, BaseException):
            return f"error {reason.__name__}"
    raise InvalidValueError(f"on={reason!r:.60} is not known", remedy=_ON)


@dataclass(frozen=True)
class Retry:
    """How often a job is tried in all (`attempts`), and how long to wait between.

    `backoff` is a duration, or (first, factor, longest); `on` lists what is tried again: outcomes (failed, timed_out,
    cancelled, refused), exit codes, signals (`"SIGSEGV"`), `"out_of_memory"`, types of exceptions with those below them. `jitter` spreads each wait by that fraction. Runs that were lost to the
    infrastructure have a budget of their own: `infrastructure_attempts` of them in a row are run again. One that had been
    up for `progress_after` (None: never) made progress: those before it count no more.
    """

    attempts: int = 1
    backoff: Duration | tuple[Duration, float, Duration] = 1.0
    on: Sequence[RetriedOn] = ("failed", "timed_out")
    jitter: float = 0.1
    infrastructure_attempts: int = INFRASTRUCTURE_ATTEMPTS
    progress_after: Duration | None = PROGRESS / SECOND

    def __post_init__(self) -> None:
        if isinstance(self.on, str) or not isinstance(self.on, Sequence):
            raise InvalidValueError(f"on={self.on!r} is no list", remedy=_ON)
        object.__setattr__(self, "on", tuple(self.on))
        if not isinstance(self.attempts, int) or self.attempts < 1 or not 0 <= self.jitter <= 1:
            raise InvalidValueError(
                f"{self!r} is no policy", remedy="use attempts of 1 or more and jitter in 0..1"
            )
        lost = self.infrastructure_attempts
        if not isinstance(lost, int) or isinstance(lost, bool) or lost < 0:
            raise InvalidValueError(
                f"infrastructure_attempts={lost!r} is no number of runs",
                remedy="use 0 or more: the number of lost runs in a row that are run again",
            )
        self.to_def()

    def to_def(self) -> RetryDef:
        """Return the declared form, in nanoseconds."""
        pair = self.backoff if isinstance(self.backoff, tuple) else (self.backoff, 1.0, self.backoff)
        if len(pair) != 3 or pair[1] < 1:
            raise InvalidValueError(
                f"backoff={self.backoff!r}", remedy="use a duration, or (first, factor >= 1, longest)"
            )
        first, longest = nanoseconds(pair[0], "backoff"), nanoseconds(pair[2], "longest backoff")
        return RetryDef(
            attempts=self.attempts,
            first=first,
            factor=pair[1],
            longest=longest,
            jitter=self.jitter,
            on=tuple(_recorded(reason) for reason in self.on),
            infrastructure_attempts=self.infrastructure_attempts,
            progress=(
                None if self.progress_after is None else nanoseconds(self.progress_after, "progress_after")
            ),
        )


class Policy(TypedDict, total=False):
    """What every task of the engine takes by name, besides its `timeout`: how it is run, by whatever runner."""

    disabled: bool
    retry: Retry | None
    grace: Duration
    concurrency: int | None
    repeat: bool
    was: str | None
    conflicts: Conflicts
    on_change: OnChange
    cache: bool | None
