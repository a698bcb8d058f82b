"""A log verified from its beginning while an engine works on it: by a process of its own, at a low priority.

In: the log's place, and on stdin where the engine has put the events that were asked for. Out, as lines of JSON on stdout
(`Told`): how far all holds; the digest of a state that is to be vouched for (the position of its `CheckpointWritten` is the
answer, 0 for none), which is then kept in `<log>.checkpoints/verified/` for the next time; and the first divergence,
with which it ends. Blobs are hashed once the head is reached; a day after a round of all blobs, or of all events from the
beginning, the next one begins. While the engine has work to do it takes one part in `REST_BUSY` of what the engine takes; it ends with it.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NoReturn

import msgspec

from datatask.adapters.history.states import beginning, collector_off
from datatask.adapters.history.verify.files import Blobs
from datatask.adapters.history.verify.fold import Pass, Verified
from datatask.adapters.history.verify.progress import read_rounds, vouched, write_rounds
from datatask.adapters.log.checkpoints import (
    ChangedError,
    checkpoints_in,
    read_checkpoint,
    vouching,
    write_checkpoint,
)
from datatask.adapters.log.locate import verified_path
from datatask.adapters.log.reader import LogReader
from datatask.engine.core import checkpoints
from datatask.engine.core.state import FOLD_VERSION, State
from datatask.engine.ports import Checkpoint
from datatask.schema.errors import DatataskError, UnknownNameError
from datatask.schema.troubles import Divergence, in_words
from datatask.schema.units import SECOND

NICE = 15
REST_BUSY = 50.0
REST_IDLE = 1.0
LOOK_SECONDS = 0.25
"""Between two looks at what the engine does, and whether it is there."""
BUSY_CORES = 0.25
BUSY_EVENTS_PER_SECOND = 200.0
"""An engine above one of these (share of a core, wait for one, events appended) counts as busy."""

MARK_SECONDS, MARK_BUSY_SECONDS = 1.0, 0.2
"""The work after which a state is kept for the next time; ten times the cost of keeping it, where that is more.

