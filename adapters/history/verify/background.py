"""A log verified from its beginning while an engine works on it: by a process of its own, at a low priority.

In: the log's place, and on stdin where the engine has put the events that were asked for. Out, as lines of JSON on stdout
(`Told`): how far all holds; the digest of a state that is to be vouched for (the position of its `CheckpointWritten` is the
answer, 0 for none), which is then kept in `<log>.checkpoints/verified/` for the next time; and the first divergence,
with which it ends. It rests `REST_BUSY` times as long as it works while the engine has work to do, and it ends with it.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from datatask.adapters.history.states import beginning, collector_off
from datatask.adapters.history.verify.fold import Pass, Verified
from datatask.adapters.history.verify.progress import vouched
from datatask.adapters.log.checkpoints import (
    ChangedError,
    checkpoints_in,
    read_checkpoint,
    vouching,
    write_checkpoint,
)
from datatask.adapters.log.locate import verified_path
from datatask.adapters.log.reader import LogReader
from datatask.engine.audit.consistency import Divergence, told
from datatask.engine.core import checkpoints
from datatask.engine.core.state import FOLD_VERSION, State
from datatask.engine.ports import Checkpoint
from datatask.schema.errors import DatataskError, UnknownNameError

NICE = 15
REST_BUSY = 40.0
REST_IDLE = 1.0
BUSY_CORES = 0.25
"""An engine that takes more than this of a core has work to do."""

MARK_EVENTS = 200_000
"""A state is kept so often on a long way, for the next time."""
MARK_LEAST = 2_000
FOLLOW_SECONDS = 2.0
FOLLOW_EVENTS = 5_000
"""Behind the head one goes on when so many events have come, or any and the engine rests."""
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


class Background:
    """The verification of one log, from where the last one came to."""

    def __init__(self, reader: LogReader, answers: BinaryIO, tell: BinaryIO, engine: int) -> None:
        self._reader = reader
        self._answers, self._tell, self._engine = answers, tell, engine
        self._marked = 0
        self._found: Verified | None = None
        self._rest = _Rest(engine)

    def run(self) -> None:
        """Verify up to the head, and then what comes; return when the engine has ended, or at the first divergence."""
        state = self._begun()
        self._say(Told(verified=state.position))
        first = True
        while True:
            state, wrong = self._pass(state, self._reader.head)
            if wrong is not None:
                # What was removed by right while it was read looks like damage; looking again tells.
                state, again = self._pass(self._begun(), self._reader.head)
                if again is not None:
                    self._say(Told(divergence=_short(again)))
                    return
            self._say(Told(verified=state.position))
            if state.position - self._marked >= (10 if first else MARK_LEAST):
                self._mark(state)
            first = False
            self._wait(state.position)

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
            if found.state.position - self._marked >= MARK_EVENTS:
                self._mark(found.state)
        self._rest()

    def _mark(self, state: State) -> None:
        """Keep a state for the next time, once an event vouches for it."""
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

    def _wait(self, position: int) -> None:
        """Wait until there is more to verify."""
        while True:
            time.sleep(FOLLOW_SECONDS)
            busy = self._rest.busy()
            behind = self._reader.head - position
            if behind >= FOLLOW_EVENTS or (behind >= MARK_LEAST and not busy):
                return

    def _say(self, told: Told) -> None:
        self._tell.write(msgspec.json.encode(told) + b"\n")
        self._tell.flush()


def _short(found: Divergence) -> Divergence:
    """Return it with texts that fit into a line."""
    expected, recorded = (
        None if one is None else told(one)[:WORDS_MAX] for one in (found.expected, found.recorded)
    )
    return found._replace(what=found.what[:WORDS_MAX], expected=expected, recorded=recorded)


class _Rest:
    """Rests after work; ends the process when the engine has."""

    def __init__(self, engine: int) -> None:
        self._engine = engine
        self._began = self._looked = time.monotonic()
        self._used = _cpu_seconds(engine)

    def __call__(self) -> None:
        worked = time.monotonic() - self._began
        time.sleep(min(worked * (REST_BUSY if self.busy() else REST_IDLE), 30.0))
        self._began = time.monotonic()

    def busy(self) -> bool:
        """Whether the engine has worked since it was looked at last."""
        if os.getppid() != self._engine:
            sys.exit(0)
        now, used = time.monotonic(), _cpu_seconds(self._engine)
        spent = (used - self._used) / max(now - self._looked, 1e-3)
        self._looked, self._used = now, used
        return spent > BUSY_CORES


def _cpu_seconds(pid: int) -> float:
    """Return what a process has used; 0 where the system does not tell, which then counts as rest."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


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
