"""Whether a run writes over what it has never seen: the writes of its end against the state.

In: a run and the writes that came with its end. Out: the first conflict in words, and the writes that may stand. A write
is checked where the run has read the same key before, whether it found a value there or none (`Write.over`); who writes
a key without having read it overwrites it, as ever. The log's positions tell of everything that the engine knows. What
others do to a foreign store is only known there: it compares versions once more right before it changes (`over_version`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

import msgspec

from datatask.engine.core.effects import Outbox
from datatask.engine.core.leaves import get_at, version_hash
from datatask.engine.core.store_sync import Key, StoreSync
from datatask.engine.core.tasks import OpenRun
from datatask.schema import events as e
from datatask.schema.definition import In
from datatask.schema.errors import ConflictError
from datatask.schema.messages import Write

CONFLICT = "Conflict"
"""The type of the error of a run that was in conflict."""


class Conflicts:
    """Knows which keys are promised to runs whose other outputs still travel to their stores."""

    def __init__(self, outbox: Outbox, stores: StoreSync) -> None:
        self._outbox = outbox
        self._state = outbox.state
        self._stores = stores
        self._promised: dict[Key, int] = {}

    def find(
        self, run: OpenRun, ending: e.Ending, writes: Iterable[Write], observed: Container[Key] = ()
    ) -> str:
        """Return the first conflict of a run that has ended, in words, or the empty string.

        `observed` are keys that a store has told of while the run was open.
        """
        task = self._state.tasks[run.task].definition
        if task.conflicts == "allow":
            return ""
        is_process = task.done_shape == "process"
        for write in writes:
            over = write.over
            if over is None and is_process:
                over = self._seen_by_process(run, ending, write)
                key = write.repository, write.job
                if over is not None and key in observed:
                    return f"{_named(key)} was changed by somebody while this process, which reads and writes it, ran"
            if over is not None:
                found = write.conflict or self._overwritten(run, write, over)
                if found:
                    return found
        return ""

    def stale(self, run: OpenRun, write: Write) -> bool:
        """Whether another has written a key after the run had read it, or is about to."""
        return write.over is not None and self._overwritten(run, write, write.over) != ""

    def promise(self, run: OpenRun, keys: Iterable[Key]) -> None:
        """Keep keys for a run that is over but for writes that travel to their stores."""
        self._promised.update((key, run.run) for key in keys)

    def redeem(self, run: OpenRun, writes: Sequence[Write]) -> Sequence[Write]:
        """Return the writes without those of promised keys that others have overwritten unseen in the meantime.

        They came later and read nothing: it is as if this run had written before them, and they over it.
        """
        mine = self.forget(run) if self._promised else ()
        if not mine:
            return writes
        return [
            write
            for write in writes
            if (write.repository, write.job) not in mine or not self.stale(run, write)
        ]

    def forget(self, run: OpenRun) -> list[Key]:
        """Let go of a run's keys, and return them."""
        mine = [key for key, number in self._promised.items() if number == run.run]
        for key in mine:
            del self._promised[key]
        return mine

    def _seen_by_process(self, run: OpenRun, ending: e.Ending, write: Write) -> int | None:
        """Return the position at which a process has read what it writes: an input is read from the launch on."""
        job = self._state.jobs[run.job]
        name = write.repository if write.job == job else f"{write.repository}/{write.job}"
        read = (ending.reads or {}).get(name)
        if read is not None or write.job != job:
            return read
        links = self._state.tasks[run.task].definition.links
        is_input = any(
            link.is_input and isinstance(link.expr, In) and link.expr.leaf == write.repository
            for link in links
        )
        return run.run if is_input else None

    def _overwritten(self, run: OpenRun, write: Write, over: int) -> str:
        """Return who has changed a key that the run had read with the log at `over`."""
        state, key = self._state, (write.repository, write.job)
        if write.version is not None:
            return ""  # its store has compared and taken it
        leaf, job = state.leaves[write.repository], state.job_index.get(write.job)
        foreign = leaf.definition.medium == "foreign"
        if foreign and key in self._stores.under_way:
            intent = None if job is None else state.intents.get((write.repository, job))
            by = "" if intent is None or intent.event.run is None else f" by run {intent.event.run}"
            return f"{_named(key)} is being overwritten{by}, after this run had read it"
        other = self._promised.get(key, run.run)
        if other != run.run:
            return f"{_named(key)} is being overwritten by run {other}, after this run had read it"
        position = 0 if job is None else get_at(leaf.positions, job)
        if abs(position) <= over:
            return ""
        if foreign and write.over_version is not None:
            if version_hash(write.over_version or None) == get_at(leaf.versions, job or 0):
                return ""  # the log has learned later of what the run had seen already
        done = "overwritten" if position > 0 else "deleted"
        return (
            f"{_named(key)} was {done} at position {abs(position)}{self._by(abs(position))},"
            f" after this run had read it (the log was at position {over} then)"
        )

    def _by(self, position: int) -> str:
        event = self._outbox.event_at(position)
        if event is None:
            return ""
        if event.run is not None:
            return f" by run {event.run} of {event.task}"
        if event.actor != e.ENGINE:
            return f" by {event.actor}"
        return " by somebody outside" if getattr(event, "origin", "") == "observed" else ""


def in_conflict(ending: e.Ending, why: str) -> e.Ending:
    """Return the ending of a run that was in conflict: what it came to by itself is not what counts."""
    told = why
    if ending.error is not None and ending.error.type != ConflictError.__name__:
        told += f"; it had ended with {ending.error.type}: {ending.error.message}"
    error = e.ErrorInfo(
        type=CONFLICT, message=told, traceback="" if ending.error is None else ending.error.traceback
    )
    return msgspec.structs.replace(ending, outcome="conflicted", error=error)


def noted(ending: e.Ending, why: str) -> e.Ending:
    """Return an ending that counts for itself, with the conflict for which writes of the run were left out."""
    return msgspec.structs.replace(ending, detail={**(ending.detail or {}), "conflict": why})


def _named(key: Key) -> str:
    return f"key {key[1]} of {key[0]}"
