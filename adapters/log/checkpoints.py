"""Checkpoints beside the log: states as bytes, in `<log>.checkpoints/<position>-<fold version>`.

A file is one line of JSON (what the state stands on, how the body is packed, and its checksum) and the body. It is
a cache: whatever does not fit in any way is passed over in silence, and the state is folded from the log instead; one
that another user could have put there is passed over too, and told.
The engine keeps its newest few with `FileCheckpoints`; readers keep theirs with the functions below it
(`datatask.adapters.history.ladder`).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import os
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from datatask.adapters.log.faults import mapped
from datatask.adapters.trust import UnsafePlaceError, make_private, open_own, private
from datatask.engine.ports import Checkpoint

logger = logging.getLogger("datatask.log")

KEPT = 3
_HEADER_MAX = 4096
_BUFFER_MAX = 1 << 28
_fresh_numbers = itertools.count()


class _Header(msgspec.Struct, frozen=True, omit_defaults=True):
    uuid: str
    position: int
    chain: str
    fold_version: int
    size: int
    sha256: str
    packing: str = ""


class Found(NamedTuple):
    """A file that by its name is a checkpoint."""

    position: int
    fold_version: int
    size: int
    path: Path


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

    def latest(self, fold_version: int, chain_at: Callable[[int], bytes | None]) -> Checkpoint | None:
        """Return the newest checkpoint of this fold version that stands on this log's chain, or None."""
        for found in checkpoints_in(self.root):
            if found.fold_version == fold_version:
                checkpoint = read_checkpoint(found, self._uuid, chain_at)
                if checkpoint is not None:
                    return checkpoint
        return None


def checkpoints_in(folder: Path) -> list[Found]:
    """Return what looks like checkpoints in a folder, newest position first; none where it cannot be read."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                position, _, version = entry.name.partition("-")
                if position.isdecimal() and version.isdecimal():
                    with suppress(FileNotFoundError):
                        size = entry.stat().st_size
                        found.append(Found(int(position), int(version), size, Path(entry.path)))
    except OSError:
        return []
    return sorted(found, reverse=True)


def write_checkpoint(
    folder: Path, uuid: str, checkpoint: Checkpoint, *, durable: bool = False, packed: bool = False
) -> int:
    """Write a checkpoint under its name, whole or not at all; return its size. `OSError` where that fails."""
    position, chain, version, body = checkpoint
    stored = zlib.compress(body, 1) if packed else body
    digest = hashlib.sha256(stored).hexdigest()
    header = _Header(uuid, position, chain.hex(), version, len(body), digest, "zlib" if packed else "")
    make_private(folder)
    fresh = folder / f"new-{os.getpid()}-{threading.get_ident()}-{next(_fresh_numbers)}"
    try:
        with open(fresh, "wb", opener=private) as file:
            file.write(msgspec.json.encode(header) + b"\n")
            file.write(stored)
            if durable:
                file.flush()
                os.fsync(file.fileno())
            size = file.tell()
        os.rename(fresh, folder / f"{position}-{version}")
    except BaseException:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    return size


def read_checkpoint(found: Found, uuid: str, chain_at: Callable[[int], bytes | None]) -> Checkpoint | None:
    """Return the checkpoint in a file when it is whole and stands on this log's chain; the body comes last."""
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
    return Checkpoint(header.position, chain, header.fold_version, body) if len(body) == header.size else None


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
def _told(folder: str) -> list[str]:
    return []


def _tell(error: UnsafePlaceError) -> None:
    """Say why a checkpoint is not used, once a folder."""
    told = _told(os.path.dirname(error.where))
    if not told:
        told.append(error.where)
        logger.warning("not used, the log is folded instead: %s", error)
