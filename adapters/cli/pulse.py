"""Whether the engine that has a log is alive, by its own word: it is asked through its inbox, as any request is.

In: a log's path. Out: whether it answers, and what is wrong with its services. That it holds the lease says only that its process is there.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import NamedTuple

from datatask.adapters.log.asking import NoEngineError, ask_to_ping
from datatask.adapters.log.holder import lease_holder
from datatask.adapters.wiring.actors import actor
from datatask.schema.errors import DatataskError, TimeLimitError
from datatask.schema.requests import Ping, ServiceHealth

DOCTOR_SECONDS = 5.0
STATUS_SECONDS = 2.0


class Pulse(NamedTuple):
    """`answers` is None where there is no engine to ask, or this user may not; then `why` says so."""

    answers: bool | None
    why: str = ""
    services: tuple[ServiceHealth, ...] = ()

    def troubles(self) -> dict[str, str]:
        """Return what is wrong, by service."""
        found = {"engine": self.why} if self.answers is False else {}
        for service in self.services:
            if service.state == "down":
                found[service.name] = f"is down: {service.why}"
            elif service.restarts:
                found[service.name] = f"was started again ({service.restarts}), the last time: {service.why}"
        return found


def take_pulse(path: Path, seconds: float) -> Pulse:
    """Ask the engine on a log for a sign of life, and wait so long for it."""
    request = Ping(id=str(uuid.uuid4()), actor=actor("datatask doctor"))
    try:
        if lease_holder(path) is None:
            return Pulse(None, "no engine runs")
        reply = ask_to_ping(path, request, timeout_seconds=seconds)
    except NoEngineError:
        return Pulse(None, "the engine has just ended")
    except TimeLimitError:
        return Pulse(
            False, f"does not answer within {seconds:g} s: it is being opened, or something blocks it"
        )
    except DatataskError as error:
        return Pulse(None, f"it was not asked: {error.fact}")
    return Pulse(True, services=reply.services)  # an older one does not know the request, and says so
