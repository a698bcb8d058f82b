"""`verify`: all checks of a log, and the assumptions that its result rests on.

In: a log, and anchors that were stored elsewhere. Out: `LogVerified`. The chain and the fold are checked in `fold`, files
beside the log in `files`. Archives are checked here: the base and the rows carried over the cut against their
`ArchiveCut`, each archive by its own chain, its neighbours, and the `PayloadRedacted` events of its part. Missing
archives are named in the result.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter as clock
from typing import Any

from datatask.adapters.history.replay import Progress, Replayed, replayed_of
from datatask.adapters.history.states import uncut
from datatask.adapters.history.verify.files import Looked, look
from datatask.adapters.history.verify.fold import Verified, verified
from datatask.adapters.log.checkpoints import NAMED, UNFIT, base_digest, base_fits, carried_digest
from datatask.adapters.log.faults import damaged
from datatask.adapters.log.integrity.verify import Anchor, compare, left_digest, redactions
from datatask.adapters.log.maintenance.archives import (
    Head,
    archive_digest,
    archives_of,
    as_row,
    check_archive,
    leading,
    read_head,
)
from datatask.adapters.log.queries import Stored
from datatask.adapters.log.reader import LogReader
from datatask.engine.core import checkpoints
from datatask.engine.ports import Filters
from datatask.schema.codec import decode
from datatask.schema.errors import LogDamagedError
from datatask.schema.events import ArchiveCut, EngineOpened, Event, PayloadRedacted
from datatask.schema.troubles import Divergence


@dataclass(frozen=True)
class LogVerified:
    """What `verify` found; `divergences` are all, those of the file as a whole (position 0) first."""

    path: Path
    replayed: Replayed
    divergences: tuple[Divergence, ...]
    checked: tuple[str, ...]
    rests_on: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong."""
        return not self.divergences

    def summary(self) -> str:
        """Return it in one line."""
        return replace(self.replayed, divergences=self.divergences).summary()

    def to_json(self) -> dict[str, Any]:
        """Return the documented shape of `verify --json`: that of `replay`, with what was checked and rested on."""
        shape = replace(self.replayed, divergences=self.divergences).to_json()
        return {**shape, "checked": list(self.checked), "rests_on": list(self.rests_on)}

    def __repr__(self) -> str:
        """Return the summary and the first divergences, a line each."""
        return repr(replace(self.replayed, divergences=self.divergences)).replace(
            "Replayed", "LogVerified", 1
        )


def verify(
    place: str | Path, *, anchors: Iterable[Anchor] = (), progress: Progress | None = None
) -> LogVerified:
    """Check the log at a URL or path: file, chain, blobs, invariants, decisions, and against anchors noted elsewhere.

    Raises `CallerError` where there is no log, `LogDamagedError` where the file cannot be opened as one.
    """
    with LogReader(place) as reader:
        return verify_log(reader, anchors=anchors, progress=progress)


def verify_log(
    reader: LogReader, *, anchors: Iterable[Anchor] = (), progress: Progress | None = None
) -> LogVerified:
    """`verify` for a log that is open."""
    noted = list(anchors)
    try:
        return uncut(reader, lambda: _verified(reader, noted, progress), lambda found: found.ok)
    except UNFIT as error:
        if base_fits(reader):
            raise
        # A state that was changed may be one that nothing leads to.
        what = "the state that the log stands on is not the one that was stored at the cut"
        raise damaged(what, reader.path, reader.header.base) from error


def _verified(reader: LogReader, anchors: list[Anchor], progress: Progress | None) -> LogVerified:
    began = clock()
    until = reader.end_of_batch(None)
    found = verified(reader, until, progress=progress)
    looked = look(reader, found.state, until, progress)
    told = replayed_of(reader, found, seconds=clock() - began)
    looked.checked[:0] = [
        f"the chain of {told.events} events",
        "invariants at every batch, every decision, every round again",
    ]
    _rest(reader, found, looked)
    _anchored(reader, anchors, looked)
    wrong = sorted([*looked.wrong, *told.divergences], key=lambda one: one.position)
    return LogVerified(reader.path, told, tuple(wrong), tuple(looked.checked), tuple(looked.rests_on))


def _rest(reader: LogReader, found: Verified, looked: Looked) -> None:
    for version, count in sorted(found.undecided.items()):
        looked.rests_on.append(
            f"{count} rounds of decider {version}, which is not shipped any more: each decision was admissible, that"
            " none is missing is that version's word"
        )
    if found.compared:
        looked.checked.append(
            f"{len(found.compared)} checkpoints against the states that follow from the events"
        )
    look_at_base(reader, looked)
    removed = redactions(reader)
    if removed:
        looked.rests_on.append(
            f"{len(removed)} payloads were removed: of them the log has the digest, and the word of who removed them that"
            " what was left stood there before"
        )


