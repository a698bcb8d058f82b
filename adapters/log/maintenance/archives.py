"""The beginning of a log in a file of its own: compressed, and readable without the log.

`<log>.archives/FIRST-LAST.jsonl.gz`: a line that says what it is, a JSON array for each row with its names as text, a line with the
number of rows and their SHA-256. In: rows. Out: the same rows, checked: their own digest, their positions, and the chain from
the hash that they follow on to the one that the next archive, or the log, begins with; and the state that a log stands on, folded
anew from them where another version of the fold made it, which so rests on the chain alone.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from datatask.adapters.log.faults import damaged, mapped
from datatask.adapters.log.locate import archives_path
from datatask.adapters.log.log_file import Header
from datatask.adapters.log.queries import Stored
from datatask.adapters.spools import sync, whole
from datatask.adapters.trust import make_private, private
from datatask.engine.core import checkpoints
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import FOLD_VERSION, State
from datatask.schema.codec import CHAIN_START, Row, chain, decode, payload_digest
from datatask.schema.errors import CallerError, LogDamagedError, NotPossibleError
from datatask.schema.events import Event, LaunchDecided

FORMAT = 1
SUFFIX = ".jsonl.gz"
COLUMNS = (
    "position", "at", "kind", "version", "essential", "actor", "cause", "task", "repository", "job", "run", "payload",
    "salt", "digest", "chain",
)  # fmt: skip
_LEVEL = 6
Look = Callable[[Stored], None]
_REMEDY = "put it back from a backup"


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The first line: what the archive is of, and which hashes it stands between, in hex."""

    archive: int
    log: str
    pipeline: str
    first: int
    last: int
    chain_before: str
    chain_after: str
    columns: tuple[str, ...]
    written_by: str


class Tail(msgspec.Struct, frozen=True, kw_only=True):
    """The last line: how many rows, and the SHA-256 of all lines before."""

    rows: int
    sha256: str


_encode = msgspec.json.Encoder().encode
_head = msgspec.json.Decoder(Head)
_tail = msgspec.json.Decoder(Tail)
_row = msgspec.json.Decoder(list[Any])


def archives_of(log: Path, uuid: str) -> list[Path]:
    """Return the archives of a log, the first one first."""
    found = []
    for path in archives_path(log).glob(f"*{SUFFIX}"):
        first, _, last = path.name.removesuffix(SUFFIX).partition("-")
        if first.isdecimal() and last.isdecimal() and read_head(path).log == uuid:
            found.append((int(first), path))
    return [path for _, path in sorted(found)]


def leading(heads: Mapping[Path, Head], base: int, base_chain: str) -> list[Path]:
    """Return the archives that lead to a base, each following on the one before, from as far back as there are any."""
    ways: dict[tuple[int, str], tuple[int, Path]] = {}
    for path, head in sorted(heads.items(), key=lambda one: one[1].last):
        if head.first == 1 and head.chain_before != CHAIN_START.hex():
            continue
        start, _ = ways.get((head.first - 1, head.chain_before), (head.first, path))
        known = ways.get((head.last, head.chain_after))
        if known is None or start < known[0]:
            ways[head.last, head.chain_after] = start, path
    found: list[Path] = []
    end = base, base_chain
    while end in ways:
        found.append(ways[end][1])
        end = heads[found[-1]].first - 1, heads[found[-1]].chain_before
    return found[::-1]


def unbroken(log: Path, uuid: str, base: int, base_chain: bytes) -> list[Path]:
    """Return the archives that lead, each following on the one before, to a base; `CallerError` for one that is missing."""
    heads = {archive: read_head(archive) for archive in archives_of(log, uuid)}
    wanted = leading(heads, base, base_chain.hex())
    last = heads[wanted[0]].first - 1 if wanted else base
    if last:
        known = [head.last for head in heads.values() if head.last <= last]
        first = max((end for end in known if end < last), default=0) + 1
        raise NotPossibleError(
            f"the archive of the events from {first} on is missing",
            where=str(archives_path(log) / f"{first}-{last}{SUFFIX}"),
            remedy="put it there, or ask without --with-archives",
        )
    return wanted


def write_archive(folder: Path, head: Head, rows: Iterable[Stored], *, check: bool = False) -> Path:
    """Write rows, their names as text, into a new archive, durably and whole; one that is there is replaced.

    With `check` not before the new one was read again.
    """
    with mapped(folder):
        make_private(folder)
        path = folder / f"{head.first}-{head.last}{SUFFIX}"
        finish = check_archive if check else lambda fresh: None
        # Whoever writes here has the lease: one name will do.
        with (
            whole(path, durable=True, fresh="new", opener=private, finish=finish) as raw,
            gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=raw, mtime=0) as file,
        ):
            _write(file, head, rows)
        sync(folder.parent)
    return path


