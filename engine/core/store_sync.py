"""What stores hold, compared with the state: listings, changes that stores tell, echoes of our own writes.

In come complete listings and single observations; out go the differences from the state as events. Echoes of our
own writes are dropped by store version; what appears in an output repository of an open run is stashed for that
run's end; a loss too large to believe is held until a person says that it is true.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set

from datatask.engine.core.changes import put_event
from datatask.engine.core.effects import LookAgain, Outbox
from datatask.engine.core.leaves import LeafState, get_at, version_hash
from datatask.schema import events as e
from datatask.schema.messages import Write
from datatask.schema.requests import Who

LOSS_LEAST = 100
LOSS_SHARE = 10
NOBODY = Who()

Key = tuple[str, str]
"""A repository and a job."""


class StoreSync:
    """Knows which task writes which leaf, which of our writes travel to stores, and what is stashed for open runs."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._state = outbox.state
        self.under_way: Counter[Key] = Counter()
        """How many writes of ours travel to the key's store."""
        self._unheard: dict[Key, str | None] = {}
        self._stash: dict[int, dict[Key, Write]] = {}
        self._disputed: dict[int, set[Key]] = {}
        self._writers: dict[str, list[str]] = {}

    def index(self) -> None:
        """Work out from the state which tasks write which leaf."""
        self._writers = {}
        for task in self._state.tasks.values():
            for link in task.definition.links:
                if link.is_output or link.is_status:
                    leaf = getattr(link.expr, "leaf", None)
                    if leaf is not None:
                        self._writers.setdefault(leaf, []).append(task.name)

    # --- our own writes -----------------------------------------------------------------------------

    def sent(self, keys: Iterable[Key]) -> None:
        """Writes of ours are on their way to these keys: what their stores tell is our echo, perhaps."""
        self.under_way.update(keys)

    def arrived(self, key: Key, version: str | None) -> None:
        """A write of ours is no longer under way to its store, which has this version of it now."""
        self.under_way[key] -= 1
        if self.under_way[key] <= 0:
            del self.under_way[key]
            if key in self._unheard:
                heard = self._unheard.pop(key)
                if heard is None or heard != version:  # else the last that was heard of it is our own echo
                    self._outbox.attach([LookAgain(*key)])

    def take_stash(self, run: int) -> dict[Key, Write]:
        """Return, and forget, what stores have told of a run's outputs since it began, or since this was asked last."""
        return self._stash.pop(run, {})

    def dispute(self, run: int, key: Key) -> None:
        """Let a key be looked at again when the run has ended: its store and the run tell different things."""
        self._disputed.setdefault(run, set()).add(key)

    def take_disputed(self, run: int) -> set[Key]:
        """Return, and forget, the keys that are to be looked at again."""
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
        told: Set[str] = frozenset(),
        believe: bool = False,
        who: Who = NOBODY,
    ) -> bool:
        """Compare a complete listing with the state; log the differences and that the store is known.

        `began` is the state's position when the listing began: what changed since is left alone, and so is what the
        store has `told` since, which may be that nothing is there any more. Returns False
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
            and state.jobs[job] not in told
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
            if write.job in told:
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
        """A store could not be listed, or not yet: nothing follows, but the reason is kept where it is a new one."""
        if why != self._state.leaves[leaf_id].trouble:
            self._outbox.emit([e.RepositoryUnreachable(at=now, repository=leaf_id, why=why)])

    def observed(self, leaf_id: str, job: str, write: Write | None, now: int) -> None:
        """A store told that a job appeared or changed (`write`), or vanished (None)."""
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
        """Return what of a listing the log does not know yet: the rest need not be looked at more closely."""
        return [write for write in listing if self._is_news(leaf_id, write)]

    def unknown(self, leaf_id: str, listing: Sequence[Write], *, by_version: bool) -> list[str]:
        """Return the jobs of a listing that the state does not know so, and no open run or write will settle."""
        return [
            write.job
            for write in listing
            if self._is_news(leaf_id, write, by_version=by_version)
            and not self._is_unsettled(leaf_id, write.job)
        ]

    def is_surely_member(self, leaf_id: str, job: str) -> bool:
        """Whether a job is a member, and no open run or write will settle whether it stays one."""
        state, index = self._state, self._state.job_index.get(job)
        present = index is not None and state.masks[index] & state.leaves[leaf_id].bit != 0
        return present and not self._is_unsettled(leaf_id, job)

    def _is_unsettled(self, leaf_id: str, job: str) -> bool:
        return (leaf_id, job) in self.under_way or self._writing_run(leaf_id, job) != 0

    def missed(self, leaf_id: str, jobs: Sequence[str], now: int) -> None:
        """Changes were found that the store had not told; they have been `observed`."""
        sample = tuple(jobs[:5])
        self._outbox.emit([e.ChangesMissed(at=now, repository=leaf_id, missed=len(jobs), sample=sample)])

    def _is_news(self, leaf_id: str, write: Write, *, by_version: bool = True) -> bool:
        leaf, job = self._state.leaves[leaf_id], self._state.job_index.get(write.job)
        if job is None or not self._state.masks[job] & leaf.bit:
            return True
        return by_version and leaf.versioned and get_at(leaf.versions, job) != version_hash(write.version)

    def _stashed(self, leaf_id: str, job: str, write: Write | None) -> bool:
        """Keep an observation in an output or status repository of an open run for that run's end."""
        run = self._writing_run(leaf_id, job)
        if not run:
            return False
        gone = write or Write(repository=leaf_id, job=job, op="delete", version="")
        self._stash.setdefault(run, {})[leaf_id, job] = gone
        return True

    def _doubt(self, leaf_id: str, job: str) -> None:
        """What is not a member has vanished: if an open run says that it wrote it, the store is asked again."""
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
