"""A log verified while it is folded: the chain, the invariants at every batch, each decision, each round again.

In: a reader, and how far. Out: `Verified`: the state as far as it could be folded, and a divergence for all that does not hold. One
reading of the rows serves the chain, the decoder, the checks and the fold; what is broken does not end it. A long log is done by two
processes. That of the second half begins from the state that plain folding gives; the first (`OtherHalf`, a program and no
`multiprocessing`, which would run a user's script again) arrives there by verifying, and the two states must be the same bits.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import msgspec

from datatask.adapters.clock import effort
from datatask.adapters.history.states import CheckpointCache, beginning, collector_off, refold
from datatask.adapters.history.verify.reuse import reused
from datatask.adapters.log.checkpoints import Found, checkpoints_in, read_checkpoint
from datatask.adapters.log.integrity.verify import begun, page, salvage
from datatask.adapters.log.locate import checkpoints_path
from datatask.adapters.log.queries import Assembler
from datatask.adapters.log.reader import LogReader
from datatask.engine.audit import consistency, invariants
from datatask.engine.core import checkpoints
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import FOLD_VERSION, State
from datatask.schema import events as e
from datatask.schema.errors import DatataskError, FutureLogError
from datatask.schema.troubles import Divergence

_POSITION = re.compile(r"position (\d+)$")
TOLD_MAX = 1000
TWO_FROM = 200_000
"""Events from which on a second process is worth its start."""

CUT = 0.54
"""Where the halves are cut: the second has the shorter one, since it has to be folded up to first."""

WHOLE_FROM = 50_000
"""The state as a whole is checked at this position, at twice this, and so on, and at the end."""

CHECKPOINTS_MAX = 4

Progress = Callable[[int, int], None]
"""Called with (events done, events in all)."""


@dataclass
class Verified:
    """What verifying found; `chain` are the divergences of the chain, in `divergences` all are, by position."""

    state: State
    until: int
    chain: list[Divergence] = field(default_factory=list)
    divergences: list[Divergence] = field(default_factory=list)
    undecided: dict[int, int] = field(default_factory=dict)
    compared: list[int] = field(default_factory=list)

    @property
    def broken_at(self) -> int | None:
        """The first position at which the chain does not hold, or None."""
        return min((fault.position for fault in self.chain), default=None)


def verified(
    reader: LogReader, until: int, *, progress: Progress | None = None, processes: int | None = None
) -> Verified:
    """Verify a log up to the batch boundary `until`; two processes where there are two cores and enough events."""
    start = reader.header.base
    wanted = min(2, len(os.sched_getaffinity(0))) if processes is None else processes
    with collector_off():
        found = None
        if wanted > 1 and until - start >= TWO_FROM:
            found = _by_halves(reader, start, until, progress or _silent)
        if found is None:
            found = Pass(reader, beginning(reader), until, progress or _silent).run()
            found.divergences += consistency.check(found.state)
    found.divergences = sorted([*found.chain, *found.divergences], key=lambda one: one.position)[:TOLD_MAX]
    return found


def verified_half(reader: LogReader, until: int, progress: Progress) -> Half:
    """Verify the first half, for the process that has the second one."""
    with collector_off():
        found = Pass(reader, beginning(reader), until, progress).run()
        stopped = found.state.position != until
        mark = "" if stopped else checkpoints.fingerprint(found.state)
    return Half(found.chain, found.divergences, found.undecided, found.compared, mark)


def _by_halves(reader: LogReader, start: int, until: int, progress: Progress) -> Verified | None:
    """Verify in two processes; None where the log does not fold, which is better told by one."""
    cut = reader.end_of_batch(start + int((until - start) * CUT))
    with OtherHalf(str(reader.path), cut) as other:
        try:
            state = refold(reader, cut)
        except DatataskError:
            return None
        mark = checkpoints.fingerprint(state)
        found = Pass(reader, state, until, lambda done, total: progress(cut + done, until)).run()
        first = other.result()
    if first is None or not first.mark:
        return None
    found.divergences = [*first.divergences, *found.divergences, *consistency.check(found.state)]
    found.chain = first.chain + found.chain
    found.compared = first.compared + found.compared
    for version, count in first.undecided.items():
        found.undecided[version] = found.undecided.get(version, 0) + count
    if first.mark != mark:
        found.divergences.append(
            Divergence(cut, "the state folded at once", f"fingerprint {first.mark}", f"fingerprint {mark}")
        )
    return found


def _silent(done: int, total: int) -> None:
    """Ignore the progress."""


class Pass:
    """One way through a range of batches."""

    def __init__(
        self, reader: LogReader, state: State, until: int, progress: Progress, *, compare: bool = True
    ) -> None:
        """Begin at a state; with `compare` it is compared with the checkpoints that are met."""
        self.found = Verified(state, until)
        self._reader = reader
        self._start = state.position
        self._checker = invariants.Checker.on(state)
        self._progress = progress
        self._folding = True
        self._folded = state.position
        self._taken = False
        self._whole_at = max(WHOLE_FROM, 2 * state.position)
        self._future: FutureLogError | None = None
        self._kept = _kept(reader, state.position, until) if compare else {}

    def run(self) -> Verified:
        """Go to the end; what cannot be read or folded is told, and ends the folding."""
        effort.so_far = self._so_far
        reader, found, until = self._reader, self.found, self.found.until
        chain = begun(reader, self._start)
        found.chain = chain.faults  # told as they are found
        assembler = Assembler(reader.decoder, str(reader.path), self._start)
        while chain.position < until:
            rows = page(reader, chain, until)
            if not rows:
                self._stop(Divergence(chain.position + 1, "the row", "readable text", "unreadable"))
                if not salvage(reader, chain, until):
                    break
            if self._folding:
                self._fold(assembler.batches(rows), assembler, sound=not chain.faults)
            self._progress(chain.position - self._start, until - self._start)
        found.chain = chain.finish(until)
        if not self._folding and self._taken:
            # An event that does not fit may have been taken in by half.
            found.state = refold(reader, self._folded)
        if self._future is not None and not found.chain:
            raise self._future
        return found

    def _so_far(self) -> list[str]:
        found = self.found
        told = [str(one) for one in found.divergences]
        return [
            *told,
            f"verified up to position {found.state.position} of {found.until}, {len(told)} divergences so far",
        ]

    def _fold(self, batches: Iterator[e.Batch], assembler: Assembler, *, sound: bool) -> None:
        try:
            for batch in batches:
                self._batch(batch)
        except FutureLogError as error:
            self._future = error
            self._stop(
                Divergence(assembler.position, "the event", "a kind known to this version", error.what)
            )
        except DatataskError as error:
            told = _POSITION.search(error.where)
            position = int(told[1]) if told else self.found.state.position + 1
            self._stop(Divergence(position, "the event", "one that follows on those before", error.what))

        except (TypeError, ValueError, AttributeError) as error:
            if sound:
                raise
            # Values of wrong types, in a row that the chain has found changed.
            position = self.found.state.position + 1
            self._stop(Divergence(position, "the event", "one that follows on those before", f"{error}"))

    def _stop(self, why: Divergence) -> None:
        if self._folding:
            self._folding = False
            self.found.divergences.append(why)

    def _batch(self, batch: e.Batch) -> None:
        state, checker, events = self.found.state, self._checker, batch.events
        wrong = checker.before(state, events)
        first = events[0]
        if type(first) is e.DecisionRound:
            if first.decider in consistency.SHIPPED:
                wrong += consistency.rederive(state, first, invariants.decisions_of(events))
            else:
                count = self.found.undecided.get(first.decider, 0)
                self.found.undecided[first.decider] = count + 1
        if wrong:
            self._tell(wrong)  # at once: what is wrong may also be what keeps it from being folded
        self._taken = True
        apply_all(state, batch.first, events)
        self._taken = False
        self._folded = state.position
        wrong = [*checker.after(state), *reused(self._reader, state, batch)]
        if state.position >= self._whole_at:
            self._whole_at = 2 * state.position
            wrong += consistency.check(state)
        if self._kept and state.position in self._kept:
            wrong += [one for kept in self._kept[state.position] for one in self._compare(kept)]
        if wrong:
            self._tell(wrong)

    def _tell(self, wrong: list[Divergence]) -> None:
        if len(self.found.divergences) < TOLD_MAX:
            self.found.divergences += wrong

    def _compare(self, kept: Found) -> list[Divergence]:
        """Compare the state with a checkpoint of it; one of another chain is `integrity`'s to tell."""
        state = self.found.state
        checkpoint = read_checkpoint(kept, self._reader.uuid, self._reader.chain_at, None)
        if checkpoint is None:
            return []
        self.found.compared.append(state.position)
        if checkpoints.dump(state) == checkpoint.body:
            return []
        remedy = "delete it: it is made anew; and see who may write there"
        return [
            Divergence(state.position, f"the state in {kept.path.name}", "as folded", "another one", remedy)
        ]


