"""`verify`: everything that can be checked about a log, and what the answer rests on.

In: a log, and anchors that were noted elsewhere. Out: `LogVerified`: what does not fit, what was checked, and what no
log can show. The chain and all that follows from events is `verifying`'s, the rest `integrity`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter as clock
from typing import Any

from datatask.adapters.history.replay import Progress, Replayed, replayed_of
from datatask.adapters.history.states import uncut
from datatask.adapters.history.verify.archives import look_at_base
from datatask.adapters.history.verify.files import Looked, look
from datatask.adapters.history.verify.fold import Verified, verified
from datatask.adapters.log.base import UNFIT, base_fits
from datatask.adapters.log.faults import damaged
from datatask.adapters.log.integrity.anchors import Anchor, compare
from datatask.adapters.log.integrity.verify import redactions
from datatask.adapters.log.reader import LogReader
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
            "no anchor: that nobody cut the end off or wrote all of it anew, only a hash noted elsewhere can show"
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
