"""The inbox: a spool folder beside the log through which other processes ask the engine.

A request is a file `<id>.json`, written whole (temporary name, fsync, rename) and kept until answered; the
answer is `<id>.reply`. The engine looks with `pending`, one `stat` of the folder when nothing changed, and
turns requests into events that carry their id. `ask` is the other side: it waits for the answer and notices
when the engine dies, in which case the log itself says whether the request was carried out.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from datatask.adapters.log.faults import mapped
from datatask.adapters.log.lease import probe
from datatask.adapters.log.locate import inbox_path
from datatask.adapters.log.opening import sync_folder
from datatask.adapters.log.reader import LogReader
from datatask.engine.ports import Filters
from datatask.schema.errors import CallerError, TemporaryError, TimeLimitError
from datatask.schema.requests import AnyRequest, Refusal, Reply

PENDING_MAX = 1_000
REPLY_KEPT_SECONDS = 24 * 3600

_ID = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)
_SETTLED_NS = 100_000_000
"""A folder changed less than this before we looked may change again without a new time stamp."""

_LOOK_SECONDS = (0.005, 0.1)
_PROBE_SECONDS = 0.25

_decoder: msgspec.json.Decoder[AnyRequest] = msgspec.json.Decoder(AnyRequest)


class FileInbox:
    """The engine's side: the `Inbox` port over a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stamp = -1
        self._known: list[AnyRequest] = []
        with mapped(root):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._clean()

    def pending(self) -> list[AnyRequest]:
        """Return the unanswered requests, oldest first (at most 1,000); what cannot be read is refused here."""
        with mapped(self.root):
            stamp = os.stat(self.root).st_mtime_ns
            if stamp != self._stamp:
                looked = time.time_ns()
                self._known = self._list()
                self._stamp = stamp if looked - stamp > _SETTLED_NS else -1
        return list(self._known)

    def answer(self, reply: Reply) -> None:
        """Answer a request, durably, and remove it from the pending ones."""
        with mapped(self.root):
            _write(self.root / f"{check_id(reply.id)}.reply", msgspec.json.encode(reply))
            (self.root / f"{reply.id}.json").unlink(missing_ok=True)
        self._known = [request for request in self._known if request.id != reply.id]

    def _list(self) -> list[AnyRequest]:
        entries = [entry for entry in os.scandir(self.root) if entry.name.endswith(".json")]
        entries.sort(key=lambda entry: (entry.stat().st_mtime_ns, entry.name))
        requests = (self._read(Path(entry.path)) for entry in entries[:PENDING_MAX])
        return [request for request in requests if request is not None]

    def _read(self, path: Path) -> AnyRequest | None:
        """Return the request in a file; one that we cannot understand is answered at once, and not kept."""
        try:
            request = _decoder.decode(path.read_bytes())
            if request.id == path.stem and _ID.fullmatch(path.stem):
                return request
            why = f"its id is {request.id!r:.80}"
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            why = str(error)
        refusal = Refusal(
            code="usage",
            what=f"this request cannot be understood: {why}",
            where=str(path),
            remedy="use the datatask version of the engine that runs",
        )
        _write(path.with_suffix(".reply"), msgspec.json.encode(Reply(id=path.stem, refusal=refusal)))
        path.unlink(missing_ok=True)
        return None

    def _clean(self) -> None:
        """Remove replies that nobody waits for any more, and what writers left behind."""
        oldest = time.time() - REPLY_KEPT_SECONDS
        for path in [*self.root.glob("*.reply"), *self.root.glob("*.new")]:
            if path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)


def ask(
    log: Path,
    request: AnyRequest,
    *,
    timeout_seconds: float,
    alive: Callable[[Path], int | None] = probe,
    sleep: Callable[[float], None] = time.sleep,
) -> Reply:
    """Hand a request to the engine that runs on `log`, and return its answer.

    `TemporaryError`: there is no engine, or it died before it carried the request out (which is then
    withdrawn). `TimeLimitError`: no answer yet; the request stays in the inbox and will be answered.
    """
    root = inbox_path(log)
    if alive(log) is None or not root.is_dir():
        raise TemporaryError("no engine runs on this log", where=str(log), remedy="open the log instead")
    with LogReader(log) as reader:
        before = reader.head
    question, answer = root / f"{check_id(request.id)}.json", root / f"{request.id}.reply"
    with mapped(root):
        _write(question, msgspec.json.encode(request))
    began = probed = time.monotonic()
    pause, longest = _LOOK_SECONDS
    while True:
        if (reply := _take(answer)) is not None:
            return reply
        now = time.monotonic()
        if now - probed >= _PROBE_SECONDS:
            probed = now
            if alive(log) is None:
                return _after_death(log, request, question, answer, before)
        if now - began >= timeout_seconds:
            raise TimeLimitError(
                f"the engine has not answered within {timeout_seconds:g} s",
                where=str(log),
                remedy=f"the request {request.id} stays in the inbox; look for it in `datatask log`",
            )
        sleep(pause)
        pause = min(pause * 1.5, longest)


def check_id(text: str) -> str:
    """Return a request's id when it can name a file, else raise `CallerError`."""
    if not _ID.fullmatch(text):
        raise CallerError(f"{text!r:.80} cannot name a request", remedy="use a uuid")
    return text


def _after_death(log: Path, request: AnyRequest, question: Path, answer: Path, before: int) -> Reply:
    """Return what a dead engine made of a request, from its reply or the log; withdraw it if nothing."""
    question.unlink(missing_ok=True)
    if (reply := _take(answer)) is not None:
        return reply
    with LogReader(log) as reader:
        done = [
            position
            for position, event in reader.read(before, filters=Filters(text=request.id))
            if getattr(event, "request", None) == request.id
        ]
    if done:
        return Reply(id=request.id, position=done[-1], count=len(done))
    raise TemporaryError(
        "the engine ended before it carried out the request",
        where=str(log),
        remedy="ask again: with no engine running the command opens the log itself",
    )


def _take(answer: Path) -> Reply | None:
    try:
        reply = msgspec.json.decode(answer.read_bytes(), type=Reply)
    except FileNotFoundError:
        return None
    answer.unlink(missing_ok=True)
    return reply


def _write(path: Path, data: bytes) -> None:
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    os.rename(fresh, path)
    sync_folder(path.parent)
