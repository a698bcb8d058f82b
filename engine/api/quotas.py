"""Quotas as the user writes them: a limit that several tasks share.

A `ResourceManager` is a name and amounts; who uses how much is a view over the open runs of the log, and
deciding is the core's. `register`, `reserve`, `relinquish` and `flush` are pydatatask's verbs, kept for
tasks of the user's own that count by themselves: they see only what was reserved through them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable

from datatask.schema.definition import QuotaDef
from datatask.schema.errors import TEXT, InvalidValueError, expect
from datatask.schema.resources import Resources, ResourceType
from datatask.schema.values import check_name

__all__ = ["ResourceManager", "ResourceType", "Resources", "nanoseconds"]

Getter = Callable[[], Awaitable[Resources]]
_NOTHING = Resources(launches=0)


def nanoseconds(duration: float | dt.timedelta, what: str) -> int:
    """Return seconds or a timedelta as whole nanoseconds; `CallerError` names `what` when it is no duration."""
    if isinstance(duration, dt.timedelta):
        return round(duration / dt.timedelta(microseconds=1)) * 1000
    if isinstance(duration, bool) or not isinstance(duration, int | float) or not 0 <= duration < 1e9:
        raise InvalidValueError(
            f"{what} is {duration!r:.60}, which is no duration",
            remedy="use seconds (0 or more) or a timedelta",
        )
    return round(duration * 1e9)


class ResourceManager:
    """A limit on cpu, memory, launches per window and named amounts.

    `quota.launches` is how many launches each `window` allows; a job that was passed over for longer than
    `starvation_after` gets what it lacks reserved. Without a `name` it is `default`, `default2`, ….
    """

    def __init__(
        self,
        quota: Resources,
        *,
        name: str | None = None,
        window: float | dt.timedelta = 60.0,
        starvation_after: float | dt.timedelta = 60.0,
    ) -> None:
        expect(self, Resources, "pass Resources.parse('4', '8Gi')", quota=quota)
        expect(self, TEXT, optional=True, name=name)
        self.quota = quota
        self.name = None if name is None else check_name(name, "quota")
        self.window = nanoseconds(window, "window")
        self.starvation_after = nanoseconds(starvation_after, "starvation_after")
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
