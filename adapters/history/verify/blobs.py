"""Whether each blob that an event names is there, and is what its name says.

In: a reader, and the state at the end of what is looked at. Out: a divergence for each blob that is missing, or has other bytes or
another size than the event tells. What was collected by right is none, and is counted. `verify` looks at all blobs at once,
`background` a little at a time: `pause` is called after each `CHUNK` of bytes and each page of events.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from io import BufferedReader

import msgspec

from datatask.adapters.log.blobs import FileBlobs
from datatask.adapters.log.locate import blobs_path
from datatask.adapters.log.reader import LogReader
from datatask.adapters.trust import UnsafePlaceError
from datatask.engine.core.state import State
from datatask.engine.ports import Filters
from datatask.schema.errors import DatataskError, UnknownNameError
from datatask.schema.events import BlobsCollected, Event
from datatask.schema.troubles import Divergence

CHUNK = 1 << 20
_PAGE = 20_000

Progress = Callable[[int, int], None]
Pause = Callable[[int], None]
"""Called with the number of bytes that were hashed since the last call."""


class _Named(msgspec.Struct):
    digest: str | None = None
    size: int | None = None


class Blobs:
    """The blobs of one log, each looked at once; `seen` are those, `gone` values whose blobs were collected."""

    def __init__(self, reader: LogReader, until: int, *, seen_max: int | None = None) -> None:
        self.seen: dict[bytes, str] = {}
        self.gone = 0
        self._reader = reader
        self._files = FileBlobs(blobs_path(reader.path))
        self._collected = _collected(reader, until)
        self._seen_max = seen_max

    def faults(
        self,
        state: State,
        after: int,
        until: int,
        *,
        progress: Progress | None = None,
        pause: Pause | None = None,
    ) -> Iterator[Divergence]:
        """Look at the blobs of the values behind `after`, up to `until`; yield what is wrong, in order."""
        for position, leaf, job, named in self._named(after, until, progress, pause):
            known = state.leaves.get(leaf)
            if named.digest is None or known is None or known.definition.medium not in ("native", "mirror"):
                continue
            trouble = self._trouble(named.digest, named.size, pause)
            if not trouble:
                continue
            index = state.job_index.get(job)
            now = index is not None and index < len(known.positions) and known.positions[index] == position
            if trouble == "missing" and position < self._collected and not now:
                self.gone += 1
                continue
            place = f"{self._files.root.name}/{named.digest[:2]}/{named.digest}"
            yield Divergence(position, f"the blob {named.digest} of {leaf} {job}", "there and intact", trouble,
                             f"restore {place} from a backup")  # fmt: skip

    def _trouble(self, digest: str, size: int | None, pause: Pause | None) -> str:
        """Return what is wrong with a blob, which is not looked at again; the empty string when nothing is."""
        key = _key(digest)
        trouble = self.seen.get(key)
        if trouble is None:
            if self._seen_max is not None and len(self.seen) >= self._seen_max:
                self.seen.clear()
            trouble = self.seen[key] = _trouble(self._files, digest, size, pause)
        return trouble

    def _named(
        self, after: int, until: int, progress: Progress | None, pause: Pause | None
    ) -> Iterator[tuple[int, str, str, _Named]]:
        """Yield (position, repository, job, payload) of the values that are kept as blobs."""
        decode = msgspec.json.Decoder(_Named).decode
        while after < until:  # from 0: values that were carried over a cut stand before the base
            last = min(after + _PAGE, until)
            rows = self._reader.query(
                "SELECT l.position, r.text, j.text, l.payload FROM log l JOIN names k ON k.id = l.kind"
                " JOIN names r ON r.id = l.repository JOIN names j ON j.id = l.job"
                " WHERE l.position > ? AND l.position <= ? AND k.text = 'ValuePut' AND instr(l.payload, '\"digest\":')",
                (after, last),
                timeout_seconds=600.0,
            ).rows
            for position, leaf, job, payload in rows:
                try:
                    yield position, leaf, job, decode(payload)
                except msgspec.DecodeError:
                    continue  # told by whoever folds it
            after = last
            if progress is not None:
                progress(after, until)
            if pause is not None:
                pause(0)


def _collected(reader: LogReader, until: int) -> int:
    """Return the last position at which blobs that only past values name were removed, 0 where none was."""
    filters = Filters(kinds=(BlobsCollected.__name__,))
    try:
        found = (position for position, event in reader.read(0, until, filters) if _of_past(event))
        return max(found, default=0)
    except DatataskError:
        return 0  # told by whoever folds it


def _of_past(event: Event) -> bool:
    return isinstance(event, BlobsCollected) and event.kept == "current"


def _key(digest: str) -> bytes:
    try:
        return bytes.fromhex(digest)
    except ValueError:
        return digest.encode()


def _trouble(blobs: FileBlobs, digest: str, size: int | None, pause: Pause | None) -> str:
    try:
        path = blobs.path(digest)
        with path.open("rb") as file:
            told = _digest(file, pause)
    except UnknownNameError:
        return "missing"
    except UnsafePlaceError as error:
        return error.what
    except OSError as error:
        return f"unreadable ({error.strerror})"
    if told != digest:
        return f"other bytes, with the SHA-256 {told}"
    if size is not None and path.stat().st_size != size:
        return f"{path.stat().st_size} bytes instead of {size}"
    return ""


def _digest(file: BufferedReader, pause: Pause | None) -> str:
    if pause is None:
        return hashlib.file_digest(file, "sha256").hexdigest()
    hashed = hashlib.sha256()
    while chunk := file.read(CHUNK):
        hashed.update(chunk)
        pause(len(chunk))
    return hashed.hexdigest()
