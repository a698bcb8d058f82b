"""Whether a log still says what it said when it was written.

In: a reader. Out: the first position that does not fit, or None. Every batch is hashed again from what
readers read and compared with the hash that was stored; a gap, a missing end, and a redaction that no event
tells of are found too. Whether the whole was cut or rewritten only a noted head hash can tell (`chain_at`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from datatask.adapters.log.header import Header
from datatask.engine.ports import Filters
from datatask.schema.codec import Row, chain, payload_digest
from datatask.schema.errors import LogDamagedError
from datatask.schema.events import PayloadRedacted, Recorded


class ChainReader(Protocol):
    """What verifying needs of a reader."""

    uuid: str

    @property
    def header(self) -> Header:
        """What the log says about itself."""

    @property
    def head(self) -> int:
        """The last position."""

    def rows(self, after: int = 0, until: int | None = None) -> Iterator[tuple[tuple[Any, ...], Row]]:
        """Yield what is stored, with the row it stands for."""

    def read(self, after: int = 0, until: int | None = None, filters: Filters = ...) -> Iterator[Recorded]:
        """Yield events."""

    def chain_at(self, position: int) -> bytes:
        """Return the hash at a boundary."""


def verify_chain(reader: ChainReader, after: int = 0, until: int | None = None) -> int | None:
    """Return the first broken position behind the boundary `after`, or None when all fits; one batch in memory."""
    header = reader.header
    after = max(after, header.base)
    last = reader.head if until is None else until
    previous = header.base_chain if after == header.base else reader.chain_at(after)
    redacted: frozenset[int] | None = None
    rows: list[Row] = []
    digests: list[str] = []
    position = after
    try:
        for stored, row in reader.rows(after, last):
            position += 1
            digest, hashed = stored[13], stored[14]
            if stored[0] != position:
                return position
            if digest is not None:
                # Finding the redactions takes a whole reading of the log; most logs have none.
                redacted = _redacted(reader) if redacted is None else redacted
                if position not in redacted:
                    return position
            rows.append(row)
            digests.append(payload_digest(row.payload, stored[12]) if digest is None else digest.hex())
            if hashed is not None:
                first = position - len(rows) + 1
                previous = chain(previous, reader.uuid, first, rows, digests)
                if previous != hashed:
                    return first
                rows, digests = [], []
    except LogDamagedError:
        # What cannot be read is broken from the first row that could not be.
        return position + 1
    return position + 1 if rows or position < last else None


def _redacted(reader: ChainReader) -> frozenset[int]:
    return frozenset(
        event.position
        for _, event in reader.read(filters=Filters(kinds=("PayloadRedacted",)))
        if isinstance(event, PayloadRedacted)
    )
