"""A log copied whole while an engine writes it: the file, its blobs, archives and checkpoints.

In: a log and a folder that does not exist yet. Out: that folder, with everything under the names it has beside the
log, so that the copy can be used as it is. The file is copied first, as one snapshot, by SQLite's backup API on a
read-only connection; then the blobs that this snapshot names (hard links where the disk allows it: blobs never
change). All of it comes into being in a folder of another name beside the destination, is checked and made durable, and
is moved into place at the end. An interrupted backup leaves that folder behind, and the next one removes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatask.adapters.log.blobs import FileBlobs
from datatask.adapters.log.checkpoints import checkpoints_in
from datatask.adapters.log.faults import damaged, mapped
from datatask.adapters.log.integrity.verify import chain_faults
from datatask.adapters.log.kept import copy_kept
from datatask.adapters.log.locate import archives_path, blobs_path, checkpoints_path, locate
from datatask.adapters.log.maintenance.garbage import archives_of, named_by_events, named_by_files
from datatask.adapters.log.maintenance.offline import Announce
from datatask.adapters.log.reader import LogReader
from datatask.adapters.spools import sync
from datatask.adapters.trust import make_private
from datatask.schema.errors import AlreadyThereError, NoLogError, UnknownNameError

_UNFINISHED = ".unfinished-"

Check = Callable[[Path], None]
"""Called with the copy's file before it is moved into place; raises where it is not good."""

"""Called when a step is done, by its name: tests end the process there."""


