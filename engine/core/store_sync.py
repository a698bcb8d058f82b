"""Stores compared with the state: listings, changes that stores report, echoes of our own writes, and conflicts.

In come complete listings and single observations; out go the differences from the state as events. Echoes are dropped by
store version; what appears in an output repository of an open run is kept for that run's end; a loss too large to
believe is held until a person confirms it. A run's writes are checked for conflicts where the run has read the same key
before (`Write.over`). Foreign stores compare versions once more right before a change (`over_version`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence, Set

import msgspec

from datatask.engine.core.cells import get_at
from datatask.engine.core.effects import LookAgain, Outbox, put_event
from datatask.engine.core.leaves import LeafState, version_hash
from datatask.engine.core.tasks import OpenRun
from datatask.schema import events as e
from datatask.schema.definition import In
from datatask.schema.errors import ConflictError
from datatask.schema.messages import Who, Write

LOSS_LEAST = 100
LOSS_SHARE = 10
NO_ACTOR = Who()

Key = tuple[str, str]
"""A repository and a job."""


class StoreSync:
    """The writers of each leaf, our writes on their way to stores, and the observations stashed for open runs."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._state = outbox.state
        self.under_way: Counter[Key] = Counter()
        """The number of our writes on their way to the key's store."""
        self._unheard: dict[Key, str | None] = {}
        self._stash: dict[int, dict[Key, Write]] = {}
        self._disputed: dict[int, set[Key]] = {}
        self._writers: dict[str, list[str]] = {}

    def index(self) -> None:
        """Build the writers of each leaf from the state."""
        self._writers = {}
        for task in self._state.tasks.values():
            for link in task.definition.links:
                if link.is_output or link.is_status:
                    leaf = getattr(link.expr, "leaf", None)
                    if leaf is not None:
                        self._writers.setdefault(leaf, []).append(task.name)

    # --- our own writes -----------------------------------------------------------------------------

    def sent(self, keys: Iterable[Key]) -> None:
        """Our writes are on their way to these keys: a report of their stores may be an echo."""
        self.under_way.update(keys)

    def arrived(self, key: Key, version: str | None) -> None:
        """A write of ours has reached its store, which has this version of it now."""
        self.under_way[key] -= 1
        if self.under_way[key] <= 0:
            del self.under_way[key]
            if key in self._unheard:
                heard = self._unheard.pop(key)
                if heard is None or heard != version:  # else the last that was heard of it is our own echo
                    self._outbox.attach([LookAgain(*key)])

    def take_stash(self, run: int) -> dict[Key, Write]:
        """Return, and forget, what stores have reported of a run's outputs since it began, or since the last call."""
        return self._stash.pop(run, {})

    def dispute(self, run: int, key: Key) -> None:
        """Check a key again after the run's end: its store and the run disagree."""
        self._disputed.setdefault(run, set()).add(key)

    def take_disputed(self, run: int) -> set[Key]:
        """Return, and forget, the keys to be checked again."""
        return self._disputed.pop(run, set())

    # --- listings and observations ------------------------------------------------------------------

    def listed(
        self,
        leaf_id: str,
        listing: Sequence[Write],
        listed_at: int,
        began: int,
        now: int,
        *,
        root: str = "",
        reported: Set[str] = frozenset(),
        believe: bool = False,
        who: Who = NO_ACTOR,
    ) -> bool:
        """Compare a complete listing with the state; log the differences and that the store is known.

        `began` is the state's position when the listing began: what changed since is left alone, and so is what the
        store has `reported` since, which may be that nothing is there any more. Returns False
        when so much vanished that a person (`who`) must say that it is true (`believe`); where another `root` is
        looked at than before, as after an unmount, that is anything at all; so it is while the leaf is held.
        """
        state, leaf = self._state, self._state.leaves[leaf_id]
        seen = {write.job for write in listing}
        gone = [
            job
            for job in leaf.members(state.masks)
            if state.jobs[job] not in seen
            and get_at(leaf.positions, job) <= began
            and (leaf_id, state.jobs[job]) not in self.under_way
            and state.jobs[job] not in reported
        ]
        moved = bool(root and leaf.root and root != leaf.root)
        credible = 0 if moved or leaf.held else max(LOSS_LEAST, leaf.count // LOSS_SHARE)
        if leaf.definition.medium == "foreign" and not believe and len(gone) > credible:
            if not leaf.held:
                sample = tuple(state.jobs[job] for job in gone[:5])
                why = (
                    f"another root than before, without {len(gone)} of {leaf.count} members" if moved else ""
                )
                held = e.ObservationHeld(
                    at=now, repository=leaf_id, vanished=len(gone), members=leaf.count, sample=sample, why=why
                )
                self._outbox.emit([held])
            return False
        events: list[e.Event] = []
        for job in gone:
            if not self._stashed(leaf_id, state.jobs[job], None):
                events.append(
                    e.ValueDeleted(
                        at=now, repository=leaf_id, job=state.jobs[job], origin="observed", **who._asdict()
                    )
                )
        for run, stash in self._stash.items():
            missing = {key for key in stash if key[0] == leaf_id and key[1] not in seen}
            if missing:
                self._disputed.setdefault(run, set()).update(missing)
        for write in listing:
            if (leaf_id, write.job) in self.under_way or self._touched(leaf, write.job) > began:
                continue
            if write.job in reported:
                continue
            if self._is_news(leaf_id, write) and not self._stashed(leaf_id, write.job, write):
                events.append(put_event(write, now, origin="observed"))
        if events or not leaf.synced or leaf.held or leaf.trouble or moved:
            synced = e.RepositorySynced(
                at=now,
                repository=leaf_id,
                listed_at=listed_at,
                members=len(listing),
                root=root if leaf.definition.medium == "foreign" else "",
                **who._asdict(),
            )
            events.append(synced)
        self._outbox.emit_in_parts(events)
        return True

    def unreachable(self, leaf_id: str, why: str, now: int) -> None:
        """A store could not be listed: record the reason where it is new."""
        if why != self._state.leaves[leaf_id].trouble:
            self._outbox.emit([e.RepositoryUnreachable(at=now, repository=leaf_id, why=why)])

    def observed(self, leaf_id: str, job: str, write: Write | None, now: int) -> None:
        """A store reported that a job appeared or changed (`write`), or vanished (None)."""
        state = self._state
        index = state.job_index.get(job)
        present = index is not None and state.masks[index] & state.leaves[leaf_id].bit != 0
        if (leaf_id, job) in self.under_way:
            self._unheard[leaf_id, job] = None if write is None else write.version
            return
        if write is None:
            if not present:
                self._doubt(leaf_id, job)
            elif not self._stashed(leaf_id, job, None):
                self._outbox.emit([e.ValueDeleted(at=now, repository=leaf_id, job=job, origin="observed")])
        elif self._is_news(leaf_id, write) and not self._stashed(leaf_id, job, write):
            self._outbox.emit([put_event(write, now, origin="observed")])

    def _touched(self, leaf: LeafState, job: str) -> int:
        """Return the position of the last put or deletion of a job, 0 if there was none."""
        index = self._state.job_index.get(job)
        return 0 if index is None else abs(get_at(leaf.positions, index))

    def news(self, leaf_id: str, listing: Sequence[Write]) -> list[Write]:
        """Return the entries of a listing that the log does not have; only they need a closer look."""
        return [write for write in listing if self._is_news(leaf_id, write)]

    def unknown(self, leaf_id: str, listing: Sequence[Write], *, by_version: bool) -> list[str]:
        """Return the jobs on which a listing and the state differ, except those of open runs and writes."""
        return [
            write.job
            for write in listing
            if self._is_news(leaf_id, write, by_version=by_version)
            and not self._is_unsettled(leaf_id, write.job)
        ]

    def is_surely_member(self, leaf_id: str, job: str) -> bool:
        """Whether a job is a member that no open run or write may change."""
        state, index = self._state, self._state.job_index.get(job)
        present = index is not None and state.masks[index] & state.leaves[leaf_id].bit != 0
        return present and not self._is_unsettled(leaf_id, job)

    def _is_unsettled(self, leaf_id: str, job: str) -> bool:
        return (leaf_id, job) in self.under_way or self._writing_run(leaf_id, job) != 0

    def missed(self, leaf_id: str, jobs: Sequence[str], now: int) -> None:
        """Changes were found that the store had not reported; they have been `observed`."""
        sample = tuple(jobs[:5])
        self._outbox.emit([e.ChangesMissed(at=now, repository=leaf_id, missed=len(jobs), sample=sample)])

    def _is_news(self, leaf_id: str, write: Write, *, by_version: bool = True) -> bool:
        leaf, job = self._state.leaves[leaf_id], self._state.job_index.get(write.job)
        if job is None or not self._state.masks[job] & leaf.bit:
            return True
        return by_version and leaf.versioned and get_at(leaf.versions, job) != version_hash(write.version)

    def _stashed(self, leaf_id: str, job: str, write: Write | None) -> bool:
        """Stash an observation in an output or status repository until the end of its open run."""
        run = self._writing_run(leaf_id, job)
        if not run:
            return False
        gone = write or Write(repository=leaf_id, job=job, op="delete", version="")
        self._stash.setdefault(run, {})[leaf_id, job] = gone
        return True

    def _doubt(self, leaf_id: str, job: str) -> None:
        """A non-member vanished: where an open run claims to have written it, ask the store again."""
        run = self._writing_run(leaf_id, job)
        if run:
            self.dispute(run, (leaf_id, job))

    def _writing_run(self, leaf_id: str, job: str) -> int:
        """Return the open run of this job whose task writes the leaf, or 0."""
        index = self._state.job_index.get(job)
        if index is None:
            return 0
        for name in self._writers.get(leaf_id, ()):
            episode = self._state.tasks[name].episodes.get(index)
            if episode is not None and episode.run:
                return episode.run
        return 0


CONFLICT = "Conflict"
"""The type of the error of a run that was in conflict."""


class Conflicts:
    """The keys reserved for ended runs whose other outputs are still on their way to their stores."""

    def __init__(self, outbox: Outbox, stores: StoreSync) -> None:
        self._outbox = outbox
        self._state = outbox.state
        self._stores = stores
        self._promised: dict[Key, int] = {}

    def find(
        self, run: OpenRun, ending: e.Ending, writes: Iterable[Write], observed: Container[Key] = ()
    ) -> str:
        """Return the first conflict of a run that has ended, in words, or the empty string.

        `observed` are keys that a store has reported while the run was open.
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
                    return f"{_named(key)} was changed by another while this process, which reads and writes it, ran"
            if over is not None:
                found = write.conflict or self._overwritten(run, write, over)
                if found:
                    return found
        return ""

    def stale(self, run: OpenRun, write: Write) -> bool:
        """Whether another writer has changed a key after the run read it, or is about to."""
        return write.over is not None and self._overwritten(run, write, write.over) != ""

    def promise(self, run: OpenRun, keys: Iterable[Key]) -> None:
        """Reserve keys for an ended run whose writes are on their way to their stores."""
        self._promised.update((key, run.run) for key in keys)

    def redeem(self, run: OpenRun, writes: Sequence[Write]) -> Sequence[Write]:
        """Return the writes without those of reserved keys that others have overwritten in the meantime.

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
        """Release a run's keys, and return them."""
        mine = [key for key, number in self._promised.items() if number == run.run]
        for key in mine:
            del self._promised[key]
        return mine

    def _seen_by_process(self, run: OpenRun, ending: e.Ending, write: Write) -> int | None:
        """Return the position from which a process may have read its outputs; an input is read from the launch on."""
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
        """Return the actor that changed a key after the run read it, with the log at `over`."""
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
        return " from outside" if getattr(event, "origin", "") == "observed" else ""


def in_conflict(ending: e.Ending, why: str) -> e.Ending:
    """Return the ending of a run in conflict, in place of its own outcome."""
    message = why
    if ending.error is not None and ending.error.type != ConflictError.__name__:
        message += f"; it had ended with {ending.error.type}: {ending.error.message}"
    error = e.ErrorInfo(
        type=CONFLICT, message=message, traceback="" if ending.error is None else ending.error.traceback
    )
    return msgspec.structs.replace(ending, outcome="conflicted", error=error)


def noted(ending: e.Ending, why: str) -> e.Ending:
    """Return the run's own ending, with the conflict for which some of its writes were left out."""
    return msgspec.structs.replace(ending, detail={**(ending.detail or {}), "conflict": why})


def _named(key: Key) -> str:
    return f"key {key[1]} of {key[0]}"
