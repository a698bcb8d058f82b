"""Faults: a test says which requests go wrong, how often and how; in comes a request, out goes a refusal, a pause or a cut."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.kube.api.requests import Asked
from tests.kube.api.statuses import REASONS


@dataclass
class Fault:
    """What goes wrong with requests of a verb (and resource); `times` None: until it is taken away.

    `seconds` it waits first. Then `code` refuses, with a Status of `message`, or with `text` as it is; `cut` "before" hangs
    up without doing anything, "after" does it and hangs up without an answer; `events` ends a watch after so many, cleanly
    or (`torn`) within an event; `frozen` lets a watch live on and say nothing; `most_bytes` cuts a log anywhere.
    """

    verb: str
    resource: str = "pods"
    times: int | None = 1
    code: int = 0
    message: str = ""
    reason: str | None = None
    details: dict[str, Any] | None = None
    text: str | None = None
    retry_after: int | None = None
    seconds: float = 0.0
    cut: str = ""
    events: int | None = None
    torn: bool = False
    frozen: bool = False
    most_bytes: int | None = None
    seen: int = field(default=0, init=False)

    def fits(self, asked: Asked) -> bool:
        """Whether this is for a request; it is counted if so."""
        if self.times is not None and self.seen >= self.times:
            return False
        if self.verb not in ("*", asked.verb) or self.resource not in ("*", asked.resource):
            return False
        self.seen += 1
        return True

    async def answer(self) -> web.Response | None:
        """Wait, and return the refusal, if it is one."""
        if self.seconds:
            await asyncio.sleep(self.seconds)
        if not self.code:
            return None
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.text is not None:
            return web.Response(text=self.text, status=self.code, headers=headers)
        told: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": REASONS.get(self.code, "") if self.reason is None else self.reason,
        }
        if self.details:
            told["details"] = self.details
        body = json.dumps({**told, "code": self.code})
        return web.Response(text=body, status=self.code, headers=headers, content_type="application/json")


def too_many(times: int = 1, retry_after: int = 1, verb: str = "*", resource: str = "*") -> Fault:
    """Return the answer of a server that has too much to do: plain text, as it is sent."""
    text = "Too many requests, please try again later.\n"
    return Fault(verb, resource, times, 429, text=text, retry_after=retry_after)


def broken(times: int = 1, verb: str = "*", resource: str = "*") -> Fault:
    """Return the answer of a server that has lost its store."""
    return Fault(verb, resource, times, 500, "etcdserver: request timed out")


def away(
    verb: str = "*", resource: str = "pods", *, times: int | None = None, message: str = "away"
) -> Fault:
    """Return the answer of a server that is not there, until this is taken away."""
    return Fault(verb, resource, times, 503, message)


def hang_up(request: web.Request) -> None:
    """Close a connection without a word."""
    if request.transport is not None:
        request.transport.abort()
