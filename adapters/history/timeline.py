"""One job's way through every task, as a value: a lane a task, spans of time without gaps; as SVG and as text.

In: the spans, from `timeline_spans`. Out: the documented JSON; one self-contained SVG, which keeps apart by pattern and
height what it keeps apart by colour, and says in `<title>` and `<desc>` what it shows; lines of text, where each phase
has a character of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

import msgspec

from datatask.adapters.history.export.files import write_marked
from datatask.schema.units import duration_words, iso

Phase = Literal["waiting", "ready", "starting", "running", "retrying", "ended"]


EVENTS_MAX = 200_000
"""More events of one job than this are not drawn: the last ones are left out, and `cut` says so."""


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One stretch of a lane. Times are UTC nanoseconds of engine time; `ended_at` None: it still lasts.

    `position` is that of the event that began it. `run`, `attempt`, `where` and `identities` belong to starting and running;
    `outcome`, `exit_code` and `error` to the run that a running span, or the ended span after it, is about; `reused` is the run
    whose outputs it took over.
    """

    phase: Phase
    began_at: int
    ended_at: int | None
    position: int
    run: int | None = None
    attempt: int | None = None
    outcome: str | None = None
    exit_code: int | None = None
    error: str | None = None
    where: str = ""
    reused: int | None = None
    identities: dict[str, tuple[str, ...]] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the span in the shape of `trace --json`."""
        shape: dict[str, Any] = {
            "phase": self.phase,
            "began_at": iso(self.began_at),
            "ended_at": iso(self.ended_at),
            "seconds": None if self.ended_at is None else (self.ended_at - self.began_at) / 1e9,
            "position": self.position,
        }
        for name in ("run", "attempt", "outcome", "exit_code", "error", "where"):
            shape[name] = getattr(self, name) or None
        shape["exit_code"] = self.exit_code
        shape |= {"identities": self.identities} if self.identities else {}
        return shape if self.reused is None else {**shape, "reused": self.reused}


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """A task, and what the job did in it; no spans where the job never came near it."""

    task: str
    spans: tuple[Span, ...]


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """A job's lanes, in the order of the definition, as of the batch boundary `position`, at the time `until`.

    `cut`: the job has more events than are drawn.
    """

    job: str
    position: int
    until: int
    lanes: tuple[Lane, ...]
    cut: bool = False

    @property
    def began_at(self) -> int | None:
        """When the first span began, None where there is none."""
        return min((span.began_at for lane in self.lanes for span in lane.spans), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return `{"job", "position", "until", "tasks": {NAME: {"spans": […]}}, "cut"}`."""
        tasks = {lane.task: {"spans": [span.to_json() for span in lane.spans]} for lane in self.lanes}
        return {
            "job": self.job,
            "position": self.position,
            "until": iso(self.until),
            "tasks": tasks,
            "cut": self.cut,
        }

    def _repr_svg_(self) -> str:
        return draw([self])

    def __repr__(self) -> str:
        return "\n".join(lines(self))


# --- drawn ---

WIDTH = 960
ROW = 26
BAR = 16
TOP = 34
FOOT = 46
LABEL_CHARACTERS_MAX = 40
_CHARACTER = 7.2
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
_HEIGHTS = {"waiting": 4, "ready": 8, "starting": 12, "running": BAR, "retrying": 8, "ended": 2}
_STYLE = """
  .datatask-timeline { font: 12px ui-monospace, Menlo, Consolas, monospace; }
  .datatask-timeline .ground { fill: #ffffff; } .datatask-timeline text { fill: #1f2328; }
  .datatask-timeline .grid { stroke: #d0d7de; stroke-width: 1; }
  .datatask-timeline .waiting { fill: #8c959f; } .datatask-timeline .ready { fill: #bf8700; }
  .datatask-timeline .starting { fill: #54aeff; } .datatask-timeline .running { fill: #0969da; }
  .datatask-timeline .retrying { fill: #bc4c00; } .datatask-timeline .ended { fill: #8c959f; }
  .datatask-timeline .succeeded, .datatask-timeline .handed_over { fill: #1a7f37; }
  .datatask-timeline .bad { fill: #cf222e; } .datatask-timeline .cancelled { fill: #6e7781; }
  .datatask-timeline .mark { stroke: #cf222e; stroke-width: 2; fill: none; }
  @media (prefers-color-scheme: dark) {
    .datatask-timeline .ground { fill: #0d1117; } .datatask-timeline text { fill: #e6edf3; }
    .datatask-timeline .grid { stroke: #30363d; } .datatask-timeline .running { fill: #58a6ff; }
    .datatask-timeline .ready { fill: #d29922; } .datatask-timeline .succeeded { fill: #3fb950; }
    .datatask-timeline .bad { fill: #f85149; } .datatask-timeline .mark { stroke: #f85149; }
  }
"""