def _anchored(reader: LogReader, anchors: list[Anchor], looked: Looked) -> None:
    if not anchors:
        looked.rests_on.append(
            "no anchor: only a hash noted elsewhere can show that the end was not cut off and the log not rewritten"
        )
        return
    compared = compare(reader, anchors)
    looked.wrong += compared.wrong
    looked.checked.append(f"{len(compared.held) + len(compared.wrong)} anchors")
    if compared.held:
        last = max(compared.held, key=lambda anchor: anchor.position)
        looked.rests_on.append(
            f"the anchor at position {last.position}; what follows on it no anchor has seen"
        )
    if compared.archived:
        looked.rests_on.append(f"{len(compared.archived)} anchors are of positions that live in an archive")


_TOLD = ("ArchiveCut", "PayloadRedacted")
_TOLD_MAX = 10
_UNUSED = (
    "SELECT text FROM names WHERE id NOT IN (SELECT kind FROM log UNION SELECT actor FROM log UNION SELECT ifnull(task, 0)"
    " FROM log UNION SELECT ifnull(repository, 0) FROM log UNION SELECT ifnull(job, 0) FROM log)"
)
_RESTORE = "restore the log from a backup"
_AGAIN = "put it back from a backup"


@dataclass
class _Known:
    """What events of the log, and of the archives that lead to it, tell."""

    cuts: dict[int, ArchiveCut] = field(default_factory=dict)
    left: dict[int, tuple[int, str]] = field(default_factory=dict)
    chains: dict[int, bytes] = field(default_factory=dict)

    def hear(self, position: int, event: Event) -> None:
        """Take in what an event tells."""
        if isinstance(event, ArchiveCut):
            self.cuts[event.until] = event
        elif isinstance(event, PayloadRedacted):
            self.left[event.position] = position, event.left


@dataclass
class _Seen:
    """What there is in an archive: events that tell, digests of what redactions left, hashes at some positions."""

    path: Path
    wanted: frozenset[int]
    unused: set[str]
    told: list[tuple[int, Event]] = field(default_factory=list)
    removed: dict[int, str] = field(default_factory=dict)
    chains: dict[int, bytes] = field(default_factory=dict)
    written_by: str | None = None

    def look(self, stored: Stored) -> None:
        """Take in a row."""
        position, kind, payload, digest, chain = stored[0], stored[2], stored[11], stored[13], stored[14]
        if kind in _TOLD:
            self.told.append((position, decode(as_row(stored), where=f"{self.path} position {position}")))
        if digest is not None:
            self.removed[position] = left_digest(payload)
        if chain is not None and position in self.wanted:
            self.chains[position] = chain
        if kind == "EngineOpened" and self.written_by is None:
            opened = decode(as_row(stored), where=f"{self.path} position {position}")
            self.written_by = opened.version if isinstance(opened, EngineOpened) else ""
        if self.unused:
            self.unused.difference_update(stored[column] for column in NAMED)


def look_at_base(reader: LogReader, looked: Looked) -> None:
    """Check the base, the rows that were carried, and the archives that are here."""
    base = reader.header.base
    if not base:
        ((rows,),) = reader.query("SELECT count(*) FROM base").rows
        if rows:
            looked.wrong.append(Divergence(0, "the table of the base", "no row", rows))
        return
    known = _Known()
    for position, event in reader.read(filters=Filters(kinds=_TOLD)):
        known.hear(position, event)
    _base(reader, base, known, looked)
    _carried(reader, base, known, looked)
    _archives(reader, base, known, looked)


def _base(reader: LogReader, base: int, known: _Known, looked: Looked) -> None:
    version, body = reader.base_stored()
    if version != checkpoints.fold_version_of(body):
        what, recorded = "the fold version of the base", checkpoints.fold_version_of(body)
        looked.wrong.append(Divergence(base, what, recorded, version, _RESTORE))
    try:
        carried = carried_digest(reader, base)
    except (LogDamagedError, *UNFIT) as error:
        looked.wrong.append(
            Divergence(base, "the rows carried over the cut", "as they were stored", f"{error}", _RESTORE)
        )
        return
    told = known.cuts[base].state if base in known.cuts else None
    found = base_digest(body, carried)
    bases = reader.query("SELECT position, lower(hex(carried)) FROM base").rows
    if bases != [(base, carried.hex())]:
        looked.wrong.append(Divergence(base, "the table of the base", carried.hex(), str(bases)))
    if told != found:
        what = "the state that the log stands on, and the rows carried with it"
        looked.wrong.append(Divergence(base, what, told, found, _RESTORE))
    looked.checked.append(f"the state at position {base} against the event that records it")


