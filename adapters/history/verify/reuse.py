"""Runs that took over outputs, held against the runs that made these: whether code, inputs and outputs are equal.

In: a state, a reader, and a batch that is folded. Out: divergences. Values that have no digest in the log (files of which none was
recorded, payloads that were removed, what is archived) are passed over: nothing contradicts them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping

from datatask.adapters.history.lineage import digest_of
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.state import State
from datatask.engine.ports import Filters
from datatask.schema import events as e
from datatask.schema.definition import In
from datatask.schema.troubles import Divergence


def reused(reader: LogReader, state: State, batch: e.Batch) -> Iterator[Divergence]:
    """Yield what does not hold of the runs that end in a batch with the outputs of others."""
    for position, event in enumerate(batch.events, batch.first):
        if isinstance(event, e.RunEnded) and event.detail is not None and e.REUSED in event.detail:
            yield from _differences(reader, state, position, event, event.detail[e.REUSED])


def _differences(
    reader: LogReader, state: State, position: int, event: e.RunEnded, named: str
) -> Iterator[Divergence]:
    what = f"run {event.run} takes over"
    source = int(named) if named.isascii() and named.isdigit() else 0
    if not 0 < source < event.run:
        yield Divergence(position, what, f"a run before {event.run}", named)
        return
    if source <= reader.header.base:
        return
    launch, own = reader.fetch([source, event.run])
    if not isinstance(launch, e.LaunchDecided) or launch.task != event.task:
        yield Divergence(position, what, f"a run of {event.task}", f"position {source}")
        return
    assert isinstance(own, e.LaunchDecided), "the checker knows the run"
    ended, written = _written(reader, source, launch.job, position)
    if ended is None or ended.outcome != "succeeded":
        yield Divergence(
            position, what, f"run {source}, succeeded", "none" if ended is None else ended.outcome
        )
        return
    then, now = _fingerprint(state, event.task, source), _fingerprint(state, event.task, event.run)
    if then != now:
        yield Divergence(position, f"{what}: the fingerprint", then or "none", now or "none")
    for name in sorted(launch.inputs.keys() & own.inputs.keys()):
        digests = [_digest_at(reader, each.inputs[name]) for each in (launch, own)]
        if None not in digests and digests[0] != digests[1]:
            yield Divergence(position, f"{what}: input {name}", str(digests[0]), str(digests[1]))
    _, copies = _written(reader, event.run, event.job, position)
    for link in state.tasks[event.task].definition.links:
        leaf = link.expr.leaf if link.is_output and isinstance(link.expr, In) else ""
        if leaf in written and written[leaf] and copies.get(leaf, "") not in ("", written[leaf]):
            yield Divergence(position, f"{what}: output {link.name}", written[leaf], copies[leaf])
        elif leaf in written and leaf not in copies:
            yield Divergence(position, f"{what}: output {link.name}", "a value", "none")


def _written(
    reader: LogReader, run: int, job: str, until: int
) -> tuple[e.RunEnded | None, Mapping[str, str]]:
    """Return the end of a run, and by repository the digest of what it wrote; empty where none is recorded."""
    found: dict[str, str] = {}
    for one in reader.read(run, until, Filters(jobs=(job,), runs=(run,))):
        event = one.event
        if isinstance(event, e.ValuePut):
            found[event.repository] = digest_of(event) or found.get(event.repository, "")
        elif isinstance(event, e.StoreWriteIntended) and event.digest is not None:
            found[event.repository] = event.digest
        elif isinstance(event, e.RunEnded):
            return event, found
    return None, found


def _fingerprint(state: State, task: str, position: int) -> str:
    history = state.fingerprints.get(task, [])
    index = bisect_right(history, (position, "g"))  # digests are in hex
    return history[index - 1][1] if index else ""


def _digest_at(reader: LogReader, position: int) -> str | None:
    if position <= reader.header.base:
        return None
    (event,) = reader.fetch([position])
    return digest_of(event) if isinstance(event, e.ValuePut) else None
