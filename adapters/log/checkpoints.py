"""Checkpoints beside the log, in `<log>.checkpoints/<position>-<fold version>`, and checked reading of single rows.

A file is one line of JSON (what it rests on, packing, checksum) and the state's bytes. It is a cache: one that does not
fit is passed over, and one that another user could have written is reported. The log vouches for each: an event holds
the SHA-256 of an engine's, and those of readers carry an HMAC under a key from the log (the first event's salt).
`read_event` hashes the whole batch of a row once, and later compares the row with what was hashed. Rows that were
carried over a cut are covered by the digest in `ArchiveCut`.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import itertools
import logging
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import msgspec

from datatask.adapters.log.faults import damaged, mapped
from datatask.adapters.log.integrity.verify import Chain, begun, page
from datatask.adapters.log.queries import Query, Stored
from datatask.adapters.log.reader import LogReader
from datatask.adapters.spools import whole
from datatask.adapters.trust import UnsafePlaceError, make_private, open_own, private
from datatask.engine.ports import Checkpoint, Filters
from datatask.schema.codec import payload_digest
from datatask.schema.errors import DatataskError, LogError
from datatask.schema.events import ArchiveCut, CheckpointWritten, Event

logger = logging.getLogger("datatask.log")

KEPT = 3
_HEADER_MAX = 4096
_BUFFER_MAX = 1 << 28
_fresh_numbers = itertools.count()


_FIRST_SALT = "SELECT salt FROM log WHERE position = 1"


class _Header(msgspec.Struct, frozen=True, omit_defaults=True):
    uuid: str
    position: int
    chain: str
    fold_version: int
    size: int
    sha256: str
    packing: str = ""
    mac: str = ""


class Found(NamedTuple):
    """A file that by its name is a checkpoint; `event` is the one that vouches for it, 0 where none does."""

    position: int
    fold_version: int
    size: int
    path: Path
    event: int = 0


class Vouch(Protocol):
    """Says whether a log vouches for the state in a file, given its bytes and the code that the file bears."""

    def __call__(self, found: Found, body: bytes, mac: str, /) -> bool: ...


class FileCheckpoints:
    """The checkpoints of one log, by its uuid."""

    def __init__(self, root: Path, uuid: str) -> None:
        self.root = root
        self._uuid = uuid

    def write(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint, atomically and durably; all but the newest few are removed."""
        with mapped(self.root):
            write_checkpoint(self.root, self._uuid, checkpoint, durable=True)
            for found in checkpoints_in(self.root)[KEPT:]:
                found.path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove them all, whoever wrote them."""
        with mapped(self.root):
            for found in checkpoints_in(self.root):
                found.path.unlink(missing_ok=True)

    def latest(
        self, fold_version: int, chain_at: Callable[[int], bytes | None], vouch: Vouch
    ) -> Checkpoint | None:
        """Return the newest checkpoint of this fold version that the log vouches for, or None; changed ones go."""
        for found in checkpoints_in(self.root):
            if found.fold_version == fold_version:
                try:
                    checkpoint = read_checkpoint(found, self._uuid, chain_at, vouch)
                except ChangedError as error:
                    tell_changed(error)
                    with suppress(OSError):
                        found.path.unlink()
                    continue
                if checkpoint is not None:
                    return checkpoint
        return None


def checkpoints_in(folder: Path) -> list[Found]:
    """Return what looks like checkpoints in a folder, newest position first; none where it cannot be read."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                parts = entry.name.split("-")
                if len(parts) in (2, 3) and all(part.isdecimal() for part in parts):
                    position, version, *event = map(int, parts)
                    with suppress(FileNotFoundError):
                        size = entry.stat().st_size
                        found.append(Found(position, version, size, Path(entry.path), *event))
    except OSError:
        return []
    return sorted(found, reverse=True)


def write_checkpoint(
    folder: Path,
    uuid: str,
    checkpoint: Checkpoint,
    *,
    durable: bool = False,
    packed: bool = False,
    mac: str = "",
) -> int:
    """Write a checkpoint under its name, whole or not at all; return its size. `OSError` where that fails."""
    position, chain, version, body, event = checkpoint
    stored = zlib.compress(body, 1) if packed else body
    digest = hashlib.sha256(stored).hexdigest()
    header = _Header(uuid, position, chain.hex(), version, len(body), digest, "zlib" if packed else "", mac)
    make_private(folder)
    name = f"{position}-{version}-{event}" if event else f"{position}-{version}"
    with whole(folder / name, durable=durable, opener=private) as file:
        file.write(msgspec.json.encode(header) + b"\n")
        file.write(stored)
        return file.tell()