def _carried(reader: LogReader, base: int, known: _Known, looked: Looked) -> None:
    """Check what the digest of the carried rows does not show: salts, hashes, and what redactions left."""
    rows = reader.query(
        "SELECT position, payload, salt, digest, chain FROM log WHERE position <= ? AND (digest IS NOT NULL"
        " OR chain IS NOT NULL OR (salt IS NULL) <> (payload IS NULL))",
        (base,),
    ).rows
    for position, payload, salt, digest, chain in rows:
        if chain is not None or (digest is None) == (salt is None):
            looked.wrong.append(
                Divergence(position, "a row carried over the cut", "as it was stored", "changed", _RESTORE)
            )
        if digest is not None:
            _, left = known.left.get(position, (0, None))
            if left != left_digest(payload):
                what = "what is left of a redacted payload"
                looked.wrong.append(Divergence(position, what, left, left_digest(payload), _RESTORE))


def _archives(reader: LogReader, base: int, known: _Known, looked: Looked) -> None:
    try:
        heads = {path: read_head(path) for path in archives_of(reader.path, reader.uuid)}
    except LogDamagedError as error:
        looked.wrong.append(Divergence(base, error.where, "an archive", error.what, error.remedy))
        heads = {}
    wanted = frozenset(head.last for head in heads.values())
    unused = {text for (text,) in reader.query(_UNUSED, timeout_seconds=600.0).rows}
    sound = {}
    for path in heads:
        seen = _Seen(path, wanted, unused)
        try:
            check_archive(path, seen.look)
        except LogDamagedError as error:
            what = f"the archive {path.name}"
            looked.wrong.append(Divergence(base, what, "as written", error.what, error.remedy))
        else:
            sound[path] = seen
    way = leading({path: heads[path] for path in sound}, base, reader.header.base_chain.hex())
    for path in way:  # text elsewhere in the file is not checked
        known.chains |= sound[path].chains
        for position, event in sound[path].told:
            known.hear(position, event)
    first = heads[way[0]].first if way else base + 1
    for path, seen in sound.items():
        head = heads[path]
        looked.checked.append(f"the archive {path.name}: {head.last - head.first + 1} events and their chain")
        if path in way:
            _file(head, seen, known, looked, all_here=first == 1)
        elif first - 1 <= head.last <= base:
            _out_of_place(path, head, known, looked)
    if first == 1:
        _from_the_start(reader, sound[way[0]].written_by, unused, looked)
    names = ", ".join(path.name for path in way)
    lacking = f"; the events 1 to {first - 1} are in archives that are not here" if way and first > 1 else ""
    looked.rests_on.append(
        f"the state at position {base}: what led to it is in {names or 'archives that are not here'}{lacking}"
    )


def _from_the_start(reader: LogReader, written_by: str | None, unused: set[str], looked: Looked) -> None:
    """Check what can be checked only where all archives are here."""
    told = reader.header.written_by
    if written_by is not None and written_by != told:
        looked.wrong.append(Divergence(0, "the header's written_by", written_by, told, _RESTORE))
    for name in sorted(unused)[:_TOLD_MAX]:
        looked.wrong.append(Divergence(0, f"events that use the name {name!r:.80}", "some", None, _RESTORE))


def _out_of_place(path: Path, head: Head, known: _Known, looked: Looked) -> None:
    """Tell of an archive that no other and no base follows on: left by an interrupted cut, of another past, or forged."""
    if known.chains.get(head.last, b"").hex() == head.chain_after:
        looked.rests_on.append(f"nothing in {path.name}: others hold the same events")
        return
    what = f"the archive {path.name}"
    remedy = f"{_AGAIN}; if it is of another past of this log, move it away"
    looked.wrong.append(
        Divergence(head.last, what, "one on which the next events follow", head.chain_after, remedy)
    )


def _file(head: Head, seen: _Seen, known: _Known, looked: Looked, *, all_here: bool) -> None:
    """Compare an archive's file with the event that tells of it, and what was taken out with those that tell of that."""
    path, since = seen.path, False
    for position, left in seen.removed.items():
        by, expected = known.left.get(position, (0, None))
        since = since or by > head.last
        if left != expected and (by or all_here):
            what = f"what is left in {path.name} of a redacted payload"
            looked.wrong.append(Divergence(position, what, expected, left, _AGAIN))
    cut = known.cuts.get(head.last)
    if cut is not None and not since and cut.digest != (digest := archive_digest(path)):
        looked.wrong.append(Divergence(head.last, f"the archive {path.name}", cut.digest, digest, _AGAIN))
