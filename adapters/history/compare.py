"""A log under another definition: what would have been different, from the log alone.

In: a reader, how far, and the other definition: a value, a JSON file, or another log (its last definition). Out: a
`LogComparison`, with the differences in the documented shape. A log whose beginning is archived is compared from its
base on. What is compared is in `engine/compare/definitions`; changes that follow from changes are simulation's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from datatask.adapters.history.states import beginning, collector_off
from datatask.adapters.log.reader import LogReader
from datatask.engine.compare.definitions import Comparison
from datatask.engine.compare.facts import Difference, Renaming
from datatask.engine.core.expressions import leaves_of
from datatask.engine.core.state import State
from datatask.engine.ports import Filters
from datatask.schema.definition import VIEW_NAMES, DerivedDef, PipelineDef, view_id
from datatask.schema.errors import InvalidValueError, NotPossibleError
from datatask.schema.events import PipelineDefined

Progress = Callable[[int, int], None]
"""Called with (events done, events in all)."""

_SQLITE = b"SQLite format 3\0"


class OtherDefinition(NamedTuple):
    """The other definition, and the renames that it declares (`was:`)."""

    definition: PipelineDef
    was: tuple[Renaming, ...] = ()


class LogComparison(NamedTuple):
    """The state as recorded, what differs, and how many events the other definition has no place for, by kind."""

    state: State
    differences: list[dict[str, Any]]
    skipped: dict[str, int]


def compare(
    reader: LogReader, other: OtherDefinition, until: int | None = None, progress: Progress | None = None
) -> LogComparison:
    """Fold a log up to the batch boundary `until` (the head) under both definitions, without any checkpoint."""
    last = reader.head if until is None else until
    with collector_off():
        base = beginning(reader)
        renames = list(reader.read(base.position, last, Filters(kinds=("Renamed",))))
        comparison = Comparison(
            other.definition, renames=renames, was=other.was, base=base if base.position else None
        )
        for batch in reader.batches(base.position, last):
            comparison.take(batch)
            if progress is not None:
                progress(batch.last, last)
    return LogComparison(comparison.here, [row(one) for one in comparison.differences()], comparison.skipped)


def row(difference: Difference) -> dict[str, Any]:
    """Return a difference as documented."""
    return {
        "task": difference.task,
        "repository": difference.repository,
        "what": difference.what,
        "where": difference.where,
        "first_position": difference.first_position,
        "jobs": {
            "count": len(difference.jobs),
            "at_end": len(difference.now),
            "sample": difference.sample,
        },
        "explain": difference.explain,
    }


def texts(differences: list[dict[str, Any]], skipped: dict[str, int]) -> Iterator[str]:
    """Yield what people read: where the two part, then a paragraph for each difference."""
    if not differences:
        yield "the other definition makes no difference"
    else:
        first = min(one["first_position"] for one in differences)
        yield f"the other definition makes a difference from position {first} on:"
    for one in differences:
        if one["what"] == "only_in":
            yield one["explain"]
            continue
        count, left = one["jobs"]["count"], one["jobs"]["at_end"]
        jobs = "1 job" if count == 1 else f"{count} jobs"
        still = f", {left} at the end" if one["what"] != "launched" else ""
        yield f"{one['task']}: {jobs} {one['explain']} (first at position {one['first_position']}{still})"
        for reason, sample in _by_reason(one["jobs"]["sample"]).items():
            yield f"  {reason}: {', '.join(sample)}"
        if count > len(one["jobs"]["sample"]):
            yield f"  and {count - len(one['jobs']['sample'])} more"
    if skipped:
        parts = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
        yield f"left out, being about what the other definition does not have: {parts}"


def _by_reason(sample: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return job and position of each in a sample, by what explains them."""
    found: dict[str, list[str]] = {}
    for entry in sample:
        found.setdefault(entry["explain"], []).append(f"{entry['job']} at {entry['position']}")
    return found


# --- where the other definition comes from ----------------------------------------------------------


class Declaring(Protocol):
    """A pipeline, as far as it matters here."""

    def declare(self) -> Any:
        """Return an object with `definition` and `renamed`, the former names."""


def other_definition(other: PipelineDef | Declaring | str | Path) -> OtherDefinition:
    """Return a definition as one to compare with; `CallerError` for a file that holds none."""
    if isinstance(other, PipelineDef):
        wrong = incomplete(other)
        if wrong:
            raise InvalidValueError(wrong, remedy="declare it, or name another")
        return OtherDefinition(other)
    if isinstance(other, str | Path):
        found = read_definition(Path(other))
        if found is None:
            raise InvalidValueError(
                "this is neither a definition in JSON nor a log",
                where=str(other),
                remedy="name one of the two",
            )
        return found
    declared = other.declare()
    return OtherDefinition(declared.definition, tuple(declared.renamed))


def read_definition(path: Path) -> OtherDefinition | None:
    """Return the definition in a JSON file or in another log; None for a file that is neither."""
    try:
        with open(path, "rb") as file:
            begins = file.read(len(_SQLITE))
    except OSError:
        return None
    if begins == _SQLITE:
        return OtherDefinition(_of_log(path))
    return OtherDefinition(_of_json(path)) if path.suffix == ".json" else None


def _of_log(path: Path) -> PipelineDef:
    with LogReader(path) as reader:
        last = reader.query(
            "SELECT max(position) FROM log WHERE kind = (SELECT id FROM names WHERE text = 'PipelineDefined')"
        ).rows[0][0]
        if last is None:
            return _of_base(reader)
        (event,) = reader.fetch([last])
    assert isinstance(event, PipelineDefined)
    return event.definition


def _of_base(reader: LogReader) -> PipelineDef:
    state = beginning(reader)
    if not state.defined_at:
        raise NotPossibleError(
            "this log has no definition yet", where=reader.url, remedy="name a log in which a pipeline ran"
        )
    return state.definition


def _of_json(path: Path) -> PipelineDef:
    """Return the definition in a file: as it is, or within an event as `datatask log --json` prints it."""
    try:
        document = msgspec.json.decode(path.read_bytes())
        for key in ("data", "definition"):
            if isinstance(document, dict) and key in document:
                document = document[key]
        definition = msgspec.convert(document, PipelineDef)
    except (OSError, msgspec.MsgspecError) as error:
        raise InvalidValueError(
            f"this is no definition: {error}",
            where=str(path),
            remedy="use the `definition` of a PipelineDefined event, as `datatask log --json` prints it",
        ) from error
    wrong = incomplete(definition)
    if wrong:
        raise InvalidValueError(wrong, where=str(path), remedy="declare it, or name another")
    return definition


def incomplete(definition: PipelineDef) -> str:
    """Return which name a definition uses and does not declare, or the empty string."""
    leaves = {leaf.id for leaf in definition.repositories}
    leaves |= {view_id(task.name, view) for task in definition.tasks for view in VIEW_NAMES}
    quotas = {quota.name for quota in definition.quotas}
    for task in definition.tasks:
        names = leaves_of(task.ready, *(link.expr for link in task.links))
        for name in (*names, *filter(None, (task.done, task.pids))):
            if name not in leaves:
                return f"the task {task.name} uses the repository {name}, which is not declared"
        if task.quota is not None and task.quota not in quotas:
            return f"the task {task.name} uses the quota {task.quota}, which is not declared"
    for leaf in definition.repositories:
        rule = leaf.derived
        if isinstance(rule, DerivedDef):
            for name in leaves_of(*rule.conditions):
                if name not in leaves:
                    return f"the repository {leaf.id} is made of {name}, which is not declared"
    return ""
