"""Checks of what lies beside the chain: SQLite's file, its header, names, blobs, and traces of a longer log.

In: a reader, and the state at the end of verification. Out: `Looked`, with a divergence for each fault, a line for each
check, and a line for each assumption that the log cannot prove. Position 0 means the file as a whole. A blob that was
collected by a garbage collection is counted and is no fault. `background` checks blobs in small portions: `pause` is
called after each `CHUNK` of bytes and each page of events.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BufferedReader

import msgspec

from datatask.adapters.log.blobs import FileBlobs
from datatask.adapters.log.checkpoints import (
    ChangedError,
    checkpoints_in,
    read_checkpoint,
    stands_on,
    vouching,
)
from datatask.adapters.log.file_changes import lost_frames
from datatask.adapters.log.lease import probe
from datatask.adapters.log.locate import blobs_path, checkpoints_path
from datatask.adapters.log.log_file import Header
from datatask.adapters.log.queries import Query
from datatask.adapters.log.reader import LogReader
from datatask.adapters.trust import UnsafePlaceError
from datatask.engine.core.state import State
from datatask.engine.ports import Filters
from datatask.schema.errors import DatataskError, UnknownNameError
from datatask.schema.events import ArchiveCut, BlobsCollected, EngineOpened, Event
from datatask.schema.troubles import Divergence
from datatask.schema.version import APPLICATION_ID, FORMAT

_RESTORE = "restore the log from a backup; what can still be read comes out with `sqlite3 FILE .recover`"
_CUT = "events were cut off the end: restore the log from a backup (or: a loss of power took them, with durability `process`)"
_HIDDEN = "restore the log with its write-ahead log from a backup (or: a loss of power did it, with durability `process`)"
_HEADER = "the header was changed: restore the log from a backup"

SCHEMA: dict[str, tuple[str, ...]] = {
    "names": ("5380407385afd068",),
    "sqlite_autoindex_names_1": ("10c557d6af471ba4",),
    "log": ("d3e9e845ef33b983",),
    "meta": ("93b3d4e80e7f5139",),
    "sqlite_autoindex_meta_1": ("4511c81cd98db00e",),
    "log_job_position": ("03d18f7d9c665a02",),
    "base": ("10f9016e70522015",),
    "events": ("3783fcc963f1206e",),
    "runs": ("3dbeccfc913131aa",),
    "values_now": ("2330fb0941b10ddc",),
    "lineage": ("2cee8be06ac9a346",),
}
"""Table, view or index -> `schema_digest` of each statement that a version of this format has made it with."""

Progress = Callable[[int, int], None]


@dataclass
class Looked:
    """What was looked at, found, and taken on trust."""

    checked: list[str] = field(default_factory=list)
    rests_on: list[str] = field(default_factory=list)
    wrong: list[Divergence] = field(default_factory=list)


def look(reader: LogReader, state: State, until: int, progress: Progress | None = None) -> Looked:
    """Check all that is not in the chain and not in the fold."""
    found = Looked()
    _file(reader, found)
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("the schema", lambda: _schema(reader, state, found)),
        ("the header", lambda: _header(reader, state, found)),
        ("names", lambda: _names(reader, found)),
        ("checkpoints", lambda: _longer(reader, found)),
        ("blobs", lambda: _blobs(reader, state, until, found, progress)),
    )
    for what, check in steps:
        try:
            check()
        except DatataskError as error:
            found.wrong.append(Divergence(0, what, "readable", error.what, error.remedy or _RESTORE))
        except (TypeError, ValueError, AttributeError) as error:
            if not found.wrong:
                raise
            # Values of wrong types: the file's own check has found them.
            found.wrong.append(Divergence(0, what, "of the types of their columns", f"{error}", _RESTORE))
    return found


def _file(reader: LogReader, found: Looked) -> None:
    try:
        lines = reader.integrity()
    except DatataskError as error:
        lines = [error.what]
    _written_ahead(reader, found)
    found.checked.append("SQLite's integrity check")
    found.wrong += [Divergence(0, "SQLite's integrity check", "ok", line, _RESTORE) for line in lines]


def _written_ahead(reader: LogReader, found: Looked) -> None:
    """Look for events that a crashed engine left in the write-ahead log and that are no longer read."""
    wal = reader.path.with_name(reader.path.name + "-wal")
    if probe(reader.path) is not None or (lost := lost_frames(wal)) is None:
        return
    where = f"frame {lost.frame}" if lost.frame else "the header"
    if lost.certain:
        what, told = f"{where} of {wal.name}", f"changed: it hides {lost.frames} frames"
        found.wrong.append(Divergence(reader.head + 1, what, "as SQLite wrote it", told, _HIDDEN))
        return
    found.rests_on.append(
        f"the last {lost.frames} frames of {wal.name} having been cut off by a crash and not by a person"
    )


def schema_digest(kind: str, table: str, sql: str) -> str:
    """Return the beginning of the SHA-256 of what `sqlite_master` says of something."""
    return hashlib.sha256(f"{kind} {table} {sql}".encode()).hexdigest()[:16]


def _schema(reader: LogReader, state: State, found: Looked) -> None:
    """Compare tables and views with what versions of this format make; what others added is not ours to judge."""
    rows = reader.query(
        "SELECT name, type, tbl_name, coalesce(sql, '') FROM sqlite_master WHERE name NOT GLOB 'sqlite_s*'"
    ).rows
    there = {str(name): schema_digest(*map(str, told)) for name, *told in rows}
    ours = state.engine is None or state.engine.version == reader.header.written_by
    for name, known in SCHEMA.items():
        told = there.get(name)
        if told in known:
            continue
        if told is not None and not ours:
            found.rests_on.append(f"the {name} of the schema, which another version may have changed")
            continue
        what = f"the schema's {name}"
        found.wrong.append(Divergence(0, what, f"digest {known[-1]}", told and f"digest {told}", _RESTORE))
    triggers = sorted(str(row[0]) for row in rows if row[1] == "trigger" and row[2] in SCHEMA)
    for trigger in triggers:  # it would change what the next engine writes
        found.wrong.append(
            Divergence(0, f"the trigger {trigger} on the log's tables", None, "there", _RESTORE)
        )
    for pragma, expected in (("application_id", APPLICATION_ID), ("user_version", 0)):
        ((value,),) = reader.ask(Query(f"PRAGMA {pragma}", ()))
        if value != expected:
            found.wrong.append(Divergence(0, f"the file's {pragma}", expected, value, _RESTORE))
    keys = {str(key) for (key,) in reader.ask(Query("SELECT key FROM meta", ()))} - set(Header._fields)
    added = sorted({*there, *(f"the header's {key}" for key in keys)} - SCHEMA.keys() - set(triggers))
    if added:
        found.rests_on.append(
            f"nothing: {', '.join(added)} in the file are not of datatask, and were left alone"
        )
    found.checked.append("the schema")


# --- the header -------------------------------------------------------------------------------------


def _header(reader: LogReader, state: State, found: Looked) -> None:
    """Compare the header with what the events say; `started` and, without events, the rest cannot be checked."""
    header = reader.header
    expected: list[tuple[str, object, object]] = [
        ("uuid", state.log or header.uuid, header.uuid),
        ("pipeline", state.pipeline or header.pipeline, header.pipeline),
    ]
    expected += [
        (key, f"1 to {FORMAT}", value)
        for key, value in header._asdict().items()
        if key in ("format", "may_read", "may_write") and not 1 <= value <= FORMAT
    ]
    opened = state.engine
    if opened is not None and header.epoch == opened.epoch:
        expected += [("host", opened.host, header.host), ("pid", opened.pid, header.pid)]
        if header.started > opened.at:
            expected.append(("started", f"at most {opened.at}", header.started))
    elif opened is not None and header.epoch < opened.epoch:
        expected.append(("epoch", f"at least {opened.epoch}", header.epoch))
    if header.base == 0:
        first = _first(reader, "EngineOpened", 100)
        if isinstance(first, EngineOpened):
            expected.append(("written_by", first.version, header.written_by))
    if header.base:  # one that is 0 is a whole log: its chain shows whether the beginning is here
        cuts = [
            event.until
            for _, event in reader.read(header.base, filters=Filters(kinds=("ArchiveCut",)))
            if isinstance(event, ArchiveCut)
        ]
        if header.base != max(cuts, default=0):
            expected.append(("base", max(cuts, default=0), header.base))
    ((first_there,),) = reader.query("SELECT min(position) FROM log WHERE position > ?", (header.base,)).rows
    if first_there is not None and first_there != header.base + 1:
        expected.append(("base", first_there - 1, header.base))
    found.checked.append("the header against the events")
    found.wrong += [
        Divergence(0, f"the header's {key}", wanted, told, _HEADER)
        for key, wanted, told in expected
        if wanted != told
    ]
    last = opened.epoch if opened is not None else 0
    if header.epoch > last and state.engine is not None and probe(reader.path) is None:
        found.rests_on.append(
            f"the header counts {header.epoch} openings and the last that left an event is number {last}: a later"
            " opening wrote no event, or its events were cut off"
        )


def _first(reader: LogReader, kind: str, until: int) -> Event | None:
    """Return the first event of a kind, None also where it cannot be read, which others tell."""
    try:
        return next((event for _, event in reader.read(0, until, Filters(kinds=(kind,)))), None)
    except DatataskError:
        return None


def _names(reader: LogReader, found: Looked) -> None:
    """Names are written with the first event that uses them: one without shows that events are gone."""
    ((count, low, high, used),) = reader.query(
        "SELECT count(*), min(id), max(id), (SELECT max(max(kind), max(actor), coalesce(max(task), 0),"
        " coalesce(max(repository), 0), coalesce(max(job), 0)) FROM log) FROM names",
        timeout_seconds=600.0,
    ).rows
    found.checked.append(f"{count} names")
    if count and (low, high) != (1, count):
        found.wrong.append(
            Divergence(0, "the numbers of names", f"1 to {count}", f"{low} to {high}", _RESTORE)
        )
    if count and reader.header.base == 0 and high > (used or 0):
        what = f"events that use the names {(used or 0) + 1} to {high}"
        found.wrong.append(Divergence(reader.head + 1, what, "some", None, _CUT))


def _longer(reader: LogReader, found: Looked) -> None:
    """Checkpoints say which hash they stand on: one that this log does not have is of a log that was otherwise."""
    folder, vouch = checkpoints_path(reader.path), vouching(reader)
    for one in [one for part in (".", "past", "verified") for one in checkpoints_in(folder / part)]:
        chain, head = stands_on(one, reader.uuid), reader.head
        if chain is None or one.position < reader.header.base:
            continue
        name = one.path.relative_to(reader.path.parent)
        if one.position > head:
            what = f"the log that {name} was made of"
            told = f"none behind {head}"
            found.wrong.append(Divergence(head + 1, what, f"events up to {one.position}", told, _CUT))
            continue
        try:
            there: str | None = reader.chain_at(one.position).hex()
        except DatataskError:
            there = None
        if there != chain.hex():
            remedy = "the log was rewritten since (or the checkpoint is of a copy: then delete it)"
            what = f"the hash that {name} stands on"
            found.wrong.append(Divergence(one.position, what, chain.hex(), there, remedy))
            continue
        try:
            read_checkpoint(one, reader.uuid, reader.chain_at, vouch)
        except ChangedError:
            what, remedy = f"the state in {name}", "delete it: it is made anew; and see who may write there"
            found.wrong.append(
                Divergence(one.position, what, "the one that the log vouches for", "another one", remedy)
            )


def _blobs(reader: LogReader, state: State, until: int, found: Looked, progress: Progress | None) -> None:
    """Check that each blob that an event names is there, and is what its name says."""
    blobs = Blobs(reader, until)
    found.wrong += blobs.faults(state, 0, until, progress=progress)
    found.checked.append(f"{len(blobs.seen)} blobs")
    if blobs.gone:
        found.rests_on.append(f"{blobs.gone} values that are no more named blobs that were collected")


CHUNK = 1 << 20
_PAGE = 20_000

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
