"""Blobs that nothing refers to, and what interrupted writers left: found, and removed under the lease.

In: a log. Out: `Compacted`. Named is a blob by events, archives and waiting requests; the last two are searched for
whatever looks like a SHA-256: a blob too many is kept, never one too few. The event is appended before the first blob goes, so
that an interruption leaves blobs for the next `log-compact`, and no gap that nothing explains. Blobs newer than the grace
stay: an event names a blob a moment after it was put, and putting one that is there makes it new.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from datatask.adapters.log.faults import damaged, mapped
from datatask.adapters.log.locate import archives_path, blobs_path, checkpoints_path, inbox_path
from datatask.adapters.log.maintenance.offline import Announce, Caretaker
from datatask.adapters.log.reader import LogReader
from datatask.schema.events import BlobsCollected

_DIGEST = re.compile(rb"[0-9a-f]{64}")
_SPAN = re.compile(r"(\d+)-(\d+)\D.*")
_PAGE = 50_000
_CHUNK = 1 << 20


GRACE_SECONDS = 3600.0
Keep = Literal["all", "current"]
_FRESH = "new"
_HEX = frozenset("0123456789abcdef")


class _Named(msgspec.Struct):
    digest: str | None = None


_decode = msgspec.json.Decoder(_Named).decode


def archives_of(path: Path) -> dict[Path, tuple[int, int] | None]:
    """Return what lies in a log's folder of archives, with the first and last position that a name tells."""
    folder = archives_path(path)
    if not folder.is_dir():
        return {}
    with mapped(folder):
        files = sorted(file for file in folder.rglob("*") if file.is_file())
    found = {file: _SPAN.fullmatch(file.name) for file in files}
    return {file: None if one is None else (int(one[1]), int(one[2])) for file, one in found.items()}


def named_by_events(reader: LogReader, *, only: Set[int] | None = None) -> set[str]:
    """Return the digests that values and intents name, of all or `only` of those at some positions."""
    return {digest for position, digest in _naming(reader) if only is None or position in only}


def _naming(reader: LogReader) -> Iterator[tuple[int, str]]:
    ((first, last),) = reader.query("SELECT min(position), max(position) FROM log").rows
    after = (first or 1) - 1  # values that are still there may be kept from before a cut
    last = last or 0
    while after < last:
        end = min(after + _PAGE, last)
        answer = reader.query(
            "SELECT position, payload FROM log WHERE position > ? AND position <= ? AND kind IN"
            " (SELECT id FROM names WHERE text IN ('ValuePut', 'StoreWriteIntended'))"
            " AND instr(payload, '\"digest\":')",
            (after, end),
            timeout_seconds=600.0,
        )
        for position, payload in answer.rows:
            try:
                digest = _decode(payload).digest
            except msgspec.DecodeError as error:
                raise damaged(f"the payload does not decode: {error}", reader.path, position) from error
            if digest is not None:
                yield position, digest
        after = end


def named_by_files(path: Path, *, archives: bool = True) -> set[str]:
    """Return everything in the log's archives and in requests that wait which could be a blob's digest."""
    inbox = inbox_path(path)
    requests = sorted(inbox.glob("*.json")) if inbox.is_dir() else []
    found: set[str] = set()
    for file in [*(archives_of(path) if archives else ()), *requests]:
        found |= _digests_in(file)
    return found