class ChangedError(LogError):
    """A complete checkpoint that its log does not vouch for: it was put there by another."""

    code = "checkpoint_changed"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChangedError) and other.where == self.where

    def __hash__(self) -> int:
        return hash(self.where)


def read_checkpoint(
    found: Found, uuid: str, chain_at: Callable[[int], bytes | None], vouch: Vouch | None
) -> Checkpoint | None:
    """Return the checkpoint in a file when it is whole, stands on this log's chain and the log vouches for it.

    `ChangedError` where only the last does not hold; None where anything else does not, and for one of an earlier
    version, for which no log vouches. Without `vouch` that is not asked.
    """
    try:
        with _opened(found.path) as file:
            header = msgspec.json.decode(file.readline(_HEADER_MAX), type=_Header)
            if (header.uuid, header.position, header.fold_version) != (
                uuid,
                found.position,
                found.fold_version,
            ):
                return None
            chain = bytes.fromhex(header.chain)
            if chain_at(header.position) != chain or header.packing not in ("", "zlib"):
                return None
            stored = file.read()
        if hashlib.sha256(stored).hexdigest() != header.sha256:
            return None
        body = (
            zlib.decompress(stored, bufsize=min(max(1, header.size), _BUFFER_MAX))
            if header.packing
            else stored
        )
    except (OSError, ValueError, zlib.error):  # msgspec's errors are ValueErrors
        return None
    except UnsafePlaceError as error:
        _tell(error)
        return None
    if len(body) != header.size:
        return None
    if vouch is not None and not vouch(found, body, header.mac):
        if not (found.event or header.mac):
            return None
        raise ChangedError(
            "this is not the state that the log vouches for: it is passed over, and made anew from the log",
            where=str(found.path),
            remedy="see `datatask verify`, and who may write there",
        )
    return Checkpoint(header.position, chain, header.fold_version, body, found.event)


@functools.lru_cache(maxsize=64)
def tell_changed(error: ChangedError) -> None:
    """Report once that a checkpoint was changed by another."""
    logger.warning("%s", error)


def stands_on(found: Found, uuid: str) -> bytes | None:
    """Return the chain hash that a checkpoint of this log says it stands on, or None where it does not say."""
    try:
        with _opened(found.path) as file:
            header = msgspec.json.decode(file.readline(_HEADER_MAX), type=_Header)
        return (
            bytes.fromhex(header.chain) if (header.uuid, header.position) == (uuid, found.position) else None
        )
    except (OSError, ValueError):
        return None
    except UnsafePlaceError as error:
        _tell(error)
        return None


def _opened(path: Path) -> BinaryIO:
    """Open a checkpoint of ours, or of the user who has the folder: no link, and not writable by others."""
    return open(open_own(path, also=os.stat(path.parent).st_uid), "rb")


@functools.lru_cache(maxsize=16)
def _names_told_of(folder: str) -> list[str]:
    return []


def _tell(error: UnsafePlaceError) -> None:
    """Say why a checkpoint is not used, once a folder."""
    reported = _names_told_of(os.path.dirname(error.where))
    if not reported:
        reported.append(error.where)
        logger.warning("not used, the log is folded instead: %s", error)


def vouching(reader: LogReader) -> Vouch:
    """Return what says whether this log vouches for a state in a file."""
    checked = CheckedReader(reader)

    def vouch(found: Found, body: bytes, mac: str) -> bool:
        if found.event:
            event = _checkpoint_event(checked, found)
            return event is not None and event.sha256 == hashlib.sha256(body).hexdigest()
        return bool(mac) and hmac.compare_digest(mac, code(reader, found.position, found.fold_version, body))

    return vouch


def code(reader: LogReader, position: int, fold_version: int, body: bytes) -> str:
    """Return the code of a state that a reader keeps; empty where the log has no key or no such boundary."""
    try:
        salts = reader.ask(Query(_FIRST_SALT, ()))
        chain = reader.chain_at(position)
    except DatataskError:
        return ""
    if not salts or not isinstance(salts[0][0], int):
        return ""
    key = hashlib.sha256(f"{reader.uuid} {salts[0][0]}".encode()).digest()
    text = f"{position} {fold_version} {chain.hex()} {hashlib.sha256(body).hexdigest()}"
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def told_by(reader: LogReader, found: Found) -> CheckpointWritten | None:
    """Return the event that is named for a state, as the chain has it; None where it is not about this state."""
    return _checkpoint_event(CheckedReader(reader), found) if found.event else None


def _checkpoint_event(checked: CheckedReader, found: Found) -> CheckpointWritten | None:
    try:
        (event,) = checked.fetch([found.event])
    except DatataskError:
        return None
    if not isinstance(event, CheckpointWritten):
        return None
    return event if (event.position, event.fold_version) == (found.position, found.fold_version) else None


