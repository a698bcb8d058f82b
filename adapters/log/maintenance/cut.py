"""The beginning of a log moves into an archive, and what follows stands on a state.

In: a log that no engine has, and the state at the batch boundary where it is cut. Out: an archive beside it, and a log
whose first row follows on that state, its *base*. The archive is written, made durable and read again first; then one
transaction stores the base, says so in the log (`ArchiveCut`), and removes the rows. Rows that are still asked for
are carried: the values of present members, the launches of open runs, intents, the definition in force. What stands
behind is chained as before; the base is chained by the digest in `ArchiveCut`, which covers the carried rows as the
chain does: with digests of payloads, so that these can be redacted later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from datatask.adapters.log.checkpoints import base_digest, carried_digest, checkpoints_in, named_rows
from datatask.adapters.log.locate import archives_path, checkpoints_path
from datatask.adapters.log.maintenance.archives import (
    COLUMNS,
    FORMAT,
    SUFFIX,
    Head,
    archive_digest,
    archives_of,
    check_archive,
    read_head,
    write_archive,
)
from datatask.adapters.log.maintenance.offline import Caretaker, Execute, caretaking
from datatask.adapters.log.reader import LogReader
from datatask.engine.core import checkpoints
from datatask.engine.core.state import FOLD_VERSION, State
from datatask.engine.ports import Filters
from datatask.schema.errors import AlreadyThereError, LogDamagedError, UnknownNameError
from datatask.schema.events import ArchiveCut, PayloadRedacted

_ABOUT_RUNS = """
SELECT l.position FROM log d JOIN log l ON l.job = d.job AND l.position > d.position AND l.run = d.position
WHERE d.position IN (SELECT value FROM json_each(?)) AND l.position <= ?
"""


class Cut(NamedTuple):
    """What was moved: `events` up to `until` into `archive`; `carried` of their rows stayed. Sizes are of the file.

    Where nothing is left to be moved, `events` is 0 and there is no `archive`.
    """

    until: int
    events: int
    carried: int
    archive: Path | None
    size_before: int
    size_after: int


class Who(NamedTuple):
    """Who cuts, why, when (UTC nanoseconds), and with which version."""

    actor: str
    reason: str
    now: int
    version: str


def plan_cut(reader: LogReader, state: State) -> Cut:
    """Return what a cut at this state would move: nothing, where all of that was moved before."""
    base, size = reader.header.base, reader.path.stat().st_size
    if state.position <= base:
        return Cut(base, 0, 0, None, size, size)
    archive = archives_path(reader.path) / f"{base + 1}-{state.position}{SUFFIX}"
    return Cut(
        state.position, state.position - base, len(carried_positions(reader, state)), archive, size, size
    )


def cut(path: Path, state: State, who: Who, step: Callable[[str], None] = lambda name: None) -> Cut:
    """Archive everything up to the state's position, under the lease; `step` hears of each step that is done.

    `LeaseHeldError` names an engine that has the log. Interrupted anywhere, the log is as it was or as it will be, and
    the same call again completes it.
    """
    with caretaking(path) as caretaker:
        with LogReader(path) as reader:
            plan = plan_cut(reader, state)
            if plan.archive is not None:
                archive = _archived(reader, plan, plan.archive, who, step)
                kept = carried_positions(reader, state)
                body = checkpoints.dump(state)
                carried = carried_digest(reader, plan.until, kept)
                after = reader.chain_at(plan.until)
                covered = _covered(reader, plan)
        if plan.archive is not None:
            event = ArchiveCut(
                at=caretaker.now(who.now),
                actor=who.actor,
                until=plan.until,
                archive=archive.name,
                digest=archive_digest(archive),
                state=base_digest(body, carried),
                reason=who.reason,
            )

            def move(execute: Execute) -> None:
                _move(execute, plan.until, kept, body, carried, after)
                step("in the transaction")

            caretaker.append([event], step, also=move)
            for left in covered:
                left.unlink(missing_ok=True)
            plan = plan._replace(carried=len(kept))
        _tidy(caretaker, plan.until)
        step("tidied")
        return plan._replace(size_after=path.stat().st_size)


def carried_positions(reader: LogReader, state: State) -> list[int]:
    """Return the positions that are still asked for at this state, in order; the last tells when the base was."""
    found = {1, state.position, state.defined_at, *state.open_runs}
    for leaf in state.leaves.values():
        positions = leaf.positions
        found.update(
            position
            for job in leaf.members(state.masks)
            if job < len(positions) and (position := positions[job]) > 0
        )
    found.update(intent.position for intent in state.intents.values())
    for run in state.open_runs.values():
        found.update(position for position in run.inputs.values() if position)
        found.update(intent.position for intent in run.intents.values())
    rows = reader.query(_ABOUT_RUNS, (json.dumps(sorted(state.open_runs)), state.position)).rows
    found.update(position for (position,) in rows)
    found.update(_redactions_of(reader, found, state.position))
    return sorted(position for position in found if 0 < position <= state.position)


def _redactions_of(reader: LogReader, positions: set[int], until: int) -> list[int]:
    """Return the positions of the events that tell what is left of those of these rows that were redacted."""
    ((any_removed,),) = reader.query("SELECT EXISTS (SELECT 1 FROM log WHERE digest IS NOT NULL)").rows
    if not any_removed:
        return []
    return [
        by
        for by, event in reader.read(0, until, Filters(kinds=(PayloadRedacted.__name__,)))
        if isinstance(event, PayloadRedacted) and event.position in positions
    ]


def _archived(reader: LogReader, plan: Cut, place: Path, who: Who, step: Callable[[str], None]) -> Path:
    """Return the archive, checked: one that an interrupted cut left, or a new one."""
    header, after = reader.header, reader.chain_at(plan.until)
    head = Head(
        archive=FORMAT,
        log=header.uuid,
        pipeline=header.pipeline,
        first=header.base + 1,
        last=plan.until,
        chain_before=header.base_chain.hex(),
        chain_after=after.hex(),
        columns=COLUMNS,
        written_by=who.version,
    )
    if place.exists() and _left(place, head):
        return place
    path = write_archive(place.parent, head, named_rows(reader, header.base, plan.until))
    step("archived")
    check_archive(path)
    step("checked")
    return path


def _covered(reader: LogReader, plan: Cut) -> list[Path]:
    """Return what interrupted cuts to earlier positions left: the new archive holds all of it."""
    header, found = reader.header, []
    for path in archives_of(reader.path, header.uuid):
        head = read_head(path)
        if head.chain_before == header.base_chain.hex() and head.last < plan.until:
            with suppress(UnknownNameError):
                if head.first == header.base + 1 and head.chain_after == reader.chain_at(head.last).hex():
                    found.append(path)
    return found


def _left(place: Path, head: Head) -> bool:
    """Whether an archive that is there is the one that we are about to write; an unreadable one is replaced."""
    try:
        there = check_archive(place)
    except LogDamagedError:
        return False
    if (there.log, there.chain_before, there.chain_after) == (head.log, head.chain_before, head.chain_after):
        return True
    whose = "of another log" if there.log != head.log else "of another past of this log"
    raise AlreadyThereError(
        f"an archive {whose} is in the way",
        where=str(place),
        remedy="move it to where its log is, then again",
    )


def _move(
    execute: Execute, until: int, kept: Sequence[int], body: bytes, carried: bytes, after: bytes
) -> None:
    """Store the base, and remove the rows that are not carried."""
    execute("CREATE TEMP TABLE kept (position INTEGER PRIMARY KEY)")
    execute("INSERT INTO kept SELECT value FROM json_each(?)", (json.dumps(list(kept)),))
    execute("DELETE FROM log WHERE position <= ? AND position NOT IN (SELECT position FROM kept)", (until,))
    execute("UPDATE log SET chain = NULL WHERE position <= ?", (until,))
    execute("DELETE FROM base")
    execute("INSERT INTO base VALUES (?, ?, ?, ?)", (until, FOLD_VERSION, body, carried))
    for key, value in (("base", until), ("base_chain", after)):
        execute("UPDATE meta SET value = ? WHERE key = ?", (value, key))


def _tidy(caretaker: Caretaker, until: int) -> None:
    """Give the space back, and remove the states that stood on rows that are gone."""
    folder = checkpoints_path(caretaker.path)
    for found in (*checkpoints_in(folder), *checkpoints_in(folder / "past")):
        if found.position < until:
            with suppress(OSError):
                found.path.unlink()
    caretaker.vacuum()
