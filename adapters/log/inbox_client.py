"""Asking the engine that runs on a log: a request goes into its inbox, and the answer is waited for.

In: a log and a request. Out: the engine's answer. `NoEngineError` where there is none, or it ended before it carried the request out: the
log itself says whether it did. The same request may then be asked again, of the next engine or with the log opened: its id makes
it be carried out once. With `stay` it stays in the inbox meanwhile, so that the next engine finds it, whoever opens that; then it is the
caller who has to `withdraw` it. Blocking; the engine's side is inbox.py.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from datatask.adapters.log.faults import mapped
from datatask.adapters.log.inbox import check_id
from datatask.adapters.log.lease import lease_holder, probe
from datatask.adapters.log.locate import inbox_path
from datatask.adapters.log.private import FILE_BYTES_MAX, OddFileError, PrivateFolder, user_name
from datatask.adapters.log.reader import LogReader
from datatask.adapters.trust import check_above, make_private
from datatask.engine.ports import Filters
from datatask.schema.errors import (
    DatataskError,
    InvalidValueError,
    LogError,
    NotPossibleError,
    TemporaryError,
    TimeLimitError,
)
from datatask.schema.messages import AnyRequest, Ping, Reply, ServiceHealth

_LOOK_SECONDS = (0.005, 0.1)
_PROBE_SECONDS = 0.25
_PUT_MAX = 20
"""So often a request is put into an inbox from which it vanishes."""

Alive = Callable[[Path], int | None]


class NoEngineError(TemporaryError):
    """No engine runs on the log, or it ended before it carried the request out, which is withdrawn."""


def ask(
    log: Path,
    request: AnyRequest,
    *,
    timeout_seconds: float,
    stay: bool = False,
    alive: Alive = probe,
    sleep: Callable[[float], None] = time.sleep,
) -> Reply:
    """Hand a request to the engine that runs on `log`, and return its answer.

    `NoEngineError`: there is no engine, or it died before it carried the request out (which is then
    withdrawn, but for `stay`). `TimeLimitError`: no answer yet; the request stays in the inbox and will be answered.
    """
    root = inbox_path(log)
    if alive(log) is None:
        raise NoEngineError("no engine runs on this log", where=str(log), remedy="open the log instead")
    check_above(root, group=True)  # the engine takes nothing from a place that others may fill
    with LogReader(log) as reader:
        before = reader.head
    question = _Question(root, request)
    began = probed = time.monotonic()
    pause, longest = _LOOK_SECONDS
    while True:
        if (reply := question.answered()) is not None:
            return reply
        now = time.monotonic()
        if now - probed >= _PROBE_SECONDS:
            probed = now
            if alive(log) is None:
                return _after_death(log, request, question, before, stay)
        if now - began >= timeout_seconds:
            raise TimeLimitError(
                f"the engine has not answered within {timeout_seconds:g} s",
                where=str(log),
                remedy=f"the request {request.id} stays in the inbox; look for it in `datatask log`",
            )
        sleep(pause)
        pause = min(pause * 1.5, longest)


def ask_to_ping(log: Path, request: Ping, *, timeout_seconds: float) -> Reply:
    """The same as `ask`; but what was not answered in time is withdrawn."""
    refuse_strangers(log)
    try:
        return ask(log, request, timeout_seconds=timeout_seconds)
    except TimeLimitError:
        _Question(inbox_path(log), request).withdraw()
        raise


def leave(log: Path, request: AnyRequest) -> None:
    """Leave a request to the next engine that opens `log`, which carries it out; no answer is waited for."""
    root = inbox_path(log)
    with mapped(root):
        make_private(root)
    _Question(root, request).answered()


def refuse_strangers(log: Path) -> None:
    """Raise `CallerError` unless this user may ask for changes of a log: its owner, or root."""
    try:
        owner = os.stat(log).st_uid
    except OSError:
        return  # whoever opens it will say so
    if os.geteuid() not in (0, owner):
        raise NotPossibleError(
            f"this log belongs to {user_name(owner)}; only they and root may change it",
            where=str(log),
            remedy=f"ask as {user_name(owner)}: sudo -u {user_name(owner)} datatask …",
        )


class _Question:
    """A request in the inbox; put there again should the folder vanish before it is answered."""

    def __init__(self, root: Path, request: AnyRequest) -> None:
        self._root = root
        self._data = msgspec.json.encode(request)
        self._names = f"{check_id(request.id)}.json", f"{request.id}.reply"
        self._puts = 0
        if len(self._data) > FILE_BYTES_MAX:
            raise InvalidValueError(
                f"this request has {len(self._data):,} bytes, more than {FILE_BYTES_MAX:,}",
                remedy="ask for it in portions",
            )

    def answered(self) -> Reply | None:
        """Return the answer, if it is there; see that the request is."""
        question, answer = self._names
        try:
            with mapped(self._root), PrivateFolder(self._root) as folder:
                there = folder.has(question)
                if folder.has(answer):
                    return self._take(folder, answer)
                if not there:
                    self._put(folder, question)
        except LogError as error:
            # The engine makes its folder again when it looks next.
            if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                raise
        return None

    def _put(self, folder: PrivateFolder, question: str) -> None:
        self._puts += 1
        if self._puts > _PUT_MAX:
            raise LogError(
                "the request vanishes from the inbox and is not answered",
                where=str(self._root / question),
                remedy="see what else removes files there, and what `datatask doctor` says",
            )
        folder.write(question, self._data)

    def withdraw(self) -> Reply | None:
        """Take the request out; return the answer, if it came."""
        question, answer = self._names
        with suppress(LogError), mapped(self._root), PrivateFolder(self._root) as folder:
            folder.remove(question)
            if folder.has(answer):
                return self._take(folder, answer)
        return None

    def _take(self, folder: PrivateFolder, answer: str) -> Reply | None:
        try:
            reply = msgspec.json.decode(folder.read(answer), type=Reply)
        except FileNotFoundError:
            return None
        except (OddFileError, msgspec.DecodeError) as error:
            raise LogError(
                f"the engine's answer cannot be read: {error}",
                where=str(self._root / answer),
                remedy="look for the request in `datatask log`",
            ) from error
        folder.remove(answer)
        return reply


def withdraw(log: Path, request: AnyRequest) -> None:
    """Take a request out of the inbox, and its answer."""
    _Question(inbox_path(log), request).withdraw()


def _after_death(log: Path, request: AnyRequest, question: _Question, before: int, stay: bool) -> Reply:
    """Return what a dead engine made of a request, from its reply or the log; withdraw it if nothing."""
    if (reply := question.answered() if stay else question.withdraw()) is not None:
        return reply
    with LogReader(log) as reader:
        done = [
            position
            for position, event in reader.read(before, filters=Filters(text=request.id))
            if getattr(event, "request", None) == request.id
        ]
    if done:
        question.withdraw()
        return Reply(id=request.id, position=done[-1], count=len(done))
    raise NoEngineError(
        "the engine ended before it carried out the request",
        where=str(log),
        remedy="ask again: with no engine running the command opens the log itself",
    )


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


def take_pulse(path: Path, actor: str, seconds: float) -> Pulse:
    """Ask the engine on a log for a sign of life, and wait for it up to a limit."""
    try:
        if lease_holder(path) is None:
            return Pulse(None, "no engine runs")
        reply = ask_to_ping(path, Ping(id=str(uuid.uuid4()), actor=actor), timeout_seconds=seconds)
    except NoEngineError:
        return Pulse(None, "the engine has just ended")
    except TimeLimitError:
        return Pulse(
            False, f"does not answer within {seconds:g} s: it is being opened, or something blocks it"
        )
    except DatataskError as error:
        return Pulse(None, f"it was not asked: {error.fact}")
    return Pulse(True, services=reply.services)  # an older one does not know the request, and says so