def _kept(reader: LogReader, after: int, until: int) -> dict[int, list[Found]]:
    """Return the newest checkpoints in a range, and all states that readers have left in it, by position."""
    kept: dict[int, list[Found]] = {}
    own = [one for one in checkpoints_in(checkpoints_path(reader.path)) if one.fold_version == FOLD_VERSION]
    own = [one for one in own if after < one.position <= until][:CHECKPOINTS_MAX]
    for one in own + [one for one in CheckpointCache(reader).rungs() if after < one.position <= until]:
        kept.setdefault(one.position, []).append(one)
    return kept


class Half(msgspec.Struct):
    """What was found; `mark` is the fingerprint of the state at the end, empty where it did not get there."""

    chain: list[Divergence]
    divergences: list[Divergence]
    undecided: dict[int, int]
    compared: list[int]
    mark: str


class OtherHalf:
    """A process that verifies a log from its beginning up to a boundary; leaving the `with` ends it."""

    def __init__(self, url: str, until: int) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, url, str(until)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def result(self) -> Half | None:
        """Wait for what it found; None where it failed, so that whoever waits does its work too."""
        told, _ = self._process.communicate()
        try:
            return msgspec.json.decode(told, type=Half) if self._process.returncode == 0 else None
        except msgspec.DecodeError:
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def main() -> None:
    """Verify and print."""
    pass
    from datatask.adapters.log.reader import LogReader

    url, until = sys.argv[1:]
    with LogReader(url) as reader:
        half = verified_half(reader, int(until), lambda done, total: None)
    sys.stdout.buffer.write(msgspec.json.encode(half))


if __name__ == "__main__":
    main()
