"""Runs are spared whose inputs, code and outputs are there already: `cache=True`.

In: runs that are about to be begun, and ends of those that were. Out: for a run of which an equal one succeeded, whatever its job,
an end with that one's outputs, and without a start. Equal are runs of a task with one fingerprint and the same digests of all
inputs; the digest over these stands in the `detail` of an end (`CONTENT`), so that the log is the cache. Outputs are
taken over only where each has its recorded digest still. What cannot be told by digests is run, and said once.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from datatask.adapters.history.images import images_in
from datatask.adapters.history.lineage import digest_of
from datatask.adapters.wiring.contents import Contents
from datatask.engine.api.tasks import Task
from datatask.engine.core.cells import get_at
from datatask.engine.core.expressions import leaves_of
from datatask.engine.core.staleness import key_in, stored
from datatask.engine.ports import Filters, Hashable, Store
from datatask.engine.runtime.loop import Runtime
from datatask.schema import events as e
from datatask.schema.definition import In, TaskDef
from datatask.schema.errors import DatataskError
from datatask.schema.messages import Ended, RunSpec, Write

logger = logging.getLogger("datatask.engine")

SOURCES_MAX = 4
"""So many runs with one content are remembered, the latest ones."""
PLACE = "cache"
"""Where a run was that has taken over outputs."""


class Input(NamedTuple):
    """What a run reads by a link: the value of `key` in a leaf, as it was put at a position."""

    link: str
    leaf: str
    key: str
    position: int


class Source(NamedTuple):
    """A run whose outputs may be taken over; `ended` is the position of its end."""

    run: int
    ended: int
    job: str
    exit_code: int | None
    images: str = ""


class Uncacheable(Exception):
    """Something that a run reads or writes has no digest."""


class Caching:
    """The cache of one engine; `open` begins to listen."""

    def __init__(
        self, runtime: Runtime, contents: Contents, stores: Mapping[str, Store], tasks: Iterable[Task]
    ) -> None:
        self._runtime, self._state, self._contents = runtime, runtime.state, contents
        self._stores = stores
        self._tasks = {task.name: task for task in tasks if self._definition(task.name).cache}
        self._by_job: set[str] = set()
        self._sources: dict[str, list[Source]] = {}
        self._read: asyncio.Task[None] | None = None
        self._begun: dict[int, tuple[str, list[Input]]] = {}
        self._told: set[tuple[str, str]] = set()
        self._images: dict[str, str] = {}

    def open(self) -> None:
        """Begin, where any task wants it; tasks of which something cannot be followed are run always."""
        for name, task in list(self._tasks.items()):
            definition = self._definition(name)
            if why := self._hindrance(task, definition):
                self._say(name, why)
                del self._tasks[name]
            elif task.names_job or not any(link.is_input for link in definition.links):
                self._by_job.add(name)
        if self._tasks:
            self._runtime.listeners.append(self._see)
            self._runtime.spare(self)

    def _hindrance(self, task: Task, definition: TaskDef) -> str:
        """Return what keeps all runs of a task from being compared, or nothing."""
        outputs, unfollowed = self._writes(definition), task.fingerprint().unfollowed
        if not definition.fingerprint:
            return "what it executes has no fingerprint"
        if unfollowed:
            return f"what it executes cannot be followed: {'; '.join(unfollowed)}"
        if outputs is None:
            return "an output is made of several repositories"
        for leaf, link in outputs.items():
            if self._state.medium(leaf) == "foreign" and not self._contents.can_hash(leaf):
                return f"the values of output {link} cannot be copied"
        return ""

    def may(self, task: str) -> bool:
        """Whether runs of a task may take over outputs."""
        return task in self._tasks

    async def look(self, spec: RunSpec) -> Ended | None:
        """Return the end of a run that takes over outputs, or None: then it is to be begun."""
        try:
            content, inputs = await self._content(spec)
            await self._recorded()
            run = self._state.open_runs.get(spec.run)
            asked = run is None or run.origin != "derived"  # who launches it has it computed
            for source in () if asked else reversed(self._sources.get(content, ())):
                if (found := await self._taken(spec, content, source)) is not None:
                    return found
            self._begun[spec.run] = content, inputs
        except Uncacheable as why:
            self._say(spec.task, str(why))
        except (DatataskError, OSError) as error:
            logger.debug("nothing is taken over for %s %s: %s", spec.task, spec.job, error)
        return None

    def ended(self, fact: Ended) -> Ended:
        """Note in the end of a run what it executed and read, where nothing else could have changed its result."""
        content, inputs = self._begun.pop(fact.run, ("", []))
        run = self._state.open_runs.get(fact.run)
        if not content or run is None or fact.ending.outcome != "succeeded":
            return fact
        if not self._is_as_begun(fact, inputs, self._state.jobs[run.job], self._definition(run.task)):
            return fact
        detail = {**(fact.ending.detail or {}), e.CONTENT: content}
        return fact._replace(ending=msgspec.structs.replace(fact.ending, detail=detail))

    # --- contents ---------------------------------------------------------------------------------

    async def _content(self, spec: RunSpec) -> tuple[str, list[Input]]:
        """Return the digest of what a run executes and reads, and what it reads."""
        definition, inputs = self._definition(spec.task), list(self._inputs(spec))
        found = hashlib.sha256(definition.fingerprint_digest.encode())
        if spec.task in self._by_job:
            found.update(f"job {spec.job}\n".encode())
        for each in inputs:
            found.update(f"{each.link} {await self._digest(each)}\n".encode())
        return found.hexdigest()[:32], inputs

    def _inputs(self, spec: RunSpec) -> Iterator[Input]:
        state = self._state
        for link in self._definition(spec.task).links:
            for name in leaves_of(link.expr) if link.is_input else ():
                plain = isinstance(link.expr, In)
                named = link.name if plain else f"{link.name}.{name}"
                key = key_in(state.leaves[name], state.job_index[spec.job])
                if named not in spec.inputs or key < 0:
                    if plain:
                        raise Uncacheable(f"the value of input {link.name} is not known to the log")
                    continue  # a member of another part
                leaf = stored(state.leaves[name]).id
                yield Input(named, leaf, state.jobs[key], spec.inputs[named])

    async def _digest(self, each: Input) -> str:
        put = await self._runtime.contents.put_at(each.position)
        if (put.repository, put.job) != (each.leaf, each.key):
            raise Uncacheable(f"the values of input {each.link} are those of many jobs")
        digest = digest_of(put)
        if digest is not None:
            return digest
        if not self._contents.can_hash(each.leaf):
            raise Uncacheable(f"the values of input {each.link} have no digests")
        hashed = await self._contents.content(each.leaf, each.key)
        if hashed is None or hashed.version != put.version:
            raise DatataskError(f"the value of {each.key} in {each.leaf} is being changed")
        return hashed.digest

    def _is_as_begun(self, fact: Ended, inputs: list[Input], job: str, definition: TaskDef) -> bool:
        """Whether a run has read its inputs alone, as they were, and written its own outputs alone."""
        state, known = self._state, {}
        for each in inputs:
            known[each.leaf if each.key == job else f"{each.leaf}/{each.key}"] = each.position
            leaf = state.leaves[each.leaf]
            if get_at(leaf.positions, state.job_index[each.key]) != each.position:
                return False
        outputs = self._writes(definition) or {}
        own = {*outputs, definition.done, definition.pids}
        if any(write.job != job or write.repository not in own for write in fact.writes):
            return False
        return all(
            known.get(place) == position or place.partition("/")[0] in own
            for place, position in (fact.ending.reads or {}).items()
        )

    # --- outputs ----------------------------------------------------------------------------------

    @staticmethod
    def _writes(definition: TaskDef) -> dict[str, str] | None:
        """Return the links of the leaves that a task writes; None where one of them is no leaf."""
        outputs = [link for link in definition.links if link.is_output]
        if not all(isinstance(link.expr, In) for link in outputs):
            return None
        return {link.expr.leaf: link.name for link in outputs if isinstance(link.expr, In)}

    async def _taken(self, spec: RunSpec, content: str, source: Source) -> Ended | None:
        """Return the end of a run with the outputs of another one; None where not all are there as they were."""
        if any(self._images[name] != digest for name, digest in images_in(source.images).items()):
            return None
        outputs = self._writes(self._definition(spec.task)) or {}
        puts = await self._outputs(source, outputs)
        if puts is None or (source.job == spec.job and self._is_current(puts)):
            return None  # who wants a result again that is there has it computed
        writes = []
        for _, put in puts:
            assert isinstance(put, e.ValuePut), "nothing else was looked for"
            write = await self._copy(spec.job, put, outputs[put.repository])
            if write is None:
                return None
            writes.append(write)
        now = self._runtime.now()
        ending = e.Ending(
            outcome="succeeded",
            exit_code=source.exit_code,
            started_at=now,
            ended_at=now,
            where=PLACE,
            detail={e.REUSED: str(source.run), e.CONTENT: content},
        )
        return Ended(spec.run, ending, tuple(writes))

    async def _outputs(self, source: Source, outputs: Mapping[str, str]) -> list[e.Recorded] | None:
        """Return what a run put into its task's outputs; None where that is not one value each."""
        filters = Filters(jobs=(source.job,), runs=(source.run,))
        found: dict[str, e.Recorded] = {}
        async for one in self._runtime.log.read(source.run, source.ended, filters):
            if isinstance(one.event, e.ValuePut) and one.event.repository in outputs:
                found[one.event.repository] = one
        return list(found.values()) if found.keys() == outputs.keys() else None

    def _is_current(self, puts: Iterable[e.Recorded]) -> bool:
        """Whether the outputs are those that their job has now."""
        state = self._state
        return all(
            get_at(state.leaves[event.repository or ""].positions, state.job_index[event.job or ""])
            == position
            for position, event in puts
        )

    async def _copy(self, job: str, put: e.ValuePut, link: str) -> Write | None:
        """Return the write that gives a job the value that another one has; None where it is another one by now."""
        write = Write(repository=put.repository, job=job)
        medium = self._state.medium(put.repository)
        if medium == "foreign":
            digest = await self._still_there(put)
            if digest is None:
                return None
            if put.value:
                return msgspec.structs.replace(write, value=put.value)
            return await self._copied(write, put.job, digest)
        if digest_of(put) is None:
            raise Uncacheable(f"the values of output {link} have no digests")
        if put.digest is None or put.value:
            return msgspec.structs.replace(write, value=put.value, size=put.size)
        await asyncio.to_thread(self._runtime.log.blobs.intact, put.digest)
        return msgspec.structs.replace(write, digest=put.digest, size=put.size)

    async def _still_there(self, put: e.ValuePut) -> str | None:
        """Return the digest of a stored value that is as the run left it, else None."""
        now = await self._contents.content(put.repository, put.job)
        if now is None or put.version is None:
            return None
        if now.version == put.version:
            return now.digest
        filters = Filters(kinds=("ContentHashed",), repositories=(put.repository,), jobs=(put.job,))
        async for one in self._runtime.log.read(filters=filters):
            if isinstance(one.event, e.ContentHashed) and one.event.version == put.version:
                return now.digest if one.event.digest == now.digest else None
        return None

    async def _copied(self, write: Write, job: str, digest: str) -> Write | None:
        """Return the write with the stored bytes among the log's blobs: an engine that comes after this one has them, too."""
        store = self._stores[write.repository]
        assert isinstance(store, Hashable), "it has been hashed"
        path = await asyncio.to_thread(store.existing, job)
        if path is None:
            return None
        found, size = await asyncio.to_thread(self._runtime.log.blobs.put_file, path)
        return msgspec.structs.replace(write, digest=found, size=size) if found == digest else None

    # --- the runs that there were -----------------------------------------------------------------

    async def _recorded(self) -> None:
        """Return when the runs of earlier engines are known."""
        if self._read is None:
            self._read = asyncio.ensure_future(self._find())
        await asyncio.shield(self._read)

    async def _find(self) -> None:
        filters = Filters(kinds=("RunEnded",), tasks=tuple(self._tasks))
        async for one in self._runtime.log.read(filters=filters):
            self._note(one.position, one.event)

    def _see(self, batch: e.Batch) -> None:
        for position, event in enumerate(batch.events, batch.first):
            self._note(position, event)

    def _note(self, position: int, event: e.Event) -> None:
        if not isinstance(event, e.RunEnded) or event.task not in self._tasks or not event.detail:
            return
        images = event.detail.get(e.IMAGES, "")
        self._images |= images_in(images)
        if event.outcome == "succeeded" and (content := event.detail.get(e.CONTENT)):
            sources = self._sources.setdefault(content, [])
            if all(source.run != event.run for source in sources):
                sources.append(Source(event.run, position, event.job, event.exit_code, images))
                sources.sort()
                del sources[:-SOURCES_MAX]

    def _definition(self, task: str) -> TaskDef:
        return self._state.tasks[task].definition

    def _say(self, task: str, why: str) -> None:
        """Say once why a task's runs are begun although equal ones may have been."""
        if (task, why) not in self._told:
            self._told.add((task, why))
            logger.warning("%s: nothing is taken over from earlier runs: %s", task, why)
