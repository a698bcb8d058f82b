"""A simulation as one HTML page that opens offline: each scenario's result, and its critical path and bottleneck.

In: results whose runs were kept, and the recording. Out: a page without scripts, fonts or foreign addresses, in the
reader's light or dark scheme. Over time it shows the first replication, in sum all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from datatask.adapters.history.export.files import write_marked
from datatask.adapters.sim import charts
from datatask.adapters.sim.bottleneck import critical_path, in_sum, relieve
from datatask.adapters.sim.charts import Bar, span
from datatask.adapters.sim.result import in_short
from datatask.schema.units import SECOND

if TYPE_CHECKING:
    from datatask.adapters.sim.recording import Recording
    from datatask.adapters.sim.result import Result
    from datatask.schema.definition import PipelineDef

MARK = "<!doctype html><!-- datatask simulate -->"
PATH_ROWS = 12
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --ground: #fff; --line: #d0d7de; --soft: #656d76; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --ground: #0d1117; --line: #30363d; --soft: #8d96a0; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 940px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { margin: 1.5rem 0 .3rem; font-size: 1rem; } h4 { margin: .6rem 0 0; font-weight: normal; color: var(--soft); }
table { border-collapse: collapse; } th, td { padding: .15rem .8rem .15rem 0; text-align: right; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: normal; }
svg { max-width: 100%; height: auto; } svg text { font-size: 11px; fill: var(--soft); }
.axis { stroke: var(--line); } .limit { stroke: #cf222e; stroke-width: 1.5; stroke-dasharray: 4 3; }
.area { fill-opacity: .55; } .big { font-size: 1.2rem; } .key { display: inline-block; margin-right: 1rem; }
.key svg { vertical-align: -1px; }
.c0 { fill: #0969da; } .c1 { fill: #1a7f37; } .c2 { fill: #bf8700; } .c3 { fill: #8250df; }
.c4 { fill: #bc4c00; } .c5 { fill: #1b7c83; } .c6 { fill: #bf3989; } .c7 { fill: #8c959f; }
"""


def save(
    path: Path, results: Sequence[Result], definition: PipelineDef, recording: Recording | None = None
) -> None:
    """Write the page whole or not at all; over an earlier report, but over no other file."""
    write_marked(path, page(results, definition, recording), mark=MARK, what="report")


