"""The inbox: a spool folder beside the log through which other processes ask the engine.

A request is a file `<id>.json`, written whole and kept until answered; the answer is `<id>.reply`. The engine looks with
`pending`, one `stat` of the folder when nothing changed, and turns requests into events that carry their id. An entry that cannot be read or
believed is set aside under `quarantine/`, reported by name, and refused where a caller may wait for the answer. The other side is inbox_client.py.
Everything here may wait for a disk: the engine calls it in a thread.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from datatask.adapters.log.faults import mapped
from datatask.adapters.log.private import OddFileError, PrivateFolder, make_folder
from datatask.adapters.trust import check_above
from datatask.schema.errors import InvalidValueError
from datatask.schema.messages import AnyRequest, Refusal, Reply

logger = logging.getLogger("datatask.engine")

PENDING_MAX = 1_000
REPLY_KEPT_SECONDS = 24 * 3600
CLEANED_SECONDS = 3600.0
QUARANTINE = "quarantine"
TOLD_MAX = 5
"""The number of invalid entries of one look that are reported in a line each, with the reason."""
NAMED_MAX = 50
"""The number of further ones that are named in one line."""

_ID = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)
_SETTLED_NS = 100_000_000
"""A folder changed less than this before we looked may change again without a new time stamp."""

_decoder: msgspec.json.Decoder[AnyRequest] = msgspec.json.Decoder(AnyRequest)


class FileInbox:
    """The engine's side: the `Inbox` port over a folder; safe from any thread."""

    blocking = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stamp: tuple[int, ...] = ()
        self._known: list[AnyRequest] = []
        self._read: dict[str, tuple[int, AnyRequest]] = {}
        self._stuck: dict[str, int] = {}
        self._cleaned = 0.0
        self._lock = threading.Lock()
        with mapped(root):
            if not os.path.lexists(root):
                make_folder(root)
            with self._folder() as folder:
                self._clean(folder)

    def pending(self) -> list[AnyRequest]:
        """Return the unanswered requests, oldest first (at most 1,000); what cannot be believed is set aside here."""
        with self._lock, mapped(self.root):
            stamp = self._look()
            if not stamp or stamp != self._stamp:
                looked = time.time_ns()
                with self._folder() as folder:
                    self._known = self._list(folder)
                    if time.monotonic() - self._cleaned > CLEANED_SECONDS:
                        self._clean(folder)
                self._stamp = stamp if stamp and looked - stamp[-1] > _SETTLED_NS else ()
            return list(self._known)

    def answer(self, reply: Reply) -> None:
        """Answer a request, and remove it from the pending ones.

        The disk is not waited for: what was done is in the log, and a power failure takes the caller too.
        """
        name = check_id(reply.id)
        with mapped(self.root), self._folder() as folder:
            self._reply(folder, reply)
            self._remove(folder, f"{name}.json")
        with self._lock:
            self._read.pop(f"{name}.json", None)
            self._known = [request for request in self._known if request.id != reply.id]

    def _remove(self, folder: PrivateFolder, name: str) -> None:
        """Remove an answered request; one that cannot be removed is known by its time, and not looked at again."""
        try:
            folder.remove(name)
        except OSError as error:
            self._stuck[name] = folder.changed_at(name)
            logger.warning("%s: %s is answered, and cannot be removed: %s", self.root, name, error.strerror)

    def _look(self) -> tuple[int, ...]:
        """Return what changes with the folder, the time of its last change being last; nothing where it is gone."""
        try:
            status = os.lstat(self.root)
        except FileNotFoundError:
            return ()
        return status.st_ino, status.st_mode, status.st_uid, status.st_mtime_ns

    def _folder(self) -> PrivateFolder:
        """Open the folder, which is made again where it has vanished or something else stands in its place.

        `UnsafePlaceError` where others may put another folder in its place.
        """
        check_above(self.root, group=True)
        try:
            return PrivateFolder(self.root)
        except (FileNotFoundError, NotADirectoryError) as error:
            make_folder(self.root)
            logger.warning("%s was made anew: %s", self.root, error.strerror)
            return PrivateFolder(self.root)

    def _list(self, folder: PrivateFolder) -> list[AnyRequest]:
        found: list[AnyRequest] = []
        odd_ones: list[str] = []
        entries = sorted(entry for entry in folder.names() if entry[1].endswith(".json"))
        there = {name: at for at, name in entries}
        self._stuck = {name: at for name, at in self._stuck.items() if there.get(name) == at}
        self._read = {name: known for name, known in self._read.items() if there.get(name) == known[0]}
        for at, name in [entry for entry in entries if entry[1] not in self._stuck][:PENDING_MAX]:
            try:
                if (known := self._read.get(name)) is None or known[0] != at:
                    known = self._read[name] = at, _read(folder, name)
                found.append(known[1])
            except FileNotFoundError:
                continue
            except OddFileError as odd:
                odd_ones.append(name)
                self._set_aside(folder, name, at, str(odd), report=len(odd_ones) <= TOLD_MAX)
        if more := odd_ones[TOLD_MAX:]:
            names = ", ".join(f"{name!r:.80}" for name in more[:NAMED_MAX]) + (
                " …" if more[NAMED_MAX:] else ""
            )
            logger.warning("%s: %s more entries like these were set aside: %s", self.root, len(more), names)
        return found

    def _set_aside(self, folder: PrivateFolder, name: str, at: int, why: str, *, report: bool) -> None:
        """Refuse an entry, and move it out of the way; what cannot be moved is looked at again when it has changed."""
        stem = name.removesuffix(".json")
        if _ID.fullmatch(stem):
            refusal = Refusal(
                code="usage",
                what=f"the engine does not take this request: {why}",
                where=str(self.root / name),
                remedy="ask as the user of the engine, or as root, with the engine's version of datatask",
            )
            with suppress(OSError):
                self._reply(folder, Reply(id=stem, refusal=refusal))
        try:
            moved = f"{QUARANTINE}/{folder.set_aside(name, QUARANTINE)}"
            kept = f"moved to {moved!r}"
        except OSError as error:
            self._stuck[name] = at
            kept = f"it stays there ({error.strerror})"
        if report:
            logger.warning(
                "%s: the entry %r is no request that may be believed: %s; %s", self.root, name, why, kept
            )

    def _reply(self, folder: PrivateFolder, reply: Reply) -> None:
        """Write an answer; what stands in its place and is no file is set aside."""
        name, data = f"{reply.id}.reply", msgspec.json.encode(reply)
        try:
            folder.write(name, data, durable=False)
        except IsADirectoryError:
            folder.set_aside(name, QUARANTINE)
            folder.write(name, data, durable=False)

    def _clean(self, folder: PrivateFolder) -> None:
        """Remove replies that are no longer awaited, and remains of interrupted writers."""
        self._cleaned = time.monotonic()
        oldest = time.time_ns() - REPLY_KEPT_SECONDS * 10**9
        for at, name in folder.names():
            if at < oldest and name.endswith((".reply", ".new")):
                with suppress(OSError):
                    folder.remove(name)


def _read(folder: PrivateFolder, name: str) -> AnyRequest:
    """Return the request in a file; `OddFileError` says why it is none."""
    data = folder.read(name)
    try:
        request = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError, ValueError) as error:
        raise OddFileError(f"it cannot be understood: {error}") from error
    stem = name.removesuffix(".json")
    if request.id != stem or not _ID.fullmatch(stem):
        raise OddFileError(f"its id is {request.id!r:.80}")
    return request


def check_id(text: str) -> str:
    """Return a request's id when it can name a file, else raise `CallerError`."""
    if not _ID.fullmatch(text):
        raise InvalidValueError(f"{text!r:.80} cannot name a request", remedy="use a uuid")
    return text