def draw(timelines: Sequence[Timeline]) -> str:
    """Return one SVG of these time lines, one below the other on one axis."""
    rows = [(line, lane) for line in timelines for lane in line.lanes if lane.spans]
    began = min((line.began_at for line in timelines if line.began_at is not None), default=0)
    until = max([began + 1, *(line.until for line in timelines)])
    labels = [_label(line, lane, len(timelines) > 1) for line, lane in rows]
    left = 16 + math.ceil(_CHARACTER * max((len(label) for label in labels), default=0))
    height = TOP + ROW * len(rows) + FOOT
    axis = _Axis(began, until, left)
    title = "Time line of " + ", ".join(line.job for line in timelines)
    about = f'role="img" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="datatask-timeline" {about} aria-labelledby="tl-title">',
        f'<title id="tl-title">{escape(title)}</title>',
        f"<desc>{escape(_described(rows))}</desc>",
        f"<style>{_STYLE}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{height}"/>',
        f'<text x="8" y="20">{escape(_heading(timelines, began, until))}</text>',
        *_ticks(axis, TOP + ROW * len(rows)),
    ]
    for index, ((line, lane), label) in enumerate(zip(rows, labels, strict=True)):
        parts += _row(axis, TOP + ROW * index, lane, label, line.until)
    parts += _legend(height - 10)
    return "\n".join([*parts, "</svg>"]) + "\n"


def save(path: Path, svg: str) -> None:
    """Write a drawing whole or not at all; over an earlier drawing, but over no other file."""
    write_marked(path, svg, mark="<svg", what="drawing")


class _Axis:
    """Maps engine time to x."""

    def __init__(self, began: int, until: int, left: int) -> None:
        self.began, self.until, self.left = began, until, left
        self.scale = (WIDTH - left - 16) / (until - began)

    def x(self, at: int) -> float:
        return round(self.left + (at - self.began) * self.scale, 2)


def _row(axis: _Axis, top: int, lane: Lane, label: str, until: int) -> Iterator[str]:
    yield f'<g role="listitem" aria-label="{escape(label, quote=True)}">'
    yield f'<text x="8" y="{top + BAR - 2}">{escape(label)}</text>'
    for span in lane.spans:
        yield from _span(axis, top, span, until)
    yield "</g>"


def _span(axis: _Axis, top: int, span: Span, until: int) -> Iterator[str]:
    end = span.ended_at if span.ended_at is not None else until
    tall = _HEIGHTS[span.phase]
    x, y = axis.x(span.began_at), top + (BAR - tall) / 2 + 2
    wide = max(1.5 if span.phase == "running" else 0.5, round(axis.x(end) - x, 2))
    title = f"<title>{escape(described(span, until))}</title>"
    yield f'<rect class="{_class(span)}" x="{x}" y="{y}" width="{wide}" height="{tall}">{title}</rect>'
    if span.phase == "running" and _class(span) == "bad":
        across = f"M{x + wide - 4} {y + 3}l6 {BAR - 6}m0 {6 - BAR}l-6 {BAR - 6}"
        yield f'<path class="mark" d="{across}"/>'


def _class(span: Span) -> str:
    if span.outcome in ("failed", "timed_out", "lost", "refused", "conflicted"):
        return "bad"
    return span.outcome or span.phase


def _ticks(axis: _Axis, bottom: int) -> Iterator[str]:
    seconds = (axis.until - axis.began) / 1e9
    step = next((step for step in _STEPS if seconds / step <= 8), 86400 * math.ceil(seconds / 8 / 86400))
    if seconds < 2:
        step = 10 ** math.floor(math.log10(seconds / 2))
    for number in range(int(seconds / step) + 1):
        x = axis.x(axis.began + int(number * step * 1e9))
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP - 6}" y2="{bottom}"/>'
        yield f'<text x="{x}" y="{bottom + 13}" text-anchor="middle">+{lasting(number * step)}</text>'


def _legend(y: int) -> Iterator[str]:
    x = 8
    names = ("waiting", "ready", "starting", "running", "retrying", "succeeded", "bad", "cancelled")
    for name in names:
        tall = _HEIGHTS.get(name, BAR) / 2 + 2
        text = "failed" if name == "bad" else name
        yield f'<rect class="{name}" x="{x}" y="{y - 4 - tall / 2}" width="12" height="{tall}"/>'
        yield f'<text x="{x + 16}" y="{y}">{text}</text>'
        x += 34 + math.ceil(_CHARACTER * len(text))


