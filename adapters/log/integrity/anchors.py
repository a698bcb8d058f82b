"""Anchors: head hashes noted somewhere else, against which a rewritten or cut log is found out.

Out: one line of JSON for the head of a log, `{"log", "position", "chain", "at"}`, to be kept where whoever can write the
log cannot: another machine, a mail, a ticket, a timestamping service, a sheet of paper. In: a file of such lines,
newest anywhere. A chain can be computed anew by anybody who rewrites all of it; the hash at a noted position it
cannot then have.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from datatask.adapters.log.faults import mapped
from datatask.adapters.log.reader import LogReader
from datatask.schema.errors import CallerError, DatataskError, InvalidValueError
from datatask.schema.troubles import Divergence

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
