"""Runs as OpenLineage events: START, then COMPLETE, FAIL or ABORT, each with the datasets it read and wrote.

In: a reader, a state at a batch boundary, and `Wanted`. Out: documents of the OpenLineage specification 2-0-2, in the
log's order, from one pass that keeps only what is open. A task is a job of the namespace that the pipeline's name is;
a repository is a dataset; a run's id is made from the log's identity and the run's position, so exporting again
gives the same ids. The engine's own sessions are the runs that all others name as their parent. What OpenLineage has no
word for (positions, attempts, which job's value) is in facets of ours, `datatask_run` and `datatask_values`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple
from urllib.parse import quote

from datatask.adapters.history.events import Selection, bounds
from datatask.adapters.history.export.tables import OPTIONS, Wanted
from datatask.adapters.history.lineage import digest_of, size_of
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.state import State
from datatask.engine.ports import EVERYTHING, Filters
from datatask.schema import definition as d
from datatask.schema import events as e
from datatask.schema.errors import NotPossibleError
from datatask.schema.units import iso
from datatask.schema.version import VERSION

PRODUCER = f"urn:datatask:engine:{VERSION}"
SPEC = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
FACETS = {
    "parent": "https://openlineage.io/spec/facets/1-0-1/ParentRunFacet.json#/$defs/ParentRunFacet",
    "nominalTime": "https://openlineage.io/spec/facets/1-0-1/NominalTimeRunFacet.json#/$defs/NominalTimeRunFacet",
    "errorMessage": "https://openlineage.io/spec/facets/1-0-1/ErrorMessageRunFacet.json#/$defs/ErrorMessageRunFacet",
    "processing_engine": "https://openlineage.io/spec/facets/1-1-1/ProcessingEngineRunFacet.json#/$defs/ProcessingEngineRunFacet",
    "jobType": "https://openlineage.io/spec/facets/2-0-2/JobTypeJobFacet.json#/$defs/JobTypeJobFacet",
    "dataSource": "https://openlineage.io/spec/facets/1-0-1/DatasourceDatasetFacet.json#/$defs/DatasourceDatasetFacet",
    "version": "https://openlineage.io/spec/facets/1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet",
    "datatask_run": "urn:datatask:facets:1:run",
    "datatask_values": "urn:datatask:facets:1:values",
}
"""Facet -> its `_schemaURL`."""

EVENT_TYPES = {
    "succeeded": "COMPLETE",
    "handed_over": "COMPLETE",
    "cancelled": "ABORT",
    "failed": "FAIL",
    "timed_out": "FAIL",
    "lost": "FAIL",
    "conflicted": "FAIL",
    "refused": "FAIL",
}
"""Outcome -> how OpenLineage says that a run has ended."""

_FRAME = ("EngineOpened", "EngineClosed", "PipelineDefined")
_KINDS = (
    *_FRAME,
    "LaunchDecided",
    "RunStarted",
    "RunAdopted",
    "RunEnded",
    "ValuePut",
)
_PAGE = 2_000
_VALUES_SHOWN_MAX = 1_000
"""The number of values of one dataset that a facet lists; `count` has the number of all."""


class Shown(NamedTuple):
    """A value as a run's dataset shows it."""

    position: int
    repository: str
    job: str
    digest: str | None
    size: int | None
    link: str | None = None
    decided: bool = False
    read: bool = False


class _OpenRun:
    """A run between its decision and its end."""

    def __init__(self, decided: e.LaunchDecided, parent: str | None) -> None:
        self.decided = decided
        self.parent = parent
        self.started: e.RunStarted | e.RunAdopted | None = None
        self.inputs: list[Shown] = []
        self.outputs: list[Shown] = []


