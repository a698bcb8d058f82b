"""Two runs of a job in a task held against each other: code, inputs, outputs and outcome.

In: a log, and two runs. Out: a `Difference` for each thing that is not the same; values by content, with the lines that differ
where the log has both and they are small texts.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from datatask.adapters.history.stale import Checks, code_changes
from datatask.adapters.log.blobs import FileBlobs
from datatask.adapters.log.locate import blobs_path
from datatask.adapters.log.reader import LogReader
from datatask.adapters.yaml_text import dump_yaml
from datatask.engine.core.expressions import leaves_of
from datatask.engine.core.redaction import is_redacted
from datatask.engine.core.staleness import stored
from datatask.engine.core.state import State
from datatask.engine.ports import Filters
from datatask.schema import events as e
from datatask.schema.definition import PipelineDef
from datatask.schema.errors import NotPossibleError, UnknownNameError
from datatask.schema.values import decode_value

TEXT_BYTES_MAX = 1 << 16
LINES_MAX = 200
"""Lines of a value's difference that are kept."""


class Difference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that differs: `name` is a component of the code, a link, or a repository; `old` and `new` say how in short.

    `positions` are those of the two values in the log; `lines` are those that differ, with `-`, `+` or a space before them.
    """

    what: Literal["code", "input", "output", "outcome"]
    name: str
    old: str = ""
    new: str = ""
    positions: tuple[int | None, int | None] = (None, None)
    lines: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The difference as a line."""
        change = (
            f": {self.old or 'absent'} -> {self.new or 'absent'}"
            if self.old or self.new
            else " is another one"
        )
        return f"{self.what} {self.name}{change}"


class _Run(NamedTuple):
    """A run: its definition, its outcome, and the positions of the values that it read and wrote."""

    definition: PipelineDef
    outcome: str
    reads: dict[str, int]
    writes: dict[str, int]


def differences(
    reader: LogReader, state: State, task: str, job: str, runs: tuple[int, int]
) -> list[Difference]:
    """Return how the second of two runs differs from the first; `NotPossibleError` where one was archived."""
    checks = Checks(reader, state)
    before, after = (_run(reader, state, task, job, run) for run in runs)
    found = [
        Difference(what="code", name=name, old=old, new=new)
        for name, old, new in code_changes(before.definition, after.definition, task)
    ]
    found += _values(reader, checks, "input", before.reads, after.reads)
    found += _values(reader, checks, "output", before.writes, after.writes)
    if before.outcome != after.outcome:
        found.append(Difference(what="outcome", name=task, old=before.outcome, new=after.outcome))
    return found


def _run(reader: LogReader, state: State, task: str, job: str, run: int) -> _Run:
    if run <= reader.header.base:
        raise NotPossibleError(f"run {run} is in an archive", remedy="ask again with --with-archives")
    (launch,) = reader.fetch([run])
    assert isinstance(launch, e.LaunchDecided)
    filters = Filters(kinds=("RunEnded", "ValuePut"), jobs=(job,))
    reads, writes, outcome = dict(launch.inputs), dict[str, int](), "runs"
    for position, event in reader.read(run, state.position, filters):
        if event.run != run:
            continue
        if isinstance(event, e.ValuePut):
            writes[event.repository] = position
        elif isinstance(event, e.RunEnded):
            outcome = str(event.outcome)
            reads |= _by_link(state, task, event.reads or {})
            break
    back = reader.read_back(0, run, Filters(kinds=("PipelineDefined",)), page_rows=1)
    defined = next((one.event for one in back), None)
    definition = defined.definition if isinstance(defined, e.PipelineDefined) else PipelineDef()
    done = next((one.done for one in definition.tasks if one.name == task), None)
    writes.pop(done or "", None)
    return _Run(definition, outcome, reads, writes)


def _by_link(state: State, task: str, reads: dict[str, int]) -> dict[str, int]:
    """Return what a run really read under the names of its links, as far as they have one."""
    links = {
        stored(state.leaves[leaf]).id: link.name
        for link in state.tasks[task].definition.links
        for leaf in (leaves_of(link.expr) if link.is_input else ())
    }
    return {links.get(name, name): position for name, position in reads.items()}


def _values(
    reader: LogReader,
    checks: Checks,
    what: Literal["input", "output"],
    old: dict[str, int],
    new: dict[str, int],
) -> Iterator[Difference]:
    for name in sorted(old.keys() | new.keys()):
        positions = old.get(name), new.get(name)
        if positions[0] == positions[1]:
            continue
        before, after = (
            None if at is None or at <= reader.header.base else reader.fetch([at])[0] for at in positions
        )
        if (contents := (checks.content(before), checks.content(after)))[0] != contents[1]:
            yield Difference(
                what=what, name=name, old=contents[0], new=contents[1], positions=positions,
                lines=tuple(_lines(reader, before, after)),
            )  # fmt: skip


def _lines(reader: LogReader, before: e.Event | None, after: e.Event | None) -> list[str]:
    texts = [_text(reader, event) for event in (before, after)]
    if texts[0] is None or texts[1] is None:
        return []
    compared = difflib.unified_diff(texts[0].splitlines(), texts[1].splitlines(), lineterm="", n=2)
    return list(compared)[2 : LINES_MAX + 2]  # the first two name files


def _text(reader: LogReader, event: e.Event | None) -> str | None:
    """Return a value as text; None where the log does not have it, or it is no text or a large one."""
    if not isinstance(event, e.ValuePut) or is_redacted(event):
        return None
    if event.value:
        return _yaml(decode_value(event.value))
    path = None if event.digest is None else _blob(reader, event.digest)
    if path is None or path.stat().st_size > TEXT_BYTES_MAX:
        return None
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        return None


def _yaml(document: Any) -> str | None:
    try:
        return dump_yaml(document, "a value").decode()
    except NotPossibleError:
        return None


def _blob(reader: LogReader, digest: str) -> Path | None:
    try:
        return FileBlobs(blobs_path(reader.path)).path(digest)
    except UnknownNameError:
        return None