def _write(file: gzip.GzipFile, head: Head, rows: Iterable[Stored]) -> None:
    digest, count = hashlib.sha256(), 0
    line = _encode(head) + b"\n"
    digest.update(line)
    file.write(line)
    for row in rows:
        *plain, hashed, link = row
        line = _encode([*plain, hashed and hashed.hex(), link and link.hex()]) + b"\n"
        digest.update(line)
        file.write(line)
        count += 1
    file.write(_encode(Tail(rows=count, sha256=digest.hexdigest())) + b"\n")


def read_head(path: Path) -> Head:
    """Return what an archive says of itself."""
    with _damage(path), gzip.open(path, "rb") as file:
        return _head.decode(file.readline())


def read_rows(path: Path) -> Iterator[Stored]:
    """Yield the rows of an archive with their names as text; `LogDamagedError` where it is not what was written."""
    with _damage(path), gzip.open(path, "rb") as file:
        line = file.readline()
        digest, head, count = hashlib.sha256(line), _head.decode(line), 0
        before = file.readline()
        for line in file:
            digest.update(before)
            row = _row.decode(before)
            count += 1
            if row[0] != head.first + count - 1:
                raise _damaged(path, f"row {count} is of position {row[0]}")
            yield (*row[:13], row[13] and bytes.fromhex(row[13]), row[14] and bytes.fromhex(row[14]))
            before = line
        tail = _tail.decode(before)
        if tail.rows != count or count != head.last - head.first + 1 or tail.sha256 != digest.hexdigest():
            raise _damaged(path, "its end does not fit what stands before")


def check_archive(path: Path, look: Look = lambda _: None) -> Head:
    """Read an archive whole, and return its head when its rows and its chain are what was written."""
    for _ in read_batches(path, look):
        pass
    return read_head(path)


def read_batches(path: Path, look: Look = lambda _: None) -> Iterator[tuple[int, list[Row]]]:
    """Yield an archive's batches, each with its first position; `LogDamagedError` where the chain does not hold.

    `look` is called with each stored row of a batch that holds.
    """
    head = read_head(path)
    previous, rows, digests, seen = bytes.fromhex(head.chain_before), [], [], []
    first = head.first
    for stored in read_rows(path):
        seen.append(stored)
        with _damage(path):
            row = as_row(stored)
            digest = stored[13]
            digests.append(digest.hex() if digest else payload_digest(row.payload, stored[12]))
            rows.append(row)
            if stored[14] is None:
                continue
            previous = chain(previous, head.log, first, rows, digests)
            if previous != stored[14]:
                raise _damaged(path, f"the batch from position {first} on is not what was written")
        for one in seen:
            look(one)
        yield first, rows
        first, rows, digests, seen = stored[0] + 1, [], [], []
    if rows or previous.hex() != head.chain_after:
        raise _damaged(path, "its chain does not end where it says")


def as_row(stored: Stored) -> Row:
    """Return the row of the chain's preimage that a row with names as text stands for."""
    payload = stored[11]
    encoded = None if payload is None else payload.encode()
    _, at, kind, version, essential, actor, cause, task, repository, job, run = stored[:11]
    return Row(at, kind, version, bool(essential), actor, cause, task, repository, job, run, encoded)


def archive_digest(path: Path) -> str:
    """Return the SHA-256 of an archive's file, in hex."""
    with mapped(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _damage:
    """Says which archive it was that could not be read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        wrong = (
            EOFError,
            OSError,
            zlib.error,
            struct.error,
            msgspec.DecodeError,
            ValueError,
            TypeError,
            IndexError,
        )
        if isinstance(error, wrong):
            raise _damaged(self._path, f"{type(error).__name__}: {error}") from error


def _damaged(path: Path, why: str) -> LogDamagedError:
    return LogDamagedError(f"the archive is damaged: {why}", where=str(path), remedy=_REMEDY)


def refolded(path: Path, header: Header, version: int) -> bytes:
    """Return the state at the base; `LogDamagedError` says which archive is missing or damaged."""
    try:
        archives = unbroken(path, header.uuid, header.base, header.base_chain)
    except CallerError as error:
        raise damaged(
            f"the state that the log stands on was made by version {version} of the fold, this is {FOLD_VERSION}, and"
            f" {error.what}",
            path,
            header.base,
            remedy=f"put {error.where} back, or use the datatask version that archived it",
        ) from error
    state = State()
    for archive in archives:
        for first, rows in read_batches(archive):
            apply_all(state, first, [_event(row, first + index, archive) for index, row in enumerate(rows)])
    return checkpoints.dump(state)


def _event(row: Row, position: int, archive: Path) -> Event:
    event = decode(row, where=f"{archive} position {position}")
    if type(event) is LaunchDecided and event.run == position:
        # The column says which run it is about; the event itself was made before it had a position.
        return msgspec.structs.replace(event, run=None)
    return event