def page(results: Sequence[Result], definition: PipelineDef, recording: Recording | None = None) -> str:
    """Return the page; relieving each scenario's bottleneck is simulated for it."""
    title = f"Simulation of {definition.name}"
    parts = [f"<h1>{escape(title)}</h1>"]
    if len(results) > 1:
        parts += _compared(results)
    for result in results:
        parts += _scenario(result, definition, recording)
    return (
        f'{MARK}\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _compared(results: Sequence[Result]) -> Iterator[str]:
    rows = []
    for result in results:
        spans = sorted(each.makespan for each in result.summaries)
        rows.append((result.scenario.name, spans[0], spans[len(spans) // 2], spans[-1]))
    yield "<h3>How long each scenario takes</h3>"
    yield charts.ranges(rows, "Makespan of each scenario, with its range over replications")
    yield _table(
        ("scenario", "middle", "least", "most", "bottleneck"),
        [
            (name, span(middle), span(least), span(most), result.bottleneck)
            for (name, least, middle, most), result in zip(rows, results, strict=True)
        ],
    )


def _scenario(result: Result, definition: PipelineDef, recording: Recording | None) -> Iterator[str]:
    summary = in_short(result.summaries, result.scenario.name)
    makespan: dict[str, float] = summary["makespan"]  # type: ignore[assignment]
    yield f"<h2>{escape(result.scenario.name)}</h2>"
    yield (
        f'<p class="big">{summary["jobs"]} jobs take {escape(span(makespan["p50"]))}'
        f"{_spread(makespan, len(result.summaries))}.</p>"
    )
    for line in result.stuck:
        yield f"<p><strong>It cannot go on:</strong> {escape(line)}</p>"
    yield f"<p>{escape(_bottleneck(result, definition, recording))} {escape(_longest(result))}</p>"
    yield from (f"<p>{escape(note)}</p>" for note in result.notes)
    if len(result.summaries) > 1:
        yield "<h3>Makespan</h3>"
        yield charts.histogram(
            [each.makespan for each in result.summaries],
            f"Makespans of {len(result.summaries)} replications",
        )
    yield from _tasks(result)
    if result.records is None or not len(result.records):
        return
    end = (max(result.records.ended_at) - result.begin) / SECOND
    yield from _path(result, end)
    yield from _over_time(result, end)
    yield from _gantt(result, end)


def _spread(makespan: dict[str, float], replications: int) -> str:
    if replications == 1:
        return ""
    return (
        f" (of {replications} replications 95 % take at most {escape(span(makespan['p95']))}, "
        f"all from {escape(span(makespan['min']))} to {escape(span(makespan['max']))})"
    )


def _bottleneck(result: Result, definition: PipelineDef, recording: Recording | None) -> str:
    name = result.bottleneck
    if not name:
        return "Nothing ran."
    relief = relieve(definition, recording, result)
    if relief is None:
        return f"The bottleneck is {name}: no limit binds, it takes as long as its runs take."
    return (
        f"The bottleneck is {name}. Relieving it ({relief.change}) would take {span(relief.after)} in place of "
        f"{span(relief.before)}, {relief.saved:.0%} less; then {relief.next} binds."
    )


def _longest(result: Result) -> str:
    """Say what most of the critical path is, in the first replication."""
    if result.records is None or not len(result.records):
        return ""
    found = in_sum(critical_path(result))
    name, seconds = next(iter(found.items()), ("", 0.0))
    share = seconds / (sum(found.values()) or 1.0)
    return f"Of the critical path {share:.0%} is {name}." if name else ""


def _tasks(result: Result) -> Iterator[str]:
    columns = ("task", "runs", "failed", "wait, middle", "wait, 95 %", "run, middle", "run, 95 %")
    rows = [
        (
            row["task"],
            row["runs"],
            row["failed"],
            span(row["wait_p50"]),
            span(row["wait_p95"]),
            span(row["service_p50"]),
            span(row["service_p95"]),
        )
        for row in result.tasks()
    ]
    yield "<h3>Tasks</h3>"
    yield _table(columns, rows)


def _path(result: Result, end: float) -> Iterator[str]:
    steps = critical_path(result)
    numbers = _numbers(result)
    bars = [
        Bar(
            step.begin,
            step.end,
            numbers[step.task] if step.what == "running" else charts.COLOURS - 1,
            f"{step.what} {step.task} {step.job}: {span(step.seconds)}",
        )
        for step in steps
    ]
    yield "<h3>Critical path</h3>"
    yield _key(result, "waiting, starting, arriving")
    yield charts.pieces(bars, end, f"Critical path of {len(steps)} steps")
    rows = [
        (name, span(seconds), f"{seconds / end:.0%}" if end else "")
        for name, seconds in in_sum(steps).items()
    ]
    yield _table(("what", "time", "of all"), rows[:PATH_ROWS])


def _over_time(result: Result, end: float) -> Iterator[str]:
    yield "<h3>Utilisation over time</h3>"
    for index, (name, rows) in enumerate(_grouped(result.resources(), "resource").items()):
        limit = rows[0]["limit"]
        points = [(row["at"], row["used"]) for row in rows]
        yield f"<h4>{escape(name)} (limit {limit:g})</h4>"
        yield charts.levels(points, limit, end, index, f"Use of {name} over time, limit {limit:g}")
    yield "<h3>Jobs that wait</h3>"
    numbers = _numbers(result)
    for name, rows in _grouped(result.queues(), "task").items():
        points = [(row["at"], row["waiting"]) for row in rows]
        yield f"<h4>{escape(name)}</h4>"
        yield charts.levels(points, None, end, numbers[name], f"Jobs that wait for {name} over time")


def _gantt(result: Result, end: float) -> Iterator[str]:
    """Yield a chart for each resource: the runs that held some of it."""
    records = result.records
    assert records is not None
    tasks = result.definition.tasks
    holders: dict[str, set[int]] = {}
    for index, task in enumerate(tasks):
        for name in sorted({name for request in task.requests for name, amount in request.items() if amount}):
            if task.quota:
                holders.setdefault(f"{task.quota}.{name}", set()).add(index)
        if task.concurrency:
            holders.setdefault(f"{task.name}.concurrency", set()).add(index)
    for machine in sorted(set(records.where.values())):
        holders.setdefault(f"machine {machine}", set())
    if not holders:
        holders["all tasks"] = set(range(len(tasks)))
    yield "<h3>Runs by resource</h3>"
    yield _key(result)
    for resource, those in holders.items():
        place = resource.removeprefix("machine ") if not those else None
        bars = (
            Bar(
                max(0, records.started_at[index] - result.begin) / SECOND,
                (records.ended_at[index] - result.begin) / SECOND,
                records.task[index],
                f"{tasks[records.task[index]].name} {result.names[records.job[index]]}",
            )
            for index in range(len(records))
            if (records.task[index] in those if place is None else records.where.get(index) == place)
        )
        yield f"<h4>{escape(resource)}</h4>"
        yield charts.lanes(bars, end, f"Runs that hold {resource}, over time")


def _key(result: Result, rest: str = "") -> str:
    named = [(task.name, index) for index, task in enumerate(result.definition.tasks)]
    if rest:
        named.append((rest, charts.COLOURS - 1))
    return "".join(
        f'<span class="key"><svg width="10" height="10" aria-hidden="true">'
        f'<rect class="c{index % charts.COLOURS}" width="10" height="10"/></svg> {escape(name)}</span>'
        for name, index in named
    )


def _numbers(result: Result) -> dict[str, int]:
    return {task.name: index for index, task in enumerate(result.definition.tasks)}


def _grouped(rows: Sequence[dict[str, float]], name: str) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        found.setdefault(str(row[name]), []).append(row)
    return found


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