def _label(line: Timeline, lane: Lane, with_job: bool) -> str:
    text = f"{line.job} {lane.task}" if with_job else lane.task
    return text if len(text) <= LABEL_CHARACTERS_MAX else text[: LABEL_CHARACTERS_MAX - 1] + "…"


def _heading(timelines: Sequence[Timeline], began: int, until: int) -> str:
    job = timelines[0].job if len(timelines) == 1 else f"{len(timelines)} jobs"
    return (
        f"{job}: {iso(began)} + {lasting((until - began) / 1e9)}" if began else f"{job}: no task has seen it"
    )


def _described(rows: Sequence[tuple[Timeline, Lane]]) -> str:
    """Return each row in a sentence, for who cannot see the picture."""
    told_rows = []
    for line, lane in rows:
        runs = [span for span in lane.spans if span.phase == "running"]
        outcomes = ", ".join(span.outcome or "runs" for span in runs) or f"{lane.spans[-1].phase}"
        told_rows.append(f"{line.job} in {lane.task}: {len(runs)} runs ({outcomes}).")
    return " ".join(told_rows) or "No task has seen the job."


SIGNS = {"waiting": "·", "ready": "-", "starting": "~", "running": "#", "retrying": "r", "ended": "_"}
BAR_WIDTH = 60
_LEGEND = "  ".join(f"{sign} {phase}" for phase, sign in SIGNS.items())


def lines(line: Timeline, *, width: int = BAR_WIDTH) -> Iterator[str]:
    """Yield the time line as text; bars are `width` characters wide."""
    began = line.began_at
    if began is None:
        yield f"{line.job}: no task has seen it (position {line.position})"
        return
    total = lasting((line.until - began) / 1e9)
    yield f"{line.job}: {total}, {iso(began)} to {iso(line.until)} (position {line.position})"
    lanes = [lane for lane in line.lanes if lane.spans]
    name_width = max(len(lane.task) for lane in lanes)
    for lane in lanes:
        yield f"  {lane.task:<{name_width}} |{bar(lane, began, line.until, width)}|"
    yield f"  {'':<{name_width}}  {_LEGEND}"
    for lane in lanes:
        yield lane.task
        for span in lane.spans:
            yield f"  {described(span, line.until)}"
    if line.cut:
        yield f"{line.job} has more than {EVENTS_MAX} events: the later ones are not shown"


def bar(lane: Lane, began: int, until: int, width: int) -> str:
    """Return a lane as one line; a run is at least one character wide."""
    cells = [" "] * width
    for span in lane.spans:
        first = min(width - 1, _cell(span.began_at, began, until, width))
        for index in range(first, max(first + 1, _cell(_end(span, until), began, until, width))):
            if cells[index] != SIGNS["running"]:
                cells[index] = SIGNS[span.phase]
    return "".join(cells)


def described(span: Span, until: int) -> str:
    """Return a span in words: its phase, since when, how long, and what is known of its run."""
    seconds = lasting((_end(span, until) - span.began_at) / 1e9)
    lasts = f"for {seconds}" if span.ended_at is not None else f"since {seconds}"
    parts = [f"{span.phase:<8} {iso(span.began_at)} {lasts}"]
    if span.run is not None:
        attempt = f", attempt {span.attempt}" if span.attempt and span.attempt > 1 else ""
        parts.append(f"run {span.run}{attempt}")
    if span.where:
        parts.append(f"on {span.where}")
    if span.reused is not None:
        parts.append(f"taken over from run {span.reused}")
    if span.identities:
        parts.append(", ".join(f"{name} {' '.join(own)}" for name, own in span.identities.items()))
    if span.outcome is not None:
        parts.append(span.outcome + (f", exit code {span.exit_code}" if span.exit_code is not None else ""))
    if span.error and span.phase != "ended":
        parts.append(span.error.partition("\n")[0])
    return "; ".join(parts) + f" @{span.position}"


def lasting(seconds: float) -> str:
    """Return a duration for people, below a second in milliseconds."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return duration_words(seconds) if seconds else "0 s"


def _end(span: Span, until: int) -> int:
    return span.ended_at if span.ended_at is not None else max(until, span.began_at)


def _cell(at: int, began: int, until: int, width: int) -> int:
    return (at - began) * width // max(1, until - began)