MARKS_MAX = 100_000
_BEFORE = "SELECT max(position) FROM log WHERE position < ? AND chain IS NOT NULL"
_REMEDY = "see `datatask verify`; restore the log from a backup"


NAMED = (2, 5, 7, 8, 9)
"""Where names stand in a row."""
UNFIT = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""The errors that values of wrong types raise."""


class CheckedReader:
    """Fetches events of one log, and believes none that its batch does not vouch for."""

    def __init__(self, reader: LogReader) -> None:
        """Take a reader, which stays the caller's to close."""
        self._reader = reader
        self._lock = threading.Lock()
        self._marks: dict[int, int] = {}
        self._base = 0

    def fetch(self, positions: Sequence[int]) -> list[Event]:
        """Return the events at these positions, in the order asked; `UnknownNameError` for a missing one."""
        wanted = sorted(set(positions))
        with self._lock:
            for last_try in (False, True):
                rows = self._reader.stored_at(wanted)
                if all(self._fits(row[0], hash(row)) for row in rows) or last_try:
                    break
                # A row that is another one than a moment ago: redacted meanwhile, which its batch will tell.
                self._marks.clear()
            return self._reader.decoder.in_order(rows, positions)

    def _fits(self, position: int, mark: int) -> bool:
        known = self._marks.get(position)
        if known is None:
            self._check(position, mark)
            known = self._marks[position]
        return known == mark

    def _check(self, position: int, mark: int) -> None:
        if len(self._marks) > MARKS_MAX:
            self._marks.clear()
        base = self._reader.header.base
        if position > base:
            self._check_batch(position, base)
            return
        if self._base != base and not base_fits(self._reader):
            what = "the values that were carried over the cut are not those that were stored there"
            raise damaged(what, self._reader.path, position, _REMEDY)
        self._base, self._marks[position] = base, mark

    def _check_batch(self, position: int, base: int) -> None:
        reader = self._reader
        ((before,),) = reader.ask(Query(_BEFORE, (position,)))
        end = reader.end_of_batch(position)
        chain = begun(reader, max(before or 0, base))
        chain.learned = False  # the names of a batch are few, those of the log may be a million
        while chain.position < end and (rows := page(reader, chain, end)):
            self._marks.update((row[0], hash(row)) for row in rows)
        self._refuse(chain, position, end)

    def _refuse(self, chain: Chain, position: int, end: int) -> None:
        faults = chain.finish(end)
        if faults or position not in self._marks:
            self._marks.clear()
            why = str(faults[0]) if faults else "it is not there any more"
            raise damaged(
                f"the event is not the one that was written ({why})", self._reader.path, position, _REMEDY
            )


def base_digest(body: bytes, carried: bytes) -> str:
    """Return what `ArchiveCut.state` says of a base: the SHA-256, in hex, of its state and of its carried rows."""
    return hashlib.sha256(hashlib.sha256(body).digest() + carried).hexdigest()


def base_fits(reader: LogReader) -> bool:
    """Whether the base and the rows carried with it are what the `ArchiveCut` says; also where there is none."""
    base = reader.header.base
    if not base:
        return True
    cuts = [event for _, event in reader.read(filters=Filters(kinds=("ArchiveCut",)))]
    states = {event.state for event in cuts if isinstance(event, ArchiveCut) and event.until == base}
    try:
        return states == {base_digest(reader.base_stored()[1], carried_digest(reader, base))}
    except (DatataskError, *UNFIT):
        return False


def carried_digest(reader: LogReader, until: int, positions: Sequence[int] | None = None) -> bytes:
    """Return the SHA-256 of the carried rows: each a JSON array as in the preimage of the chain, its position first."""
    digest = hashlib.sha256()
    kept = None if positions is None else frozenset(positions)
    for row in named_rows(reader, 0, until):
        if kept is None or row[0] in kept:
            *plain, payload, salt, hashed, _ = row
            encoded = None if payload is None else payload.encode()
            payload_hash = hashed.hex() if hashed else payload_digest(encoded, salt)
            digest.update(msgspec.json.encode([*plain, payload_hash]))
    return digest.digest()


def named_rows(reader: LogReader, after: int, until: int) -> Iterator[Stored]:
    """Yield the stored rows behind `after` with their names as text."""
    while after < until and (rows := reader.stored(after, until)):
        names = reader.decoder.names
        for row in rows:
            named = list(row)
            try:
                for column in NAMED:
                    named[column] = names[row[column]]
            except KeyError as error:
                raise damaged(f"name {error} is missing", reader.path, row[0]) from None
            yield tuple(named)
        after = rows[-1][0]
