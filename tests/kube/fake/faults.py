"""Errors on demand: a test says which requests, how many of them, and what goes wrong.

    cluster.faults.add("create", refuse=too_many_requests(2), times=3)
    cluster.faults.add("create", cut="after")             # done, and nobody hears of it
    cluster.faults.add("watch", stream_bytes=5000)        # the connection breaks inside of an event
    cluster.faults.add("*", delay_seconds=2, times=None)  # until `clear()`

Verbs are get, list, watch, create, update, patch, delete, deletecollection, log, exec.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from tests.kube.fake.refusals import Refusal

When = Literal["before", "after"]


class Fault:
    """Something that goes wrong: `times` requests of a kind, after `skip` others (None: all)."""

    def __init__(
        self,
        verb: str,
        resource: str = "*",
        name: str = "*",
        *,
        times: int | None = 1,
        skip: int = 0,
        refuse: Refusal | None = None,
        cut: When | None = None,
        hang: When | None = None,
        delay_seconds: float = 0.0,
        stream_bytes: int | None = None,
    ) -> None:
        self.verb, self.resource, self.name = verb, resource, name
        self.left, self.skip = times, skip
        self.refuse, self.cut, self.hang = refuse, cut, hang
        self.delay_seconds, self.stream_bytes = delay_seconds, stream_bytes
        self.seen = 0

    def takes(self, verb: str, resource: str, name: str) -> bool:
        """Tell whether this request is one of those, and count it."""
        wanted = (self.verb in ("*", verb), self.resource in ("*", resource), self.name in ("*", name))
        if not all(wanted) or self.left == 0:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.left = None if self.left is None else self.left - 1
        self.seen += 1
        return True


class Cut(Exception):
    """The connection breaks."""


class Faults:
    """All that is to go wrong."""

    def __init__(self) -> None:
        self.all: list[Fault] = []

    def add(self, verb: str, resource: str = "*", name: str = "*", **what: object) -> Fault:
        """Let something go wrong; see Fault."""
        fault = Fault(verb, resource, name, **what)  # type: ignore[arg-type]
        self.all.append(fault)
        return fault

    def clear(self) -> None:
        """Let all be well."""
        self.all.clear()

    def taken(self, verb: str, resource: str, name: str) -> list[Fault]:
        """Return what goes wrong with a request."""
        return [fault for fault in self.all if fault.takes(verb, resource, name)] if self.all else []


async def befall(faults: list[Fault], when: When) -> None:
    """Let it go wrong, before or after the request was carried out."""
    for fault in faults:
        if when == "before" and fault.delay_seconds:
            await asyncio.sleep(fault.delay_seconds)
        if fault.hang == when:
            await asyncio.Event().wait()
        if fault.cut == when:
            raise Cut
        if when == "before" and fault.refuse is not None:
            raise fault.refuse
