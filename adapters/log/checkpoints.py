"""Checkpoints beside the log: states as bytes, in `<log>.checkpoints/<position>-<fold version>`.

A file is one line of JSON (what the state stands on, and the body's checksum) and the body. It is a cache:
whatever does not fit in any way is passed over in silence, and the state is folded from the log instead.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from datatask.adapters.log.faults import mapped
from datatask.engine.ports import Checkpoint

KEPT = 3


class _Header(msgspec.Struct, frozen=True):
    uuid: str
    position: int
    chain: str
    fold_version: int
    size: int
    sha256: str


class FileCheckpoints:
    """The checkpoints of one log, by its uuid."""

    def __init__(self, root: Path, uuid: str) -> None:
        self.root = root
        self._uuid = uuid

    def write(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint, atomically and durably; all but the newest few are removed."""
        position, chain, version, body = checkpoint
        header = _Header(
            self._uuid, position, chain.hex(), version, len(body), hashlib.sha256(body).hexdigest()
        )
        with mapped(self.root):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = self.root / f"new-{os.getpid()}"
            with open(fresh, "wb", opener=_private) as file:
                file.write(msgspec.json.encode(header) + b"\n")
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            os.rename(fresh, self.root / f"{position}-{version}")
            for _, _, path in self._found()[KEPT:]:
                path.unlink(missing_ok=True)

    def latest(self, fold_version: int, chain_at: Callable[[int], bytes | None]) -> Checkpoint | None:
        """Return the newest checkpoint of this fold version that stands on this log's chain, or None."""
        for position, version, path in self._found():
            if version != fold_version:
                continue
            checkpoint = self._read(path)
            if (
                checkpoint is not None
                and checkpoint[0] == position
                and chain_at(position) == checkpoint.chain
            ):
                return checkpoint
        return None

    def _found(self) -> list[tuple[int, int, Path]]:
        """Return (position, fold version, path) of what looks like checkpoints, newest first."""
        found = []
        for path in self.root.glob("*-*"):
            position, _, version = path.name.partition("-")
            if position.isdecimal() and version.isdecimal():
                found.append((int(position), int(version), path))
        return sorted(found, reverse=True)

    def _read(self, path: Path) -> Checkpoint | None:
        try:
            line, _, body = path.read_bytes().partition(b"\n")
            header = msgspec.json.decode(line, type=_Header)
        except (OSError, msgspec.DecodeError):
            return None
        if header.uuid != self._uuid or hashlib.sha256(body).hexdigest() != header.sha256:
            return None
        return Checkpoint(header.position, bytes.fromhex(header.chain), header.fold_version, body)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
