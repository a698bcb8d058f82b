"""Payloads taken out of a log: what may go, the log without an engine, and all that else may hold a copy.

In: positions. Out: nothing of them in the file, its write-ahead log, the states kept beside it, the answers in the
inbox, and the blobs. A blob goes when nothing else names it; since the payload that named it is gone by then, its
digest is noted first, in `<log>.blobs/redacting`, so that whoever comes after an interruption finds it: the same
`redact` again, or `log-compact`.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from datatask.adapters.log.blobs import FileBlobs
from datatask.adapters.log.compacting import garbage, remove
from datatask.adapters.log.faults import mapped
from datatask.adapters.log.locate import blobs_path, checkpoints_path, inbox_path
from datatask.adapters.log.offline import empty_wal
from datatask.adapters.log.opening import sync_folder
from datatask.adapters.log.reader import LogReader
from datatask.adapters.log.references import archives_of, named_by_events, named_by_files
from datatask.adapters.log.removals import ROW, event_of
from datatask.schema.errors import CallerError, UnknownNameError
from datatask.schema.events import Event, StoreWriteIntended, ValuePut

WAL_SECONDS = 10.0
ANSWERED_SECONDS = 600.0
"""Beside an engine that runs, answers older than this are waited for by nobody any more."""

ABANDONED_SECONDS = 60.0
"""Without an engine, what a writer has not touched for so long is what an interrupted one left."""

_NOTE = "redacting"


class Found(NamedTuple):
    """An event that was asked for; `done`: its payload is gone already."""

    position: int
    event: Event
    done: bool


def find(reader: LogReader, positions: Sequence[int]) -> list[Found]:
    """Return the events at these positions; `CallerError` for one that lives in an archive, or does not exist."""
    base, spans = reader.header.base, archives_of(reader.path)
    found = []
    for position in dict.fromkeys(positions):
        for file, span in spans.items():
            if span is not None and span[0] <= position <= span[1]:
                raise CallerError(
                    f"position {position} lives in the archive {file.name}, and archives are not changed",
                    where=str(file),
                    remedy="put the value anew or remove the job, archive again, so that nothing of it is carried over, and"
                    " delete the archives that hold it",
                )
        rows = reader.query(ROW, (position,)).rows if position > base else []
        if not rows:
            where = "lives in an archive" if 0 < position <= base else f"is none from 1 to {reader.head}"
            raise UnknownNameError(
                f"position {position} {where}", where=str(reader.path), remedy="look at `datatask log`"
            )
        found.append(Found(position, event_of(rows[0], position, reader.path), rows[0][12] is not None))
    return found


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
    with mapped(root):
        fresh = root / f"{_NOTE}.new"
        with open(fresh, "w", opener=_private) as file:
            file.writelines(f"{digest}\n" for digest in sorted(digests | noted(path)))
            file.flush()
            os.fsync(file.fileno())
        os.rename(fresh, root / _NOTE)
        sync_folder(root)


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
                sync_folder(place.parent)
                removed.add(digest)
        (root / _NOTE).unlink(missing_ok=True)
        sync_folder(root)
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


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
