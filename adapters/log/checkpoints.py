"""Checkpoints beside the log: states as bytes, in `<log>.checkpoints/<position>-<fold version>`.

A file is one line of JSON (what the state stands on, how it is packed, its checksum) and the body. It is a cache: what does
not fit is passed over, and what another user could have put there is told too. Only the log can vouch for one: an event has
the SHA-256 of an engine's; readers append nothing, so theirs bear a code (HMAC) whose key, the salt of the first event, only the
log has. Whoever can read the log can make that code; `verify` therefore compares each state with the one that it folds.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import itertools
import logging
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import msgspec

from datatask.adapters.atomic_file import whole
from datatask.adapters.log.base import CheckedReader
from datatask.adapters.log.faults import mapped
from datatask.adapters.log.queries import Query
from datatask.adapters.log.reader import LogReader
from datatask.adapters.trust import UnsafePlaceError, make_private, open_own, private
from datatask.engine.ports import Checkpoint
from datatask.schema.errors import DatataskError, LogError
from datatask.schema.events import CheckpointWritten

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
    """A checkpoint that is whole and that its log does not vouch for: somebody has put it there."""

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
    """Say once that somebody has changed a checkpoint."""
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
    """Open a checkpoint of ours, or of the user who has the folder: no link, and written by nobody else."""
    return open(open_own(path, also=os.stat(path.parent).st_uid), "rb")


@functools.lru_cache(maxsize=16)
def _names_told_of(folder: str) -> list[str]:
    return []


def _tell(error: UnsafePlaceError) -> None:
    """Say why a checkpoint is not used, once a folder."""
    told = _names_told_of(os.path.dirname(error.where))
    if not told:
        told.append(error.where)
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