def _digests_in(file: Path) -> set[str]:
    found: set[str] = set()
    rest = b""
    try:
        with open(file, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(file, "rb") if packed else open(file, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                text = rest + chunk
                found.update(match.decode() for match in _DIGEST.findall(text))
                rest = text[-128:]
    except FileNotFoundError:
        return set()  # a request that was answered just now
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise damaged(f"the archive cannot be read: {error}", file) from error
    return found


class Garbage(NamedTuple):
    """A file that may go: a blob by its digest, or what a writer left behind (no digest)."""

    path: Path
    size: int
    digest: str | None


@dataclass(frozen=True)
class Compacted:
    """What went, or would go: blobs, and files of interrupted writers; `freed` are bytes of the log's own file."""

    kept: Keep
    blobs: tuple[str, ...]
    blob_bytes: int
    leftovers: tuple[str, ...]
    leftover_bytes: int
    freed: int
    position: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the documented shape of `log-compact --json`, without what every change has."""
        return {
            "keep": self.kept, "blobs": list(self.blobs), "blob_bytes": self.blob_bytes,
            "leftovers": list(self.leftovers), "leftover_bytes": self.leftover_bytes, "freed": self.freed,
            "position": self.position,
        }  # fmt: skip


def garbage(path: Path, named: set[str], oldest: float) -> list[Garbage]:
    """Return the blobs that are not among `named`, and what writers left, not newer than `oldest` (Unix seconds)."""
    return [
        one
        for one, modified in (*_files(blobs_path(path)), *_unfinished(checkpoints_path(path)))
        if modified <= oldest and (one.digest is None or one.digest not in named)
    ]


def _files(root: Path) -> Iterator[tuple[Garbage, float]]:
    """Yield blobs and leftovers with their times; what has another name is not ours and is left alone."""
    if not root.is_dir():
        return
    with mapped(root):
        for folder in sorted(root.iterdir()):
            if not folder.is_dir() or folder.is_symlink():
                continue
            for file in sorted(folder.iterdir()):
                digest = file.name if _is_blob(folder.name, file.name) else None
                if digest is None and folder.name != _FRESH:
                    continue
                with suppress(FileNotFoundError):
                    status = file.stat()
                    yield Garbage(file, status.st_size, digest), status.st_mtime


def _unfinished(root: Path) -> Iterator[tuple[Garbage, float]]:
    """Yield what interrupted writers of checkpoints left, with its times."""
    for file in sorted([*root.glob("new-*"), *root.glob("past/new-*")]):
        with suppress(FileNotFoundError):
            status = file.stat()
            yield Garbage(file, status.st_size, None), status.st_mtime


def _is_blob(folder: str, name: str) -> bool:
    return len(name) == 64 and _HEX.issuperset(name) and name[:2] == folder


def compact(
    caretaker: Caretaker,
    found: list[Garbage],
    *,
    keep: Keep,
    now: int,
    actor: str,
    reason: str,
    step: Announce = lambda _: None,
) -> Compacted:
    """Remove what was found, and give the file's free pages back; nothing found, nothing recorded."""
    blobs = [one for one in found if one.digest is not None]
    position = None
    if blobs:
        event = BlobsCollected(
            at=caretaker.now(now),
            actor=actor,
            count=len(blobs),
            size=sum(one.size for one in blobs),
            kept=keep,
            reason=reason,
        )
        position = caretaker.append([event], step).start
    remove(caretaker.path, found, step)
    step("removed")
    freed = caretaker.vacuum()
    step("vacuumed")
    return report(found, keep, freed, position)


def remove(path: Path, found: list[Garbage], step: Announce = lambda _: None) -> None:
    """Remove files, and folders of blobs that are empty then."""
    with mapped(path):
        for number, one in enumerate(found):
            one.path.unlink(missing_ok=True)
            if not number:
                step("first removed")
        for folder in {one.path.parent for one in found if one.path.parent.parent == blobs_path(path)}:
            with suppress(OSError):
                os.rmdir(folder)


def report(found: list[Garbage], keep: Keep, freed: int, position: int | None) -> Compacted:
    """Return what `compact` says of these files."""
    blobs = [one for one in found if one.digest is not None]
    rest = [one for one in found if one.digest is None]
    return Compacted(
        keep,
        tuple(one.path.name for one in blobs),
        sum(one.size for one in blobs),
        tuple(one.path.name for one in rest),
        sum(one.size for one in rest),
        freed,
        position,
    )
