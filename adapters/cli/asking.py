"""A person's request, carried out: by the engine that runs, through its inbox, or with the log opened here.

In: a function that makes requests from a state, so that names and members are those of the moment. Out: what
was done, as `Done`. With an engine running the state is folded from the log and no pipeline is loaded; else
the pipeline is loaded and opened, launches nothing but what is asked for, and closes again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from datatask.adapters.cli.errand import Afterwards, Done, Errand, Plan
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import changed, recorded, recorded_state
from datatask.adapters.cli.settings import Settings
from datatask.adapters.cli.terminal import note_interrupts
from datatask.adapters.history.states import fold, follow
from datatask.adapters.log.blobs import FileBlobs
from datatask.adapters.log.locate import blobs_path, locate
from datatask.adapters.wiring.event_loop import run_in_loop
from datatask.engine.core.state import State
from datatask.schema.errors import CallerError, LeaseHeldError, LogError

if TYPE_CHECKING:
    pass

ANSWER_SECONDS = 120.0
ENGINES = 5
TRIES_LEAST = 10
AGAIN_SECONDS = (0.1, 1.0)
MADE_SECONDS = 5.0
"""So long a log is looked at again that has nothing in it yet although an engine has it: it is being made."""


def carry_out(
    settings: Settings,
    plan: Plan,
    *,
    dry_run: bool = False,
    wait: bool = False,
    needed: Collection[str] = (),
    afterwards: Afterwards | None = None,
) -> Done:
    """Carry out what `plan` wishes; a dry run only asks it what that would be. `needed` are the inputs that have to be there.

    `afterwards` is awaited with the open pipeline when the log was opened here. Engines come and go meanwhile: what one has not
    carried out goes, under the same id, to the next one, or is done here. What cannot be done here in some seconds is left to
    the next engine, and told; with `wait` it is waited for.
    """
    done = _carried_out(settings, plan, dry_run, wait, needed, afterwards)
    for text in done.left:
        Output(settings).say(f"note: {text}; the next `{settings.command('run')}` goes on with it")
    if wait and done.engine == "running" and not dry_run:
        _await_stops(settings)
    return done


def _carried_out(
    settings: Settings,
    plan: Plan,
    dry_run: bool,
    wait: bool,
    needed: Collection[str],
    afterwards: Afterwards | None,
) -> Done:
    from datatask.adapters.log.inbox_client import NoEngineError, refuse_strangers

    path = locate(settings.log_url()).path
    if path is not None:
        refuse_strangers(path)
    errand = Errand(plan, path)
    patience, pauses = _Patience(), _pauses()
    with errand:
        while True:
            try:
                if path is not None and _holder(path) is not None:
                    return _through_inbox(path, errand, dry_run)
                return run_in_loop(_opening(settings, errand, dry_run, wait, needed, afterwards))
            except (NoEngineError, LeaseHeldError):
                # It ended just now, or one has started just now.
                if path is None or patience.is_over(_holder(path)):
                    raise
            time.sleep(next(pauses))


class _Patience:
    """How long engines are waited for: each of them as long as for an answer, all of them `ENGINES` times that.

    A log that is free is tried again: one try may take as long on a busy machine.
    """

    def __init__(self) -> None:
        self._began = self._since = time.monotonic()
        self._holder: int | None = None
        self._tries = 0

    def is_over(self, holder: int | None) -> bool:
        """Whether this engine has been waited for long enough."""
        now = time.monotonic()
        self._tries += 1
        if holder is None or holder != self._holder:
            self._holder, self._since = holder, now
        all_of_them = now - self._began > ENGINES * ANSWER_SECONDS and self._tries >= TRIES_LEAST
        return now - self._since > ANSWER_SECONDS or all_of_them


def _pauses() -> Iterator[float]:
    """Yield growing pauses, so different that many who wait for each other do not keep in step."""
    longest = AGAIN_SECONDS[0]
    while True:
        yield random.uniform(AGAIN_SECONDS[0] / 2, longest)
        longest = min(longest * 1.5, AGAIN_SECONDS[1])


def _holder(path: Path) -> int | None:
    from datatask.adapters.log.lease import probe

    return probe(path)


def _folded(path: Path) -> State:
    """Return the recorded state; that of a log which an engine is making just now, when it is there."""
    from datatask.adapters.log.inbox_client import NoEngineError
    from datatask.adapters.log.reader import LogReader

    until, pauses = time.monotonic() + MADE_SECONDS, _pauses()
    while True:
        try:
            with LogReader(path) as reader:
                state = fold(reader, reader.head)
            if state.tasks or time.monotonic() > until:
                return state
        except (LogError, CallerError):  # CallerError: there is none yet
            if time.monotonic() > until:
                raise
        if _holder(path) is None:
            raise NoEngineError("the engine has ended", where=str(path), remedy="open the log instead")
        time.sleep(next(pauses))


def _through_inbox(path: Path, errand: Errand, dry_run: bool) -> Done:
    from datatask.adapters.log.inbox_client import ask

    state = State() if errand.begun else _folded(path)
    if dry_run:
        return errand.foreseen(state, "running")
    errand.done = errand.done._replace(engine="running")
    for wish in errand.wishes(state, FileBlobs(blobs_path(path))):
        errand.asks()
        errand.taken(wish, ask(path, wish.request, timeout_seconds=ANSWER_SECONDS, stay=True), "running")
    return errand.done


async def _opening(
    settings: Settings,
    errand: Errand,
    dry_run: bool,
    wait: bool,
    needed: Collection[str],
    afterwards: Afterwards | None,
) -> Done:
    """Find out what is wished by the recorded state first: a wrong call leaves no trace in the log."""
    from datatask.adapters.cli.errand import carry_out_alone
    from datatask.adapters.log.lease import held

    pipeline = settings.load_pipeline()
    state = recorded_state(pipeline)[0]
    pipeline.needed = needed
    if not errand.begun:
        foreseen = errand.foreseen(state, "none")
        if dry_run:
            await pipeline.check_inputs()
            return foreseen
    if (path := locate(settings.log_url()).path) is not None and (pid := _holder(path)) is not None:
        raise held(
            path, "", pid
        )  # found out before the pipeline's own things are opened, which takes much longer
    errand.withdraw()
    began = None if wait else settings.began
    await carry_out_alone(pipeline, errand, state, began=began, afterwards=afterwards)
    return errand.done


def _await_stops(settings: Settings) -> None:
    """Wait, by the log alone, until the runs have ended that were asked to stop."""
    note_interrupts()
    with recorded(settings) as log:
        state = log.state
        runs = {run.run for run in state.open_runs.values() if run.stopping is not None}
        while runs & state.open_runs.keys():
            changed(log.reader, state.position, 1.0)
            follow(log.reader, state)