@dataclass(frozen=True)
class Backup:
    """What was copied. `missing` are digests that values name and that have no blob beside the log either."""

    log: Path
    head: int
    chain: str
    blobs: int
    linked: int
    missing: int
    archives: int
    checkpoints: int
    size: int
    removed: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the documented shape of `backup --json`."""
        return {
            "log": str(self.log), "head": self.head, "chain": self.chain, "blobs": self.blobs, "linked": self.linked,
            "missing": self.missing, "archives": self.archives, "checkpoints": self.checkpoints, "bytes": self.size,
            "removed": list(self.removed),
        }  # fmt: skip


def copy_log(
    place: str | Path, dest: Path, *, check: Check | None = None, step: Announce = lambda _: None
) -> Backup:
    """Copy the log at a URL or path into the new folder `dest`; whatever goes wrong, `dest` is whole or not there.

    `CallerError`: there is no log, or `dest` exists. `LogDamagedError`: the copy's chain or blobs do not hold, which
    were not sound before either.
    """
    source = locate(place).path
    if source is None:
        raise NoLogError("a log in memory cannot be copied", remedy="name a file with --log")
    dest = Path(os.path.abspath(dest))
    _refuse_existing(dest)
    with mapped(dest), LogReader(source) as reader:
        dest.parent.mkdir(parents=True, exist_ok=True)
        removed = _remove_unfinished(dest)
        with _unfinished(dest) as folder:
            step("begun")
            copying = _Copying(reader, folder / source.name, step)
            result = copying.run()
            step("copied")
            if check is not None:
                check(folder / source.name)
            _remove_sidecars(folder / source.name)
            _sync_tree(folder)
            step("durable")
            _refuse_existing(dest)
            os.rename(folder, dest)
            step("renamed")
            sync(dest.parent)
    return Backup(log=dest / source.name, removed=tuple(removed), **result)


class _Copying:
    """One copy under way."""

    def __init__(self, reader: LogReader, copy: Path, step: Announce) -> None:
        self._reader = reader
        self._source = reader.path
        self._copy = copy
        self._step = step
        self._linked = 0
        self._size = 0

    def run(self) -> dict[str, Any]:
        """Copy everything and check it; return the fields of `Backup`."""
        self._reader.copy_to(self._copy)
        self._step("file")
        with LogReader(self._copy) as snapshot:
            head, base = snapshot.head, snapshot.header.base
            archives = self._archives(base)
            self._step("archives")
            found, missing = self._blobs(snapshot)
            self._step("blobs")
            kept = self._checkpoints(base, head)
            copy_kept(self._source, self._copy)
            faults = chain_faults(snapshot)
            if faults:
                raise damaged(
                    f"the copy does not hold: {faults[0].what}", self._source, faults[0].position,
                    remedy="see `datatask verify`",
                )  # fmt: skip
            chain = snapshot.chain_at(head).hex()
        return {
            "head": head, "chain": chain, "blobs": found, "linked": self._linked, "missing": missing,
            "archives": archives, "checkpoints": kept, "size": self._size + self._copy.stat().st_size,
        }  # fmt: skip

    def _archives(self, base: int) -> int:
        """Copy the archives that the snapshot stands on: those of a later cut hold what it has itself."""
        count = 0
        for file, span in archives_of(self._source).items():
            if span is None or span[1] <= base:
                target = archives_path(self._copy) / file.relative_to(archives_path(self._source))
                self._take(file, target)
                count += span is not None
        return count

    def _blobs(self, snapshot: LogReader) -> tuple[int, int]:
        blobs, copies = FileBlobs(blobs_path(self._source)), blobs_path(self._copy)
        found = missing = 0
        in_archives = named_by_files(self._copy)
        named = named_by_events(snapshot)
        for digest in sorted(named | in_archives):
            try:
                path = blobs.path(digest)
            except UnknownNameError:
                missing += digest in named
                continue
            self._take(path, copies / digest[:2] / digest)
            _check_blob(copies / digest[:2] / digest, digest)
            found += 1
            if found == 1:
                self._step("first blob")
        return found, missing

    def _checkpoints(self, base: int, head: int) -> int:
        count = 0
        for kept in checkpoints_in(checkpoints_path(self._source)):
            if base <= kept.position <= head:
                count += self._take(kept.path, checkpoints_path(self._copy) / kept.path.name, optional=True)
        return count

    def _take(self, file: Path, target: Path, *, optional: bool = False) -> bool:
        """Link or copy a file that never changes under its name; `optional` ones may be gone meanwhile."""
        for folder in (target.parent.parent, target.parent):
            make_private(folder)
        try:
            try:
                os.link(file, target)
                self._linked += 1
            except FileNotFoundError:
                raise
            except OSError:
                shutil.copyfile(file, target)
                target.chmod(0o600)
        except FileNotFoundError:
            if optional:
                return False
            raise
        self._size += target.stat().st_size
        return True


def _check_blob(path: Path, digest: str) -> None:
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise damaged(
                f"the blob {digest} has other bytes than its name says", path,
                remedy="restore it from an earlier backup; see `datatask verify`",
            )  # fmt: skip


# --- folders ----------------------------------------------------------------------------------------


def _refuse_existing(dest: Path) -> None:
    if os.path.lexists(dest):
        raise AlreadyThereError(
            "this exists: a backup overwrites nothing", where=str(dest), remedy="name a new folder"
        )


@contextmanager
def _unfinished(dest: Path) -> Iterator[Path]:
    """Yield a new folder beside `dest`, locked for as long as this process lives; it goes where it was not moved."""
    folder = Path(tempfile.mkdtemp(prefix=f".{dest.name}{_UNFINISHED}", dir=dest.parent))
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # nothing is left of it where it was moved
        os.close(descriptor)


def _remove_unfinished(dest: Path) -> list[str]:
    """Remove what interrupted backups to the same place left, not what another one is at just now."""
    removed = []
    for folder in sorted(dest.parent.glob(f".{_escaped(dest.name)}{_UNFINISHED}*")):
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder)
            removed.append(str(folder))
        finally:
            os.close(descriptor)
    return removed


def _escaped(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _remove_sidecars(copy: Path) -> None:
    """Remove what reading the copy may have left beside it: it is whole without."""
    for end in ("-wal", "-shm", "-journal"):
        copy.with_name(copy.name + end).unlink(missing_ok=True)


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(root) / name)
        sync(Path(root))
