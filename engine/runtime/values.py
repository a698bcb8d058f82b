"""The values of an open pipeline's repositories: the engine's side of `Binding`.

In come the reads and writes of the program; out go changes through the reactor, each back when it is durable and its
store has followed, and values from the log. What a run's function writes does not come here: it stands in the run's context.
"""

from __future__ import annotations

import asyncio

import msgspec

from datatask.engine.ports import Blobs
from datatask.engine.run_context import ValueRef
from datatask.engine.runtime.loop import Runtime
from datatask.schema.definition import ViewDef
from datatask.schema.errors import LogDamagedError
from datatask.schema.messages import Write
from datatask.schema.values import INLINE_BYTES_MAX


class Values:
    """What a repository asks of its engine."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._state = runtime.state
        self._contents = runtime.contents

    async def put(self, repository_id: str, write: Write, *, reason: str = "") -> None:
        """Record a write of the program; returns when it is durable and its store has followed."""
        medium = self._state.leaves[repository_id].definition.medium
        large = len(bytes(write.value)) > INLINE_BYTES_MAX
        if medium == "native" and large:
            write = await self._contents.stored(_as_data(write))
        elif medium == "foreign" and large:
            digest, size = await asyncio.to_thread(self._runtime.log.blobs.put_bytes, bytes(write.value))
            write = msgspec.structs.replace(write, digest=digest, size=size)
        elif self._contents.is_unstored(write):
            write = await self._contents.stored(write)
        await self._runtime.finished(
            self._runtime.reactor.tickets.change(
                [write], self._runtime.now(), actor=self._runtime.who.actor, reason=reason
            )
        )

    async def delete(self, repository_id: str, job: str) -> None:
        """Record a deletion (from a `live` view: stop the run); returns when it is durable and has been done."""
        rule = self._state.leaves[repository_id].definition.derived
        if isinstance(rule, ViewDef) and rule.view == "live":
            index = self._state.job_index.get(job)
            episode = None if index is None else self._state.tasks[rule.task].episodes.get(index)
            if episode is not None and episode.run:
                event, effect = self._runtime.reactor.runs.stop(
                    self._state.open_runs[episode.run],
                    "deleted",
                    self._runtime.now(),
                    actor=self._runtime.who.actor,
                )
                await self._runtime.finished(self._runtime.reactor.tickets.ask([event], [effect]))
            return
        write = Write(repository=repository_id, job=job, op="delete")
        await self._runtime.finished(
            self._runtime.reactor.tickets.change([write], self._runtime.now(), actor=self._runtime.who.actor)
        )

    def contains(self, repository_id: str, job: str) -> bool:
        return self._state.contains(repository_id, job)

    def position(self, repository_id: str) -> int:
        """Return up to which position a read sees what was written: a dict follows when the log is durable."""
        if self._state.leaves[repository_id].definition.medium == "mirror":
            return self._runtime.performed
        return self._state.position

    def members(self, repository_id: str) -> list[str]:
        return self._state.members(repository_id)

    async def value(self, repository_id: str, job: str) -> ValueRef | None:
        state, runtime = self._state, self._runtime
        index = state.job_index.get(job)
        leaf = state.leaves[repository_id]
        if index is None or not state.masks[index] & leaf.bit:
            return None
        position = leaf.positions[index]
        put = self._contents.at_hand.values.get(position)
        if put is None:
            while (
                runtime.log.head < position and runtime.failure is None
            ):  # folded ahead of the disk, and evicted
                await asyncio.sleep(0.0005)
            try:
                put = await self._contents.put_at(position)
            except LogDamagedError as error:
                runtime.damaged(error)
                raise
        return ValueRef(put.value, put.digest, put.size, position)

    @property
    def blobs(self) -> Blobs:
        return self._runtime.log.blobs


def _as_data(write: Write) -> Write:
    if write.value:
        return Write(repository=write.repository, job=write.job, data=bytes(write.value))
    return write
