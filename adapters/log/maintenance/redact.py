"""Payloads taken out of a log: what may go, the log without an engine, and all that else may hold a copy.

In: positions. Out: nothing of them in the file, its archives, its write-ahead log, the states kept beside it, the
answers in the inbox, and the blobs. A blob goes when nothing else names it; since the payload that named it is gone by then, its
digest is noted first, in `<log>.blobs/redacting`, so that whoever comes after an interruption finds it: the same
`redact` again, or `log-compact`.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from datatask.adapters.log.blobs import FileBlobs
from datatask.adapters.log.faults import mapped
from datatask.adapters.log.locate import blobs_path, checkpoints_path, inbox_path
from datatask.adapters.log.maintenance.archives import archives_of, read_head, read_rows, write_archive
from datatask.adapters.log.maintenance.garbage import garbage, named_by_events, named_by_files, remove
from datatask.adapters.log.maintenance.offline import ROW, empty_wal, event_of
from datatask.adapters.log.queries import Stored
from datatask.adapters.log.reader import LogReader
from datatask.adapters.spools import sync, whole
from datatask.adapters.trust import private
from datatask.engine.core.redaction import left_of
from datatask.engine.ports import Filters
from datatask.schema.codec import encode, payload_digest
from datatask.schema.errors import UnknownNameError
from datatask.schema.events import Event, PayloadRedacted, StoreWriteIntended, ValuePut

WAL_SECONDS = 10.0
ANSWERED_SECONDS = 600.0
"""Beside a running engine, answers older than this are no longer awaited."""

ABANDONED_SECONDS = 60.0
"""Without an engine, files that were not touched for this time are remains of an interrupted writer."""

_NOTE = "redacting"


class Found(NamedTuple):
    """An event that was asked for.

    `by` is the position of the event that tells that its payload is gone, 0 where none does yet; `archives` are those
    that still hold it, `elsewhere` says that the archive which holds it is not here.
    """

    position: int
    event: Event
    by: int
    archives: tuple[Path, ...]
    elsewhere: bool

    @property
    def done(self) -> bool:
        """Whether its payload was announced to be gone before."""
        return self.by > 0


def find(reader: LogReader, positions: Sequence[int]) -> list[Found]:
    """Return the events at these positions; `CallerError` for one that lives in an archive that is not here, or nowhere."""
    base = reader.header.base
    archived = _archived(reader, {position for position in positions if position <= base})
    announced = {
        event.position: by
        for by, event in reader.read(filters=Filters(kinds=(PayloadRedacted.__name__,)))
        if isinstance(event, PayloadRedacted)
    }
    found = []
    for position in dict.fromkeys(positions):
        held = {path: row[1:14] for path, row in archived.get(position, {}).items()}
        rows = [*reader.query(ROW, (position,)).rows, *held.values()]
        if not rows:
            where = (
                "lives in an archive that is not here"
                if 0 < position <= base
                else f"is none from 1 to {reader.head}"
            )
            raise UnknownNameError(
                f"position {position} {where}", where=str(reader.path), remedy="look at `datatask log`"
            )
        removed = any(row[12] is not None for row in rows)
        by = announced.get(position, 1 if removed else 0)  # an archive has the event itself
        archives = tuple(path for path, row in held.items() if row[12] is None)
        found.append(
            Found(
                position,
                event_of(rows[0], position, reader.path),
                by,
                archives,
                position <= base and not held,
            )
        )
    return found


def _archived(reader: LogReader, positions: set[int]) -> dict[int, dict[Path, Stored]]:
    """Return the rows at these positions, by the archives beside the log that hold them."""
    found: dict[int, dict[Path, Stored]] = {}
    for path in archives_of(reader.path, reader.uuid) if positions else ():
        head = read_head(path)
        wanted = {position for position in positions if head.first <= position <= head.last}
        for row in read_rows(path) if wanted else ():
            if row[0] in wanted:
                found.setdefault(row[0], {})[path] = row
    return found


def rewrite(found: Sequence[Found]) -> list[Path]:
    """Take the payloads out of the archives that still hold them, under the lease; return the archives.

    Each is written anew, made durable and read again before it stands in the place of the old one.
    """
    archives = {path for one in found for path in one.archives}
    for path in sorted(archives):
        by = {one.position: one.by for one in found if path in one.archives}
        head = read_head(path)
        written = write_archive(
            path.parent, head, (_stripped(row, by, path) for row in read_rows(path)), check=True
        )
        if written != path:
            path.unlink()
    return sorted(archives)


def _stripped(row: Stored, by: Mapping[int, int], path: Path) -> Stored:
    position, payload, salt, digest = row[0], row[11], row[12], row[13]
    if position not in by or digest is not None:
        return row
    left = encode(left_of(event_of(row[1:14], position, path), position, by[position])).payload
    hashed = payload_digest(None if payload is None else payload.encode(), salt)
    return (*row[:11], None if left is None else left.decode(), None, bytes.fromhex(hashed), row[14])


def digests_of(found: Sequence[Found]) -> set[str]:
    """Return the digests of the blobs that these events name."""
    named = (one.event.digest for one in found if isinstance(one.event, ValuePut | StoreWriteIntended))
    return {digest for digest in named if digest is not None}


# --- blobs ------------------------------------------------------------------------------------------


def note(path: Path, digests: set[str]) -> None:
    """Write down, durably, the blobs that may lose their last name; what was noted before stays noted."""
    if not digests:
        return
    root = blobs_path(path)
    if not root.is_dir():
        return
    with mapped(root), whole(root / _NOTE, durable=True, fresh=f"{_NOTE}.new", opener=private) as file:
        file.writelines(f"{digest}\n".encode() for digest in sorted(digests | noted(path)))


def noted(path: Path) -> set[str]:
    """Return the digests that were noted and not settled yet."""
    try:
        return set((blobs_path(path) / _NOTE).read_text().split())
    except FileNotFoundError:
        return set()


def settle(reader: LogReader) -> tuple[set[str], set[str]]:
    """Remove the noted blobs that nothing names any more; return the digests of those, and of those that stay."""
    root, digests = blobs_path(reader.path), noted(reader.path)
    if not digests:
        return set(), set()
    stay = digests & (named_by_events(reader) | named_by_files(reader.path))
    blobs = FileBlobs(root)
    removed = set()
    with mapped(root):
        for digest in sorted(digests - stay):
            with suppress(UnknownNameError):
                place = blobs.path(digest)
                place.unlink()
                sync(place.parent)
                removed.add(digest)
        (root / _NOTE).unlink(missing_ok=True)
        sync(root)
    return removed, stay


# --- files beside the log ---------------------------------------------------------------------------


def scrub(path: Path, now: float, *, alone: bool) -> bool:
    """Remove states and answers that may hold a payload, and empty the write-ahead log.

    `alone`: the lease is ours; `now` is in Unix seconds. Returns whether the write-ahead log is empty: a reader that stays may keep it.
    """
    with mapped(path):
        _remove_folder(checkpoints_path(path))
        if alone:
            abandoned = [one for one in garbage(path, set(), now - ABANDONED_SECONDS) if one.digest is None]
            remove(path, abandoned)
        _remove_answers(inbox_path(path), now if alone else now - ANSWERED_SECONDS)
    deadline = time.monotonic() + WAL_SECONDS
    with mapped(path), closing(sqlite3.connect(path, isolation_level=None, timeout=1.0)) as connection:
        while not empty_wal(connection, path):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
    return True


def _remove_folder(folder: Path) -> None:
    """Remove a folder in which readers may leave something meanwhile."""
    for attempt in range(5):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            if not folder.exists():
                return
        except OSError:
            if attempt == 4:
                raise


def _remove_answers(inbox: Path, oldest: float) -> None:
    for file in [*inbox.glob("*.reply"), *inbox.glob("*.new")]:
        with suppress(FileNotFoundError):
            if file.stat().st_mtime <= oldest:
                file.unlink()
