"""Blobs beside the log: bytes under the name of their SHA-256, in `<log>.blobs/ab/abcd…`.

In: bytes, a file, or a file that a writer finished under a name from `new`. Out: digest and size, once the
content is whole and durable, so that an event may name it. What has the digest already is not written again. What is
given back belongs to who owns the folder, or to us: another user's file is refused by name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path

from datatask.adapters.log.faults import mapped, translate
from datatask.adapters.log.private import hand_over
from datatask.adapters.spools import sync
from datatask.adapters.trust import check_found, make_private, private
from datatask.schema.errors import UnknownNameError, ValueDamagedError

_FRESH = "new"
_HEX = frozenset("0123456789abcdef")
_SEEN_MAX = 4096

_Stamp = tuple[int, int, int, int, int]


class FileBlobs:
    """The `Blobs` port over a folder; `durable=False` leaves out the waiting for the disk."""

    def __init__(self, root: Path, *, durable: bool = True) -> None:
        self.root = root
        self._durable = durable
        self._seen: dict[str, _Stamp] = {}

    def put_bytes(self, data: bytes) -> tuple[str, int]:
        """Store bytes; return (SHA-256 in hex, size)."""
        digest = hashlib.sha256(data).hexdigest()
        if not self._has(digest, len(data)):
            fresh = self.new()
            with mapped(fresh):
                with open(fresh, "xb", opener=private) as file:
                    file.write(data)
                self._move_in(fresh, digest)
        return digest, len(data)

    def put_file(self, source: Path) -> tuple[str, int]:
        """Store a file's content in constant memory; return (SHA-256 in hex, size)."""
        fresh = self.new()
        with mapped(source):
            shutil.copyfile(source, fresh)
        return self.adopt(fresh)

    def new(self) -> Path:
        """Return a fresh path for a writer, to `adopt` or to unlink."""
        folder = self.root / _FRESH
        with mapped(folder):
            self._make(folder)
        return folder / uuid.uuid4().hex

    def adopt(self, path: Path) -> tuple[str, int]:
        """Take a finished file from `new`; return (SHA-256 in hex, size)."""
        with mapped(path):
            path.chmod(0o600)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = os.fstat(file.fileno()).st_size
            if self._has(digest, size):
                path.unlink()
            else:
                self._move_in(path, digest)
        return digest, size

    def path(self, digest: str) -> Path:
        """Return where the blob's bytes are; `UnknownNameError` if it is not there, `UnsafePlaceError` if it is another user's."""
        place = self._place(digest)
        try:
            owner = os.stat(self.root).st_uid
            check_found(place.parent, "folder", also=owner)
            check_found(place, also=owner)
        except PermissionError as error:
            raise translate(error, place) from error
        except FileNotFoundError:
            raise UnknownNameError(
                f"there is no blob {digest!r:.80}",
                where=str(self.root),
                remedy="restore the folder from a backup",
            ) from None
        return place

    def intact(self, digest: str) -> Path:
        """Return where the blob's bytes are, once they are known to be the ones that its name tells.

        They are hashed, unless they were before and the file has not been touched since.
        """
        place = self.path(digest)
        if (actual := self._sha256_at(place, digest)) != digest:
            raise ValueDamagedError(
                f"the bytes are not the recorded ones: their SHA-256 is {actual}",
                where=str(place),
                remedy="restore the file from a backup, or inject the value anew; then `datatask retry` its jobs",
            )
        return place

    def _sha256_at(self, place: Path, digest: str) -> str:
        """Return the digest of what is at a place; of what was seen there and is untouched, that of its name."""
        with mapped(place), place.open("rb") as file:
            stamp = _stamp(os.fstat(file.fileno()))
            if self._seen.get(digest) == stamp:
                return digest
            actual = hashlib.file_digest(file, "sha256").hexdigest()
            if actual == digest and stamp == _stamp(os.fstat(file.fileno())):
                if len(self._seen) >= _SEEN_MAX:
                    self._seen.clear()
                self._seen[digest] = stamp
        return actual

    def _place(self, digest: str) -> Path:
        if len(digest) != 64 or not _HEX.issuperset(digest):
            raise UnknownNameError(f"{digest!r:.80} is not a SHA-256 in hex", where=str(self.root))
        return self.root / digest[:2] / digest

    def _has(self, digest: str, size: int) -> bool:
        """Whether the blob is there; it is as new then as if it had been written, so that none is removed meanwhile."""
        place = self._place(digest)
        try:
            if place.stat().st_size != size:
                return False
            check_found(place, also=self._owner())
            if self._sha256_at(place, digest) != digest:
                return False  # what is damaged is written anew
            os.utime(place)
            self._seen[digest] = _stamp(place.stat())
        except FileNotFoundError:
            return False
        return True

    def _move_in(self, fresh: Path, digest: str) -> None:
        place = self._place(digest)
        made = not place.parent.exists()
        self._make(place.parent)
        hand_over(fresh, self.root.parent)
        self._sync(fresh)
        os.rename(fresh, place)
        self._sync(place.parent)
        if made:
            self._sync(self.root)

    def _make(self, folder: Path) -> None:
        """Make a folder; root makes it for the log's owner, whose engine is to read what lies there."""
        for one in (self.root, folder):
            make_private(one, also=self._owner())
            hand_over(one, self.root.parent)

    def _owner(self) -> int | None:
        """Return whom root does this for: the owner of the log's folder."""
        return os.stat(self.root.parent).st_uid if os.geteuid() == 0 and self.root.parent.exists() else None

    def _sync(self, path: Path) -> None:
        if self._durable:
            sync(path)


def _stamp(status: os.stat_result) -> _Stamp:
    """Return values that change whenever a file is written or replaced."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
