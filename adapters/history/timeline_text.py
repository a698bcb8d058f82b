"""A time line as text: a bar a task where there is room for it, then every span with its time and position.

In: a `Timeline`. Out: lines of plain text. Each phase has a character of its own, so that nothing rests on colour.
"""

from __future__ import annotations

from collections.abc import Iterator

from datatask.adapters.history.timeline import EVENTS_MAX, Lane, Span, Timeline
from datatask.adapters.history.when import iso, words

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
            yield f"  {told(span, line.until)}"
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


def told(span: Span, until: int) -> str:
    """Return a span in words: its phase, since when, how long, and what is known of its run."""
    seconds = lasting((_end(span, until) - span.began_at) / 1e9)
    lasts = f"for {seconds}" if span.ended_at is not None else f"since {seconds}"
    parts = [f"{span.phase:<8} {iso(span.began_at)} {lasts}"]
    if span.run is not None:
        attempt = f", attempt {span.attempt}" if span.attempt and span.attempt > 1 else ""
        parts.append(f"run {span.run}{attempt}")
    if span.where:
        parts.append(f"on {span.where}")
    if span.outcome is not None:
        parts.append(span.outcome + (f", exit code {span.exit_code}" if span.exit_code is not None else ""))
    if span.error and span.phase != "ended":
        parts.append(span.error.partition("\n")[0])
    return "; ".join(parts) + f" @{span.position}"


def lasting(seconds: float) -> str:
    """Return a duration for people, below a second in milliseconds."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return words(seconds) if seconds else "0 s"


def _end(span: Span, until: int) -> int:
    return span.ended_at if span.ended_at is not None else max(until, span.began_at)


def _cell(at: int, began: int, until: int, width: int) -> int:
    return (at - began) * width // max(1, until - began)
