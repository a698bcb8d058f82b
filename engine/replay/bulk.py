"""Many events into state at once, by columns: the same state as `fold.apply_all` gives, several times as fast.

In: pages of columns (columns.py), numbers for names, no events made. Out: the state, exact whenever `settle` was
called. What an event does to a job in its job state is looked up (transitions.py); masks, queues, positions and counters are
written as the fold would write them, and what is not needed yet is deferred (deferred.py). An event that has no transition is made
and folded as ever: what is new to the fold is slow here and not wrong, and what cannot be folded is told in the
fold's own words.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any

from pyroaring import BitMap

from datatask.engine.core.cells import put_at
from datatask.engine.core.fold import HANDLED, apply, remember_request, selected
from datatask.engine.core.leaves import LeafState, version_hash
from datatask.engine.core.state import State
from datatask.engine.replay.deferred import Deferred, DeferredRun
from datatask.engine.replay.transitions import (
    CODES,
    COLUMNAR,
    COUNT,
    DELETED,
    ENDED,
    LAUNCH,
    PLAIN,
    PUSH,
    PUT,
    ROUND,
    STARTED,
    AnyTransition,
    JobState,
    Meaning,
    Page,
    Source,
    Transitions,
)
from datatask.schema import events as e

UNMET = 0xFFFFFFFF
"""Stands for no job, and for one that the state does not know."""

MAKING = frozenset((PUT, DELETED, LAUNCH))
"""What makes the job that it names, where there was none."""

NOWHERE = JobState(0, "", odd=True)
"""Of a name whose job has to be looked at first."""

NARROW = frozenset(
    (
        *(e.KINDS[name] for name in COLUMNAR),
        *(kind for kind in e.KINDS.values() if kind not in HANDLED),
        e.UnknownEvent,
        e.RepositorySynced,
        e.ObservationHeld,
        e.RepositoryUnreachable,
        e.ChangesMissed,
        e.EngineClosed,
        e.StoreWriteIntended,
        e.Evaluated,
        e.RunAdopted,
        e.RunUnreachable,
        e.RunReachable,
        e.RunResized,
        e.StopDecided,
        e.RetryScheduled,
        e.CancelRequested,
        e.RetryRequested,
        e.ResultAccepted,
        e.TaskPaused,
        e.TaskResumed,
        e.QuotaChanged,
    )
)
"""Events that change no job but the one they name, by itself or by its run. Any other may change everything."""


class Bulk:
    """Folds pages into one state. Until `settle`, the state is not exact."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.plain = 0
        self._deferred = Deferred(state)
        self._transitions = Transitions(state)
        self._seen = 0
        self._codes: dict[int, tuple[int, Meaning | None]] = {}
        self._numbers: list[int] = [UNMET]
        self._texts: Mapping[int, str] = {}
        self._own: dict[str, Iterator[Any]] = {}
        self._here = BitMap()
        self._before = 0
        self._in: list[JobState] = [NOWHERE]
        self._names = [0] * len(state.jobs)

    def settle(self) -> None:
        """Make the state exact."""
        self._deferred.settle()

    def anew(self) -> None:
        """Forget what was worked out: the definition has changed, or others went on with the settled state."""
        self._grow()
        self._transitions = Transitions(self.state)
        self._in[:] = [NOWHERE] * len(self._in)

    def fold(self, page: Page, source: Source) -> None:
        """Fold a page that follows on the state; `LogDamagedError` as the fold tells it."""
        self._meet(page.jobs, source)
        self._mark(page)
        self._own = own_of = {kind: iter(page.own[kind]) for kind in COLUMNAR}
        next_put, next_deletion, next_launch, next_start, next_end = (
            own_of[kind].__next__ for kind in COLUMNAR[:5]
        )
        state, job_states, deferred = self.state, self._in, self._deferred
        masks, intents, runs, close = state.masks, state.intents, deferred.runs, deferred.close
        ops: tuple[tuple[int, Any], ...]
        numbers = self._numbers
        positions = range(page.first, page.first + len(page.keys))
        for position, key, number, run, at in zip(
            positions, page.keys, page.jobs, page.runs, page.times, strict=True
        ):
            transition = job_states[number][key]
            if transition is None:
                transition = self._look(position, key, number, source)
                if transition is None:
                    continue
            job, code = numbers[number], transition[0]
            if code == PUT:
                own = next_put()
                if job == UNMET:
                    job = self._intern(number, code)
                _, following, mask, cells, ops, versions, leaf = transition
                if intents and (leaf, job) in intents:
                    self._plainly(position, job, source)
                    continue
                try:
                    cells[job] = position
                except IndexError:
                    put_at(cells, job, position)
                if versions is not None:
                    put_at(versions, job, version_hash(own.version))
                if own.request is not None:
                    remember_request(state, position, own.request)
            elif code == STARTED:
                own = next_start()
                read = runs.get(run)
                if read is None:
                    self._plainly(position, job, source)
                else:
                    read.started, read.started_at = own, at
                continue
            elif code == ENDED:
                own = next_end()
                _, endings, task, quota = transition
                ending = endings.get(own.outcome) if own.final else None
                read = runs.get(run)
                if ending is not None and read is not None and read.task is task and read.job == job:
                    del runs[run]
                    if quota is not None:
                        quota.free(read.decided.resources)
                elif ending is None or not close(run, task, job):
                    self._plainly(position, job, source)
                    continue
                following, mask, ops = ending
            elif code == LAUNCH:
                own = next_launch()
                if job == UNMET:
                    job = self._intern(number, code)
                _, following, mask, cells, ops, task, waiting, quota = transition
                ready_at = 0 if waiting is None else waiting.pop(job)
                runs[position] = DeferredRun(task, job, own, at, ready_at)
                try:
                    cells[job] = position
                except IndexError:
                    put_at(cells, job, position)
                if quota is not None:
                    quota.take(own.resources, at)
                if own.request is not None:
                    remember_request(state, position, own.request)
            else:
                own = next_deletion()
                if job == UNMET:
                    job = self._intern(number, code)
                _, following, mask, cells, ops, versions, leaf = transition
                if intents and (leaf, job) in intents:
                    self._plainly(position, job, source)
                    continue
                put_at(cells, job, -position)
                if versions is not None:
                    put_at(versions, job, 0)
                if own.request is not None:
                    remember_request(state, position, own.request)
            job_states[number] = following
            masks[job] = mask
            if not ops:
                continue
            for op, where in ops:
                if op == PUSH:
                    where[job] = position
                elif op == COUNT:
                    try:
                        where[job] += 1
                    except IndexError:
                        put_at(where, job, 1)
                else:
                    del where[job]
        deferred.touched |= self._concerned()
        state.position, state.at = positions[-1], page.times[-1]
        self._seen += len(page.keys)

    # --- the beginning of a page ------------------------------------------------------------------

    def _meet(self, numbers: list[int], source: Source) -> None:
        """Find the jobs that the state knows, and the names of those that it does not know yet."""
        known, met = self._numbers, set(numbers)
        known.extend([UNMET] * (max(met) + 1 - len(known)))
        self._in.extend([NOWHERE] * (len(known) - len(self._in)))
        fresh = [number for number in met if known[number] == UNMET and number]
        self._texts = source.texts(sorted(fresh)) if fresh else {}
        index_of, job_states, unseen = self.state.job_index.get, self._in, self._transitions.job_states.fresh
        for number, text in self._texts.items():
            index = index_of(text)
            if index is None:
                job_states[number] = unseen
            else:
                known[number], self._names[index] = index, number
        self._before = len(self.state.jobs)
        self._here = BitMap(array("I", map(known.__getitem__, met)))
        self._here.discard(UNMET)

    def _concerned(self) -> BitMap:
        """Return the jobs that this page may have changed so far."""
        return self._here | BitMap(range(self._before, len(self.state.jobs)))

    def _mark(self, page: Page) -> None:
        """Remember sparsely when positions were written, as `apply_all` does event by event."""
        state, times = self.state, page.times
        due = state.mark_due()
        if sorted(times) != times:
            for position, at in enumerate(times, page.first):
                if at >= due:
                    state.mark(position, at)
                    due = state.mark_due()
            return
        index = bisect_left(times, due)
        while index < len(times):
            state.mark(page.first + index, times[index])
            index = bisect_left(times, state.mark_due(), index + 1)

    # --- what is not known by heart ---------------------------------------------------------------

    def _look(self, position: int, key: int, number: int, source: Source) -> AnyTransition | None:
        """Return the transition of an event that is new here; None once the event is done without a transition."""
        code, meaning = self._codes.get(key) or self._learn(key, source)
        job = self._numbers[number]
        if meaning is None or code >= ROUND:
            self._aside(position, code, job, source)
            return None
        if job == UNMET and number:
            job = self._intern(number, code)
        if job != UNMET:
            job_state = self._in[number]
            if job_state is NOWHERE:
                job_state = self._in[number] = self._transitions.job_states.of(job)
            transition = job_state[key] or self._transitions.work_out(
                job_state, key, code, meaning, self._seen
            )
            if transition is not None:
                return transition
        next(self._own[meaning.kind])
        self._plainly(position, job, source)
        return None

    def _learn(self, key: int, source: Source) -> tuple[int, Meaning | None]:
        meaning = source.meaning(key)
        learned = PLAIN if meaning is None else CODES[meaning.kind], meaning
        self._codes[key] = learned
        return learned

    def _intern(self, number: int, code: int) -> int:
        """Return the job behind a name that was not met before, a new one where this event makes one."""
        state, names, text = self.state, self._names, self._texts[number]
        if code not in MAKING:
            job = state.job_index.get(text, UNMET)
            if job == UNMET:
                return job
        else:
            job = state.intern(text)
        self._numbers[number] = job
        if job == len(names):
            self._in[number] = self._transitions.job_states.fresh
            names.append(number)
        else:
            names[job] = number
        return job

    def _grow(self) -> None:
        """Make room for the jobs that the fold itself has made: they may be among those that seem unseen."""
        made = len(self.state.jobs) - len(self._names)
        if made:
            self._names.extend([0] * made)
            unseen = self._transitions.job_states.fresh
            for number in self._texts:
                if self._in[number] is unseen:
                    self._in[number] = NOWHERE

    def _aside(self, position: int, code: int, job: int, source: Source) -> None:
        """Do what needs no transition: a round, something without effect, or an event that is no column."""
        if code == PLAIN:
            self._plainly(position, job, source)
            return
        own = next(self._own[COLUMNAR[code]])
        if code == ROUND:
            self._deferred.round = own
            selected(self.state, own.selection, own.decisions)

    def _plainly(self, position: int, job: int, source: Source) -> None:
        """Let the fold do one event."""
        state, deferred, event = self.state, self._deferred, source.event(position)
        self.plain += 1
        if type(event) not in NARROW:
            deferred.touched |= self._concerned()
            deferred.settle()
            state.position = position - 1
            apply(state, position, event)
            self.anew()
            return
        concerned = {job, deferred.open(event.run)}
        if event.job is not None:
            concerned.add(state.job_index.get(event.job))
        for one in concerned:
            if one is not None and one != UNMET:
                number = self._names[one]
                deferred.bring(one, self._in[number])
                self._in[number] = NOWHERE
        state.position = position - 1
        translated = self._transitions.job_states.translated
        if not translated:
            apply(state, position, event)
        else:
            deferred.open_all()
            before = [len(leaf.changed) for leaf in translated]
            apply(state, position, event)
            self._look_again(translated, before)
        self._grow()

    def _look_again(self, translated: list[LeafState], before: list[int]) -> None:
        """Other jobs have changed too, where a translated leaf has."""
        for leaf, count in zip(translated, before, strict=True):
            if len(leaf.changed) < count:  # they were too many to be kept
                self._in[:] = [NOWHERE] * len(self._in)
            for job in leaf.changed[count:]:
                self._in[self._names[job]] = NOWHERE
