"""The end of a run, from its runner's report to the one batch that records it.

In come endings with their writes. A run's end brings its writes, its `done` entry, `RunEnded`, and what follows (a retry
or the episode's end) in one batch. Where a foreign store must take a write first, intents are recorded and the run
stays open, *collecting*, until the store has it. A `done` entry has the shape that its task declares, with times as UTC
datetimes, and is written at the end of the episode.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from datatask.engine.core.effects import (
    BATCH_MAX,
    Effect,
    ForgetRun,
    LookAgain,
    Mirror,
    Outbox,
    WriteStore,
    change_event,
    intended_write,
    intent_event,
)
from datatask.engine.core.retry import (
    UNWANTED,
    NextAttempt,
    NoRetry,
    Verdict,
    ending_events,
    verdict_of,
)
from datatask.engine.core.store_sync import Conflicts, StoreSync, in_conflict, noted
from datatask.engine.core.tasks import Intent, OpenRun
from datatask.schema import events as e
from datatask.schema.definition import DoneShape
from datatask.schema.events import Ending, ErrorInfo, Outcome
from datatask.schema.messages import Ended, Write
from datatask.schema.units import EPOCH, moment


@dataclass(slots=True)
class Collecting:
    """A run that has ended at its target while its outputs are being written to foreign stores."""

    ending: e.Ending
    writes: list[Write]
    outstanding: set[tuple[str, str]]
    refused: e.ErrorInfo | None = None
    conflict: str = ""


class RunEnds:
    """Ends runs. `collecting` holds those whose outputs are still being written to foreign stores."""

    def __init__(self, outbox: Outbox, stores: StoreSync, chance: Callable[[], float]) -> None:
        self._outbox = outbox
        self._state = outbox.state
        self._stores = stores
        self._conflicts = Conflicts(outbox, stores)
        self._chance = chance
        self.collecting: dict[int, Collecting] = {}

    def ended(self, run: OpenRun, fact: Ended, now: int) -> None:
        """Record the end of a run with its outputs, and with the changes its stores reported meanwhile."""
        writes = {(write.repository, write.job): write for write in fact.writes}
        stashed = self._stores.take_stash(run.run)
        for key, write in stashed.items():
            if key not in writes and (write.op == "put" or self._state.contains(*key)):
                writes[key] = write
            elif key in writes and writes[key].version != write.version:
                self._stores.dispute(run.run, key)
        ending, why = fact.ending, self._conflicts.find(run, fact.ending, fact.writes, stashed)
        if why:
            ending, writes = self._without_conflicts(run, ending, writes, why)
        self._close(run, ending, writes, now)

    def _without_conflicts(
        self, run: OpenRun, ending: e.Ending, writes: dict[tuple[str, str], Write], why: str
    ) -> tuple[e.Ending, dict[tuple[str, str], Write]]:
        """Return the ending of a run that was in conflict, and which of its writes remain.

        Where its own end would have counted it is run again, and what has not reached a store is dropped. A run that
        was stopped, lost or refused ends as that, without what it would have written over.
        """
        if ending.outcome in ("succeeded", "failed"):
            ended = in_conflict(ending, why)
            if run.stopping in UNWANTED:
                ended = msgspec.structs.replace(ended, outcome="cancelled")
            return ended, {key: write for key, write in writes.items() if write.version is not None}
        kept = {
            key: write
            for key, write in writes.items()
            if not write.conflict and not self._conflicts.stale(run, write)
        }
        return noted(ending, why), kept

    def _close(self, run: OpenRun, ending: e.Ending, writes: dict[tuple[str, str], Write], now: int) -> None:
        """Add the engine's own writes at a run's end, and begin to record it."""
        if ending.outcome == "lost" and run.stopping in UNWANTED:
            ending = msgspec.structs.replace(ending, outcome="cancelled")  # it was to end, and has
        verdict = self._verdict(run, ending, now)
        task = self._state.tasks[run.task].definition
        job = self._state.jobs[run.job]
        if isinstance(verdict, NextAttempt):
            own = {(leaf, job) for leaf in self._own_inhibitors(run.task)}
            writes = {key: write for key, write in writes.items() if key not in own or write.op == "delete"}
        elif task.done is not None and run.meta and not _reopened(ending.outcome):
            value = done_value(task.done_shape, ending)
            writes[task.done, job] = Write(repository=task.done, job=job, value=value)
        if task.pids is not None:
            writes[task.pids, job] = Write(repository=task.pids, job=job, op="delete")
        self._collect(run, ending, list(writes.values()), now, verdict)

    def _own_inhibitors(self, task: str) -> list[str]:
        links = self._state.tasks[task].definition.links
        return [link.expr.leaf for link in links if link.inhibits_start and hasattr(link.expr, "leaf")]

    def _verdict(self, run: OpenRun, ending: e.Ending, now: int) -> Verdict:
        task = self._state.tasks[run.task]
        if run.origin == "forced" and not task.condition.test(self._state.masks[run.job]):
            return NoRetry()  # nothing but force would launch it again
        return verdict_of(task, run, ending, self._state.engine, now, self._chance())

    def _collect(
        self,
        run: OpenRun,
        ending: e.Ending,
        writes: list[Write],
        now: int,
        verdict: Verdict | None = None,
    ) -> None:
        """Record an ending with its writes at once, or by intents first where they go to a foreign store."""
        foreign = [
            write
            for write in writes
            if write.version is None and self._state.medium(write.repository) == "foreign"
        ]
        if not foreign:
            self._end(run, ending, writes, now, verdict)
            return
        intents: list[e.Event] = [
            intent_event(write, now, run=run.run, settles=ending if write is writes[-1] else None)
            for write in writes
        ]
        outstanding = {(write.repository, write.job) for write in foreign}
        self._stores.sent(outstanding)
        inside = [write for write in writes if self._state.medium(write.repository) != "foreign"]
        self._conflicts.promise(run, _keys(inside))
        self.collecting[run.run] = Collecting(ending, writes, outstanding)
        self._outbox.emit(intents, [WriteStore(write, run.run, None) for write in foreign])

    def _end(
        self,
        run: OpenRun,
        ending: e.Ending,
        writes: Sequence[Write],
        now: int,
        verdict: Verdict | None = None,
    ) -> None:
        """Emit the batch that ends a run: its writes, its done entry, `RunEnded`, and the consequences."""
        state, task = self._state, self._state.tasks[run.task].definition
        writes = self._conflicts.redeem(run, writes)
        disputed = self._stores.take_disputed(run.run)
        late = self._stores.take_stash(run.run)
        if late:
            disputed |= late.keys() & _keys(writes)
            writes = [*writes, *(write for key, write in late.items() if key not in _keys(writes))]
        if verdict is None:
            verdict = self._verdict(run, ending, now)
        events: list[e.Event] = [change_event(write, now, run=run) for write in writes]
        effects: list[Effect] = [
            Mirror(write) for write in writes if state.medium(write.repository) == "mirror"
        ]
        if state.engine is not None and run.epoch != state.engine.epoch:
            # Written under an engine that is gone: what happened to it since was never reported.
            disputed |= _keys([write for write in writes if write.version])
        if disputed:
            effects += [
                LookAgain(write.repository, write.job)
                for write in writes
                if state.medium(write.repository) == "foreign" and (write.repository, write.job) in disputed
            ]
        events += ending_events(run, state.jobs[run.job], ending, verdict, task.retry, now)
        while len(events) > BATCH_MAX:
            self._outbox.emit(events[:BATCH_MAX])
            del events[:BATCH_MAX]
        self._outbox.emit(events, [*effects, ForgetRun(run.task, run.run)])

    def written(
        self, run_id: int, write: Write, version: str | None, error: str, now: int, *, conflict: bool = False
    ) -> None:
        """A foreign store completed an intent of a run; with `error` it failed for good."""
        key = (write.repository, write.job)
        collecting = self.collecting[run_id]
        if conflict:
            collecting.conflict = collecting.conflict or error
        collecting.outstanding.discard(key)
        self._stores.arrived(key, version)
        index = next(i for i, write in enumerate(collecting.writes) if (write.repository, write.job) == key)
        if error:
            del collecting.writes[index]
            message = f"cannot store {key[0]} {key[1]}: {error}"
            collecting.refused = e.ErrorInfo(type="StoreError", message=message)
        else:
            collecting.writes[index] = msgspec.structs.replace(
                collecting.writes[index], version=version or ""
            )
        if not collecting.outstanding:
            del self.collecting[run_id]
            self._collected(self._state.open_runs[run_id], collecting, now)

    def _collected(self, run: OpenRun, collecting: Collecting, now: int) -> None:
        """All stores have completed or refused; a success with a refused output becomes a failure."""
        ending, writes = collecting.ending, collecting.writes
        if collecting.conflict and ending.outcome in ("succeeded", "failed"):
            self._undone(run, in_conflict(ending, collecting.conflict), writes, now)
            return
        if collecting.refused is None or ending.outcome != "succeeded":
            self._end(run, ending, writes, now)
            return
        self._undone(
            run, msgspec.structs.replace(ending, outcome="failed", error=collecting.refused), writes, now
        )

    def _undone(self, run: OpenRun, ending: e.Ending, writes: list[Write], now: int) -> None:
        """End a run with another outcome than the outputs already in their stores."""
        if ending.outcome == "conflicted":
            writes = [write for write in writes if write.version is not None]
            self._conflicts.forget(run)
        task = self._state.tasks[run.task].definition
        inhibitors = [*self._own_inhibitors(run.task), *([task.done] if task.done else [])]
        own = {(leaf, self._state.jobs[run.job]) for leaf in inhibitors}
        kept = {(write.repository, write.job): write for write in writes}
        for key in own & kept.keys():  # it says success: taken back, or overwritten by `_close`
            kept[key] = Write(repository=key[0], job=key[1], op="delete")
        self._close(run, ending, kept, now)

    def redo(self, now: int) -> None:
        """Complete the ends of runs that an earlier engine had begun to write."""
        for run in list(self._state.open_runs.values()):
            if self.redoable(run):
                assert run.settling is not None
                writes = [self._intended(run, intent) for intent in run.intents.values()]
                self._collect(run, run.settling, writes, now)

    def _intended(self, run: OpenRun, intent: Intent) -> Write:
        """Return the intended writes of a run; they were compared before, so later writes of others remain."""
        write, task = intended_write(intent.event), self._state.tasks[run.task].definition
        if self._state.medium(write.repository) == "foreign" or write.repository in (task.done, task.pids):
            return write
        return msgspec.structs.replace(write, over=intent.position)

    def redoable(self, run: OpenRun) -> bool:
        """Whether the end of a run can be redone from the log alone."""
        if run.settling is None or not run.intents:
            return False
        intents = [intent.event for intent in run.intents.values()]
        return all(intent.op == "delete" or intent.value or intent.digest for intent in intents)


def _keys(writes: Sequence[Write]) -> set[tuple[str, str]]:
    return {(write.repository, write.job) for write in writes}


def _reopened(outcome: str) -> bool:
    return outcome in ("cancelled", "handed_over")


_encode = msgspec.json.Encoder().encode

_RESULTS: dict[Outcome, str] = {
    "succeeded": "success",
    "handed_over": "success",
    "failed": "exception",
    "timed_out": "timeout",
    "cancelled": "cancelled",
    "lost": "lost",
    "refused": "refused",
    "conflicted": "conflicted",
}
_REASONS: dict[Outcome, str] = {"succeeded": "Succeeded", "handed_over": "Succeeded", "timed_out": "Timeout"}


def done_value(shape: DoneShape, ending: Ending) -> msgspec.Raw:
    """Return the `done` document as it is stored: what `encode_value` makes of it, at a third of the cost."""
    return msgspec.Raw(_encode(done_record(shape, ending, _stored_moment)))


def done_record(
    shape: DoneShape, ending: Ending, moment: Callable[[int | None], object] = moment
) -> dict[str, Any]:
    """Return the `done` document of an ending; `{}` for the shape "none". `moment` gives its times."""
    times = {"start_time": moment(ending.started_at), "end_time": moment(ending.ended_at)}
    success = ending.outcome in ("succeeded", "handed_over")
    match shape:
        case "function":
            return {"result": _RESULTS[ending.outcome], **_exception(ending), **times, "success": success}
        case "process":
            return {"return_code": ending.exit_code, **times, "success": success, **_trouble(ending)}
        case "pod":
            detail = ending.detail or {}
            reason = _REASONS.get(ending.outcome, "Failed")
            place = {"image": detail.get("image"), "node": detail.get("node")}
            return {"reason": reason, **times, **place, "success": success, **_trouble(ending)}
    return {}


def _stored_moment(nanoseconds: int | None) -> dict[str, str] | None:
    """Return a moment as `schema.values` stores a datetime."""
    if nanoseconds is None:
        return None
    seconds, microseconds = divmod(nanoseconds // 1000, 1_000_000)
    return {"$datetime": f"{_second(seconds)}{f'.{microseconds:06}' if microseconds else ''}+00:00"}


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    """Return a second in ISO 8601, without its zone; the runs of one second share it."""
    return (EPOCH + dt.timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()


def _exception(ending: Ending) -> dict[str, Any]:
    if ending.error is None:
        return {}
    shown = (ending.detail or {}).get("exception") or _repr(ending.error)
    return {"exception": shown, "traceback": ending.error.traceback.splitlines(keepends=True)}


def _repr(error: ErrorInfo) -> str:
    return f"{error.type}({error.message!r})" if error.message else f"{error.type}()"


def _trouble(ending: Ending) -> dict[str, Any]:
    """Return `timeout` for a timed-out run, and `error` where the exit code is not enough."""
    trouble: dict[str, Any] = {"timeout": True} if ending.outcome == "timed_out" else {}
    if ending.error is not None and ending.outcome in (
        "lost",
        "refused",
        "cancelled",
        "timed_out",
        "conflicted",
    ):
        trouble["error"] = ending.error.message
    return trouble