def run_events(reader: LogReader, state: State, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Yield the events of the runs that were decided in the span that is wanted, and of the engine's sessions in it."""
    for name in sorted(wanted.used() - {"tasks", "jobs", "runs"}):
        raise NotPossibleError(
            f"{OPTIONS[name]} does not filter OpenLineage events",
            remedy="use --task, --job, --run, --since, --until",
        )
    return _Story(reader, state, wanted).events()


class _Story:
    def __init__(self, reader: LogReader, state: State, wanted: Wanted) -> None:
        self._reader, self._state, self._wanted = reader, state, wanted
        self._first, self._last = bounds(reader, Selection(EVERYTHING, wanted.since, wanted.until))
        self._repositories: dict[str, d.RepositoryDef] = {}
        self._open: dict[int, _OpenRun] = {}
        self._values: dict[int, Shown] = {}
        self._base = reader.header.base
        self._session: tuple[int, str] | None = None
        self._with_sessions = not wanted.used()
        self._namespace = reader.pipeline
        self._ids = _space(reader.uuid)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the documents; what lies before the span is looked through for the definition and the session."""
        before = self._reader.read(0, self._first - 1, Filters(kinds=_FRAME))
        within = self._reader.read(self._first - 1, self._state.position, Filters(kinds=_KINDS))
        for page in _pages(chain(before, within)):
            self._fetch(page)
            for position, event in page:
                if position > self._last and not self._open:
                    return
                yield from self._documents(position, event)

    def _documents(self, position: int, event: e.Event) -> Iterator[dict[str, Any]]:
        match event:
            case e.PipelineDefined():
                self._repositories |= {leaf.id: leaf for leaf in event.definition.repositories}
            case e.EngineOpened():
                yield from self._opened(position, event)
            case e.EngineClosed():
                yield from self._closed(position, event.at, "COMPLETE")
            case e.LaunchDecided():
                self._decided(position, event)
            case e.RunStarted() | e.RunAdopted() if event.run in self._open:
                yield from self._started(event.run, event)
            case e.ValuePut() if event.run in self._open:
                self._open[event.run].outputs.append(_shown(position, event))
            case e.RunEnded() if event.run in self._open:
                yield from self._ended(event)

    def _fetch(self, page: list[e.Recorded]) -> None:
        """Get the values that the runs of a page were decided on or read, as far as the log still has them."""
        wanted: set[int] = set()
        for _, event in page:
            if isinstance(event, e.LaunchDecided):
                wanted.update(event.inputs.values())
            elif isinstance(event, e.RunEnded) and event.reads:
                wanted.update(event.reads.values())
        positions = sorted(position for position in wanted if position > self._base)
        found = zip(positions, self._reader.fetch(positions), strict=True) if positions else ()
        self._values = {
            position: _shown(position, event) for position, event in found if isinstance(event, e.ValuePut)
        }

    # --- sessions of the engine -------------------------------------------------------------------

    def _opened(self, position: int, event: e.EngineOpened) -> Iterator[dict[str, Any]]:
        yield from self._closed(position, event.last_sign or event.at, "ABORT")  # the one before died
        session = str(uuid.uuid5(self._ids, f"engine {event.epoch}"))
        self._session = (position, session)
        if self._tells(position):
            yield self._session_event("START", event.at, session)

    def _closed(self, position: int, at: int, kind: str) -> Iterator[dict[str, Any]]:
        if self._session is not None and self._tells(position):
            yield self._session_event(kind, at, self._session[1])
        self._session = None

    def _tells(self, position: int) -> bool:
        return self._with_sessions and self._first <= position <= self._last

    def _session_event(self, kind: str, at: int, session: str) -> dict[str, Any]:
        facets = {"processing_engine": _facet("processing_engine", version=VERSION, name="datatask")}
        return _event(
            kind,
            at,
            run={"runId": session, "facets": facets},
            job=self._job(self._namespace, "PIPELINE"),
        )

    # --- runs -------------------------------------------------------------------------------------

    def _decided(self, position: int, event: e.LaunchDecided) -> None:
        filters = self._wanted.filters
        if not (
            self._first <= position <= self._last
            and (not filters.tasks or event.task in filters.tasks)
            and (not filters.jobs or event.job in filters.jobs)
            and (not filters.runs or position in filters.runs)
        ):
            return
        run = self._open[position] = _OpenRun(event, self._session[1] if self._session is not None else None)
        links = {value: link for link, value in event.inputs.items()}
        run.inputs = [
            self._values[value]._replace(link=links[value], decided=True)
            for value in sorted(links)
            if value in self._values
        ]

    def _started(self, run: int, event: e.RunStarted | e.RunAdopted) -> Iterator[dict[str, Any]]:
        if self._open[run].started is None:
            self._open[run].started = event
            yield self._run_event("START", event.at, run, None)

    def _ended(self, event: e.RunEnded) -> Iterator[dict[str, Any]]:
        run = self._open[event.run]
        if (
            run.started is None
        ):  # refused, or lost, before it began: the specification wants a START all the same
            yield self._run_event("START", run.decided.at, event.run, None)
        read = set((event.reads or {}).values())
        known = {shown.position for shown in run.inputs}
        run.inputs = [shown._replace(read=shown.position in read) for shown in run.inputs] + [
            self._values[value]._replace(read=True) for value in sorted(read - known) if value in self._values
        ]
        yield self._run_event(EVENT_TYPES[event.outcome], event.at, event.run, event)
        del self._open[event.run]

    def _run_event(self, kind: str, at: int, number: int, ended: e.RunEnded | None) -> dict[str, Any]:
        run = self._open[number]
        facets = {
            "nominalTime": _facet("nominalTime", nominalStartTime=iso(run.decided.at)),
            "processing_engine": _facet("processing_engine", version=VERSION, name="datatask"),
            "datatask_run": self._own(number, run, ended),
        }
        if run.parent is not None:
            parent = {"namespace": self._namespace, "name": self._namespace}
            facets["parent"] = _facet("parent", run={"runId": run.parent}, job=parent)
        if ended is not None and ended.error is not None:
            facets["errorMessage"] = _error(ended.error)
        return _event(
            kind,
            at,
            run={"runId": str(uuid.uuid5(self._ids, f"run {number}")), "facets": facets},
            job=self._job(run.decided.task, "TASK"),
            inputs=self._datasets(run.inputs),
            outputs=self._datasets(run.outputs if ended is not None else []),
        )

    def _own(self, number: int, run: _OpenRun, ended: e.RunEnded | None) -> dict[str, Any]:
        started = run.started
        where = (ended.where if ended is not None else "") or (started.where if started is not None else "")
        return _facet(
            "datatask_run",
            log=self._reader.uuid,
            run=number,
            job=run.decided.job,
            episode=run.decided.episode,
            attempt=run.decided.attempt,
            origin=run.decided.origin,
            actor=run.decided.actor,
            where=where or None,
            outcome=ended.outcome if ended is not None else None,
            exitCode=ended.exit_code if ended is not None else None,
            decidedAt=iso(run.decided.at),
            startedAt=iso(started.at) if started is not None else None,
            endedAt=iso(ended.at) if ended is not None else None,
        )

    def _job(self, name: str, kind: str) -> dict[str, Any]:
        facet = _facet("jobType", processingType="BATCH", integration="DATATASK", jobType=kind)
        return {"namespace": self._namespace, "name": name, "facets": {"jobType": facet}}

    # --- datasets ---------------------------------------------------------------------------------

    def _datasets(self, values: Iterable[Shown]) -> list[dict[str, Any]]:
        """Return a dataset a repository, with the values that this run had to do with."""
        by_repository: dict[str, list[Shown]] = {}
        for value in values:
            by_repository.setdefault(value.repository, []).append(value)
        return [self._dataset(name, found) for name, found in by_repository.items()]

    def _dataset(self, name: str, values: list[Shown]) -> dict[str, Any]:
        last = max(values)
        version = f"sha256:{last.digest}" if last.digest is not None else f"position:{last.position}"
        return {
            "namespace": self._namespace,
            "name": name,
            "facets": {
                "dataSource": _facet("dataSource", name=name, uri=self._uri(name)),
                "version": _facet("version", datasetVersion=version),
                "datatask_values": _facet(
                    "datatask_values",
                    count=len(values),
                    values=[value._asdict() for value in values[:_VALUES_SHOWN_MAX]],
                ),
            },
        }

    def _uri(self, name: str) -> str:
        """Return where a repository's values live: its locator as a URI, or this log."""
        leaf = self._repositories.get(name)
        locator = leaf.locator if leaf is not None and leaf.locator else ""
        if "://" in locator:
            return quote(locator, safe=":/?#[]@!$&'()*+,;=%~")
        if locator.startswith("/"):
            return "file://" + quote(locator)
        place = f"{leaf.medium}:{locator}" if leaf is not None and locator else name
        return f"urn:datatask:log:{self._reader.uuid}:{quote(place, safe='')}"


def _pages(events: Iterable[e.Recorded]) -> Iterator[list[e.Recorded]]:
    """Yield events in lists of some thousands."""
    page: list[e.Recorded] = []
    for recorded in events:
        page.append(recorded)
        if len(page) >= _PAGE:
            yield page
            page = []
    yield page


def _space(log: str) -> uuid.UUID:
    """Return the name space of a log's ids: its own identity, which is a UUID."""
    try:
        return uuid.UUID(log)
    except ValueError:
        return uuid.uuid5(uuid.NAMESPACE_OID, f"datatask log {log}")


def _shown(position: int, event: e.ValuePut) -> Shown:
    return Shown(position, event.repository, event.job, digest_of(event), size_of(event))


def _error(error: e.ErrorInfo) -> dict[str, Any]:
    more = {"stackTrace": error.traceback} if error.traceback else {}
    return _facet(
        "errorMessage", message=f"{error.type}: {error.message}", programmingLanguage="PYTHON", **more
    )


def _facet(facet: str, /, **fields: Any) -> dict[str, Any]:
    return {"_producer": PRODUCER, "_schemaURL": FACETS[facet], **fields}


def _event(
    kind: str,
    at: int,
    *,
    run: dict[str, Any],
    job: dict[str, Any],
    inputs: list[dict[str, Any]] | None = None,
    outputs: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    return {
        "eventType": kind,
        "eventTime": iso(at),
        "run": run,
        "job": job,
        "inputs": inputs or [],
        "outputs": outputs or [],
        "producer": PRODUCER,
        "schemaURL": SPEC,
    }
