"""The chain of a log checked, anchors, and the types of its rows.

In: pages of stored rows with the hash they follow on. Out: a `Divergence` for each batch and row that does not fit. Each
batch is hashed whole, and the hash before it is stored too, so any range can be checked alone. An anchor is a line of
JSON, `{"log", "position", "chain", "at"}`, kept where a writer of the log cannot reach it: it shows a log that was
rewritten or cut, whose chain is sound in itself. SQLite enforces the types of STRICT tables at writing only, so
`wrong_row` looks for a wrong type after reading has failed.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from datatask.adapters.log.faults import damaged, mapped
from datatask.adapters.log.queries import PAGE_ROWS
from datatask.adapters.log.reader import LogReader
from datatask.engine.ports import Filters
from datatask.schema.errors import CallerError, DatataskError, InvalidValueError, LogDamagedError
from datatask.schema.events import PayloadRedacted
from datatask.schema.troubles import Divergence

Stored = tuple[Any, ...]
_FAULTS_MAX = 1000
NAMES_AT_ONCE = 400_000
"""The number of names up to which all are read before the first row; beyond it, those of each page."""

_encode = msgspec.json.Encoder().encode
_salt = struct.Struct(">q").pack
_sha256 = hashlib.sha256


class Chain:
    """The chain of one range of batches, checked as its rows come in; `faults` are what was found."""

    def __init__(
        self, uuid: str, after: int, previous: bytes, redacted: Callable[[], Mapping[int, str]]
    ) -> None:
        """Begin behind the boundary `after`, whose hash is `previous`; `redacted` is `redactions`, when needed."""
        self.faults: list[Divergence] = []
        self.position = after
        self.learned: bool | None = None
        self._uuid = uuid
        self._previous = previous
        self._instead: bytes | None = None
        self._redacted_in = redacted
        self._redacted: Mapping[int, str] | None = None
        self._body: list[tuple[Any, ...]] = []
        self._first = after + 1
        self._spoiled = False

    def add(self, rows: Iterable[Stored], names: Mapping[int | None, str | None]) -> None:
        """Take the next rows; what was taken stays no longer than its batch is open."""
        add, body, position, sha256, salted = self._body.append, self._body, self.position, _sha256, _salt
        for (
            there, at, kind, version, essential, actor, cause, task, repository, job, run, payload, salt, digest, chain,
        ) in rows:  # fmt: skip
            position += 1
            if there != position:
                self._gap(position, there)
                position = there
            try:
                if digest is None and salt is not None and payload is not None:
                    payload_hash = sha256(salted(salt) + payload.encode()).hexdigest()
                elif digest is None and salt is None and payload is None:
                    payload_hash = ""
                else:
                    payload_hash = self._unusual(position, payload, salt, digest)
                if essential != 0 and essential != 1:
                    self._tell(Divergence(position, "essential", "0 or 1", essential))
                add((
                    at, names[kind], version, essential == 1, names[actor], cause, names[task], names[repository],
                    names[job], run, payload_hash,
                ))  # fmt: skip
            except KeyError as error:
                self._spoiled = True
                self._tell(Divergence(position, f"the text of name {error}", "a text", None))
            except (TypeError, AttributeError, ValueError, struct.error) as error:
                self._spoiled = True
                self._tell(Divergence(position, "the types of the row", "those of its columns", f"{error}"))
            if chain is not None:
                self.position = position
                self._close(body, chain)
                body.clear()
                self._first = position + 1
        self.position = position

    def unreadable(self, positions: Iterable[int]) -> None:
        """Take note of rows that are there and cannot be read."""
        for position in positions:
            self._tell(Divergence(position, "the row", "readable text", "unreadable"))
            self.position, self._spoiled = position, True

    def finish(self, until: int) -> list[Divergence]:
        """Say that no more rows come, up to `until`; return all faults, in order."""
        if self.position < until:
            wanted = f"events up to {until}"
            self._tell(
                Divergence(self.position + 1, "the rest of the log", wanted, f"none behind {self.position}")
            )
        elif self._body or self._spoiled:
            self._tell(
                Divergence(self._first, f"the hash of the batch from {self._first} on", "a hash", None)
            )
        return self.faults

    def _tell(self, fault: Divergence) -> None:
        if len(self.faults) < _FAULTS_MAX:
            self.faults.append(fault)

    def _gap(self, expected: int, there: int) -> None:
        self._spoiled = True
        self._tell(Divergence(expected, "the event", f"position {expected}", f"position {there}"))

    def _unusual(self, position: int, payload: str | None, salt: int | None, digest: bytes | None) -> str:
        """Return the digest of a row that is not written like this; only redaction makes one."""
        if digest is None:
            self._tell(
                Divergence(
                    position,
                    "the salt",
                    "with a payload, and only then",
                    "alone" if payload is None else None,
                )
            )
            return "" if payload is None else _sha256(_salt(salt or 0) + payload.encode()).hexdigest()
        if salt is not None:
            self._tell(Divergence(position, "a redacted row", "no salt", "a salt"))
        # Finding the redactions takes a whole reading of the log; most logs have none.
        self._redacted = self._redacted_in() if self._redacted is None else self._redacted
        if position not in self._redacted:
            self._tell(
                Divergence(position, "a payload that was removed", "a PayloadRedacted that names it", None)
            )
        elif left_digest(payload) != self._redacted[position]:
            what = "what is left of a redacted payload"
            self._tell(
                Divergence(
                    position, what, self._redacted[position] or "nothing", left_digest(payload) or None
                )
            )
        return digest.hex()

    def _close(self, body: list[tuple[Any, ...]], stored: bytes) -> None:
        """Compare the hash of the batch that ends here, and go on from what is stored, whatever it is."""
        spoiled, self._spoiled = self._spoiled, False
        previous, self._previous, instead, self._instead = self._previous, stored, self._instead, None
        if type(stored) is not bytes:
            self._tell(Divergence(self.position, "the hash", "bytes", f"{stored!r:.50}"))
            self._previous = b""
            return
        if spoiled:
            return
        try:
            preimage = _encode((self._uuid, self._first, body))
        except UnicodeEncodeError:
            self._tell(Divergence(self._first, "the text of the batch", "valid Unicode", "something else"))
            return
        hashed = _sha256(previous + preimage).digest()
        if hashed == stored:
            return
        if instead is not None and _sha256(instead + preimage).digest() == stored:
            # This one fits on what the one before should have been: its hash was changed, its events were not.
            self.faults[-1] = self.faults[-1]._replace(what="the stored hash of the batch, not its events")
            return
        self._instead = hashed
        where = f"{self._first}" if self._first == self.position else f"{self._first} to {self.position}"
        self._tell(Divergence(self._first, f"the hash of the batch {where}", hashed.hex(), stored.hex()))


def verify_chain(reader: LogReader, after: int = 0, until: int | None = None) -> int | None:
    """Return the first broken position behind the boundary `after`, or None when all fits; one batch in memory."""
    faults = chain_faults(reader, after, until)
    return min((fault.position for fault in faults), default=None)


def chain_faults(reader: LogReader, after: int = 0, until: int | None = None) -> list[Divergence]:
    """Return what does not fit in a range of batches, in the order in which it was found."""
    header = reader.header
    after = max(after, header.base)
    last = reader.head if until is None else until
    chain = begun(reader, after)
    while chain.position < last:
        rows = page(reader, chain, last)
        if not rows and not salvage(reader, chain, last):
            break
    return chain.finish(last)


def begun(reader: LogReader, after: int) -> Chain:
    """Return a chain that stands at the boundary `after`."""
    header = reader.header
    previous = header.base_chain if after == header.base else reader.chain_at(after)
    return Chain(reader.uuid, after, previous, lambda: redactions(reader))


def page(reader: LogReader, chain: Chain, until: int) -> list[Stored]:
    """Return the next rows, after the chain has taken them; none at the end, or where they cannot be read."""
    try:
        if chain.learned is None:
            many = until - chain.position > PAGE_ROWS  # for a few rows their own names are looked for
            chain.learned = many and reader.learn_names(NAMES_AT_ONCE)
        rows = reader.stored(chain.position, until, learned=chain.learned)
    except LogDamagedError:
        return []
    chain.add(rows, reader.decoder.names)
    return rows


def salvage(reader: LogReader, chain: Chain, until: int, *, rows_max: int = 5000) -> bool:
    """Go on where a page cannot be read, row by row; return whether any of it could be."""
    lost: list[int] = []
    for position in range(chain.position + 1, min(chain.position + rows_max, until) + 1):
        try:
            rows = reader.stored(position - 1, position)
        except LogDamagedError:
            lost.append(position)
            continue
        if rows:
            chain.unreadable(lost)
            chain.add(rows, reader.decoder.names)
            return True
    chain.unreadable(lost[:1])
    return False


def left_digest(payload: str | None) -> str:
    """Return the SHA-256 of what stands in place of a payload that was removed, in hex; empty where nothing does."""
    return "" if payload is None else _sha256(payload.encode()).hexdigest()


def redactions(reader: LogReader) -> dict[int, str]:
    """Return the positions whose payload an event says was removed, with the digest of what was left there."""
    try:
        return {
            event.position: event.left
            for _, event in reader.read(filters=Filters(kinds=("PayloadRedacted",)))
            if isinstance(event, PayloadRedacted)
        }
    except DatataskError:
        return {}


_BYTES_MAX = 1 << 28
_RESTORE = "the log was rewritten or cut: restore it from a backup that this anchor fits"


class Anchor(msgspec.Struct, frozen=True, kw_only=True):
    """The hash of the log `log` at the batch boundary `position`, noted at `at` (ISO 8601)."""

    log: str
    position: int
    chain: str
    at: str

    def line(self) -> str:
        """Return it as one line of JSON."""
        return msgspec.json.encode(self).decode()


class Compared(NamedTuple):
    """Which anchors hold, which of this log could not be looked at, how many are of other logs, and what is wrong."""

    held: list[Anchor]
    archived: list[Anchor]
    others: int
    wrong: list[Divergence]


def head_anchor(reader: LogReader, at: str) -> Anchor:
    """Return the anchor of the head; `at` is the time of noting."""
    head = reader.end_of_batch(None)
    return Anchor(log=reader.uuid, position=head, chain=reader.chain_at(head).hex(), at=at)


def append_anchor(path: Path, anchor: Anchor) -> None:
    """Append an anchor to a file, durably; the file is made where there is none."""
    with mapped(path), open(path, "a", encoding="utf-8") as file:
        file.write(anchor.line() + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_anchors(path: Path) -> list[Anchor]:
    """Return the anchors in a file; `CallerError` names the line that is none."""
    with mapped(path), open(path, "rb") as file:
        lines = file.readlines(_BYTES_MAX)
    anchors = [_anchor(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not anchors:
        raise InvalidValueError(
            "there is no anchor in it", where=str(path), remedy="note one with `datatask log-anchor FILE`"
        )
    return anchors


def compare(reader: LogReader, anchors: Iterable[Anchor]) -> Compared:
    """Hold a log against anchors; those of other logs count only where there is none of this one."""
    header, head = reader.header, reader.head
    found = Compared([], [], 0, [])
    others = []
    for anchor in anchors:
        if anchor.log != reader.uuid:
            others.append(anchor)
        elif anchor.position < header.base:
            found.archived.append(anchor)
        else:
            wrong = _compared(reader, anchor, head)
            if wrong is None:
                found.held.append(anchor)
            else:
                found.wrong.append(wrong)
    if others and not (found.held or found.archived or found.wrong):
        found.wrong.append(
            Divergence(1, "the log of the anchor", others[-1].log, reader.uuid, "name this log's anchors, or restore the log that they are of")
        )  # fmt: skip
    return found._replace(others=len(others))


def _compared(reader: LogReader, anchor: Anchor, head: int) -> Divergence | None:
    what = f"the hash that was noted at {anchor.at}"
    if anchor.position > head:
        return Divergence(
            head + 1, what, f"events up to position {anchor.position}", f"none behind {head}", _RESTORE
        )
    try:
        chain = reader.chain_at(anchor.position).hex()
    except DatataskError:
        return Divergence(anchor.position, what, anchor.chain, "no batch ends here", _RESTORE)
    return None if chain == anchor.chain else Divergence(anchor.position, what, anchor.chain, chain, _RESTORE)


def _anchor(path: Path, number: int, line: bytes) -> Anchor:
    try:
        anchor = msgspec.json.decode(line, type=Anchor)
        if len(bytes.fromhex(anchor.chain)) != 32 or anchor.position < 1:
            raise ValueError(anchor.chain)
    except ValueError:
        raise _no_anchor(path, number) from None
    return anchor


def _no_anchor(path: Path, number: int) -> CallerError:
    return InvalidValueError(
        "this is no anchor",
        where=f"{path} line {number}",
        remedy='a line is {"log", "position", "chain", "at"}, as `datatask log-anchor` prints it',
    )


SECONDS_MAX = 10.0
_TYPES = {"Integer": "integer", "Text": "text", "LargeBinary": "blob"}
"""SQLAlchemy's types of our columns, as SQLite's `typeof` names them."""


def wrong_row(path: Path) -> LogDamagedError | None:
    """Return the error for the first row that holds a value of another type than its column's; `LogError` as any reader."""
    from datatask.schema.tables import log, names  # loads SQLAlchemy

    with LogReader(path) as reader:
        for table in (log, names):
            key = next(iter(table.primary_key)).name
            allowed = {
                column.name: (kind, "null") if column.nullable else (kind,)
                for column in table.columns
                if (kind := _TYPES.get(type(column.type).__name__))
            }
            found = ", ".join(f"typeof({name})" for name in allowed)
            tests = [
                f"typeof({name}) NOT IN ({', '.join(map(repr, kinds))})" for name, kinds in allowed.items()
            ]
            sql = f"SELECT {key}, {found} FROM {table.name} WHERE {' OR '.join(tests)} ORDER BY rowid LIMIT 1"
            for at, *kinds in reader.query(sql, timeout_seconds=SECONDS_MAX, rows_max=1).rows:
                pairs = zip(allowed, kinds, strict=True)
                name, kind = next(pair for pair in pairs if pair[1] not in allowed[pair[0]])
                position = at if table is log and isinstance(at, int) else None
                of = "" if position is not None else f" of {table.name} {at!r:.80}"
                return damaged(f"the column {name}{of} holds {kind}, not {allowed[name][0]}", path, position)
    return None