Beside a busy engine it is sooner: one of a minute leaves it a second in all, and the next one is to go on from there.
"""
MARK_LEAST = 2_000
FOLLOW_SECONDS = 2.0
FOLLOW_EVENTS = 5_000
"""At the head, verification continues after this number of new events, or after any while the engine rests."""
AGAIN_SECONDS = 86_400.0
"""The time between two rounds, of blobs and of events from the beginning on."""
BLOB_BYTES_PER_SECOND = 8 << 20
BLOBS_SEEN_MAX = 100_000
"""Blobs that are not hashed twice in a round where several values name them."""
KEPT = 2
WORDS_MAX = 500
"""Characters of each text of a divergence that are told: a damaged row may hold anything."""


class Told(msgspec.Struct, omit_defaults=True):
    """One line for the engine."""

    verified: int = 0
    digest: str = ""
    changed: str = ""
    divergence: Divergence | None = None


class _DivergedError(Exception):
    """Something was found; it is in the pass."""


class _ToldError(Exception):
    """A divergence was told: there is no more to do."""


class Background:
    """The verification of one log, from where the last one came to."""

    def __init__(self, reader: LogReader, answers: BinaryIO, tell: BinaryIO, engine: int) -> None:
        self._reader = reader
        self._answers, self._tell = answers, tell
        self._state = State()
        self._marked = 0
        self._mark_began, self._mark_took = time.process_time(), 0.0
        self._found: Verified | None = None
        self._rest = Rest(engine, lambda: reader.head)
        self._rounds = read_rounds(reader.path)
        self._looked = time.monotonic()

    def run(self) -> None:
        """Verify up to the head, and then what comes, and all again; return at the first divergence."""
        with suppress(_ToldError):
            self._state = self._begun()
            self._say(Told(verified=self._state.position))
            whole = self._state.position == self._reader.header.base
            self._follow(self._begun, least=10)
            if whole:
                self._note(events_at=_now())
            while True:
                if _is_due(self._rounds.blobs_at):
                    self._look_at_blobs()
                elif _is_due(self._rounds.events_at):
                    self._follow(self._beginning, again=True)
                    self._note(events_at=_now())
                else:
                    time.sleep(FOLLOW_SECONDS)
                    self._between(0)

    # --- events -----------------------------------------------------------------------------------

    def _follow(self, begun: Callable[[], State], *, least: int = MARK_LEAST, again: bool = False) -> None:
        """Verify up to the head, from a state of `begun` where all is to be verified `again`."""
        state = begun() if again else self._state
        state, wrong = self._pass(state, self._reader.head)
        if wrong is not None:
            # What was removed by right while it was read looks like damage; looking again tells.
            state, wrong = self._pass(begun(), self._reader.head)
            if wrong is not None:
                self._diverged(wrong)
        self._state = state
        self._say(Told(verified=state.position))
        if state.position - self._marked >= least:
            self._mark(state)

    def _beginning(self) -> State:
        return beginning(self._reader)

    def _begun(self) -> State:
        """Return the newest state that was verified before and that the log vouches for, else the beginning."""
        reader, vouch = self._reader, vouching(self._reader)
        for one in vouched(reader):
            try:
                kept = read_checkpoint(one, reader.uuid, self._chain_at, vouch)
            except ChangedError as error:
                self._say(Told(changed=str(error)))
                one.path.unlink(missing_ok=True)
                continue
            with suppress(DatataskError):
                if kept is not None and (state := checkpoints.load(kept.body)).log == reader.uuid:
                    self._marked = state.position
                    return state
        return beginning(reader)

    def _chain_at(self, position: int) -> bytes | None:
        try:
            return self._reader.chain_at(position)
        except UnknownNameError:
            return None

    def _pass(self, state: State, until: int) -> tuple[State, Divergence | None]:
        one = Pass(self._reader, state, until, self._page, compare=False)
        self._found = one.found
        with suppress(_DivergedError):
            one.run()
        wrong = sorted([*one.found.chain, *one.found.divergences], key=lambda each: each.position)
        return one.found.state, wrong[0] if wrong else None

    def _page(self, done: int, total: int) -> None:
        """After each page: tell, keep, rest."""
        found = self._found
        if found is not None and (found.chain or found.divergences):
            raise _DivergedError
        if found is not None and done < total:
            self._say(Told(verified=found.state.position))
            worked = time.process_time() - self._mark_began
            grown = found.state.position - self._marked
            enough = MARK_BUSY_SECONDS if self._rest.was_busy else MARK_SECONDS
            if grown >= MARK_LEAST and worked >= max(enough, 10 * self._mark_took):
                self._mark(found.state)
        self._rest()

    def _mark(self, state: State) -> None:
        """Keep a state for the next time, once an event vouches for it."""
        began = time.process_time()
        body, position = checkpoints.dump(state), state.position
        self._marked = position
        self._say(Told(verified=position, digest=hashlib.sha256(body).hexdigest()))
        event = int(self._answers.readline() or b"0")
        if event:
            folder = verified_path(self._reader.path)
            kept = Checkpoint(position, self._reader.chain_at(position), FOLD_VERSION, body, event)
            with suppress(OSError):
                write_checkpoint(folder, self._reader.uuid, kept)
                for old in checkpoints_in(folder)[KEPT:]:
                    old.path.unlink(missing_ok=True)
        self._mark_began = time.process_time()
        self._mark_took = self._mark_began - began

    # --- blobs, and what comes meanwhile ----------------------------------------------------------

    def _look_at_blobs(self) -> None:
        """Hash all blobs once, from where the last round came to."""
        until = self._state.position
        start = min(self._rounds.next_blob, until)
        blobs = Blobs(self._reader, until, seen_max=BLOBS_SEEN_MAX)

        def note(position: int, _: int) -> None:
            self._note(next_blob=position)

        for after, last in ((start, until), (0, start)):
            for found in blobs.faults(self._state, after, last, progress=note, pause=self._between):
                # It may have been removed by right meanwhile: the log tells.
                self._follow(self._begun)
                at = found.position
                again = Blobs(self._reader, self._reader.head).faults(self._state, at - 1, at)
                if (still := next(again, None)) is not None:
                    self._diverged(still)
        self._note(blobs_at=_now(), next_blob=0)

    def _between(self, size: int) -> None:
        """Rest after a portion of bytes was hashed, and verify new events."""
        if size:
            time.sleep(size / BLOB_BYTES_PER_SECOND)
        self._rest()
        if time.monotonic() - self._looked < FOLLOW_SECONDS:
            return
        self._looked = time.monotonic()
        behind = self._reader.head - self._state.position
        if behind >= FOLLOW_EVENTS or (behind >= MARK_LEAST and not self._rest.was_busy):
            self._follow(self._begun)

    def _note(self, **changed: int) -> None:
        self._rounds = msgspec.structs.replace(self._rounds, **changed)
        write_rounds(self._reader.path, self._rounds)

    def _diverged(self, found: Divergence) -> NoReturn:
        self._say(Told(divergence=_short(found)))
        raise _ToldError

    def _say(self, told: Told) -> None:
        self._tell.write(msgspec.json.encode(told) + b"\n")
        self._tell.flush()


def _now() -> int:
    return time.time_ns()  # noqa: TID251 - a process without an engine's clock


def _is_due(at: int) -> bool:
    """Whether the next round may begin; a time to come is one of a clock that was wrong."""
    return not 0 <= _now() - at < AGAIN_SECONDS * SECOND


def _short(found: Divergence) -> Divergence:
    """Return it with texts that fit into a line."""
    expected, recorded = (
        None if one is None else in_words(one)[:WORDS_MAX] for one in (found.expected, found.recorded)
    )
    return found._replace(what=found.what[:WORDS_MAX], expected=expected, recorded=recorded)


class Rest:
    """Rests after work; ends the process when the engine has."""

    def __init__(self, engine: int, head: Callable[[], int]) -> None:
        self._engine, self._head = engine, head
        self._began = time.process_time()
        self._looked, self._seen = time.monotonic(), (demand_seconds(engine), head())
        self.was_busy = True

    def __call__(self) -> None:
        """Rest as long as the work since the last rest took, or until a busy engine has used `REST_BUSY` times as much."""
        worked = time.process_time() - self._began
        until, used = time.monotonic() + worked * REST_IDLE, cpu_seconds(self._engine)
        while self.busy() or time.monotonic() < until:
            if self.was_busy and cpu_seconds(self._engine) - used >= worked * REST_BUSY:
                break
            left = until - time.monotonic()
            time.sleep(min(left, LOOK_SECONDS) if left > 0 else LOOK_SECONDS)
        self._began = time.process_time()

    def busy(self) -> bool:
        """Whether the engine has worked, or wanted to, since it was looked at last; long enough ago for its clock's ticks."""
        if os.getppid() != self._engine:
            sys.exit(0)
        now = time.monotonic()
        passed = now - self._looked
        if passed >= LOOK_SECONDS:
            demand, head = demand_seconds(self._engine), self._head()
            worked, appended = demand - self._seen[0], head - self._seen[1]
            self.was_busy = worked > BUSY_CORES * passed or appended > BUSY_EVENTS_PER_SECOND * passed
            self._looked, self._seen = now, (demand, head)
        return self.was_busy


def cpu_seconds(pid: int) -> float:
    """Return what a process has used; 0 where the system does not tell, which then counts as rest."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def demand_seconds(pid: int) -> float:
    """Return what a process has used, and how long its main thread, which is the engine's, has waited for a core."""
    try:
        waited = int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / SECOND
    except (OSError, ValueError, IndexError):
        waited = 0.0
    return cpu_seconds(pid) + waited


def _be_nice() -> None:
    """Let others go first; not always, or a machine that is always busy would never have a log verified."""
    with suppress(OSError):
        os.nice(NICE)


def main() -> None:
    """Verify the log that is named, for the process that started this one."""
    engine = os.getppid()
    _be_nice()
    with LogReader(sys.argv[1]) as reader, collector_off():
        Background(reader, sys.stdin.buffer, sys.stdout.buffer, engine).run()


if __name__ == "__main__":
    with suppress(BrokenPipeError, KeyboardInterrupt):
        main()
