"""Small charts as inline SVG: bars of a distribution, levels over time, lanes of runs. No script, no foreign address.

In: numbers. Out: `<svg>` elements whose colours are classes of the page (`report`), each with a title that says its
content to a screen reader.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from datatask.schema.units import duration_words

WIDTH, LEFT, RIGHT, TOP = 900, 64, 8, 8
PLOT = WIDTH - LEFT - RIGHT
BINS = 30
LANES_MAX = 48
NAME_MAX = 36
LANE = 9
COLOURS = 8
"""Classes c0 … c7 for tasks and resources, again from the first for more."""


class Bar(NamedTuple):
    """One run in a lane: seconds, the number of its colour, and its tooltip."""

    begin: float
    end: float
    colour: int
    about: str


def span(seconds: float) -> str:
    """Return a length of time in words."""
    return duration_words(seconds) if seconds >= 1 or not seconds else f"{seconds * 1000:.3g} ms"


def histogram(values: Sequence[float], about: str) -> str:
    """Return the distribution of some lengths of time."""
    low, high = min(values), max(values)
    width = (high - low) / BINS or 1.0
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int((value - low) / width))] += 1
    height, most = 120, max(counts)
    bars = []
    for index, count in enumerate(counts):
        if count:
            tall = count / most * height
            at = LEFT + index * PLOT / BINS
            title = f"{span(low + index * width)} to {span(low + (index + 1) * width)}: {count}"
            bars.append(
                f'<rect class="c0" x="{at:.1f}" y="{TOP + height - tall:.1f}" width="{PLOT / BINS - 1:.1f}" '
                f'height="{tall:.1f}"><title>{escape(title)}</title></rect>'
            )
    left, right = span(low), span(high)
    foot = [_text(LEFT, TOP + height + 16, left), _text(WIDTH - RIGHT, TOP + height + 16, right, "end")]
    return _svg(
        about, TOP + height + 24, [_axis(height), *bars, *foot, _text(LEFT - 6, TOP + 10, str(most), "end")]
    )


def levels(
    rows: Sequence[tuple[float, float]], limit: float | None, end: float, colour: int, about: str
) -> str:
    """Return a level over time, filled below; `limit` is a line across."""
    height = 70
    top = max([limit or 0.0, *(level for _, level in rows), 1e-9])
    step = PLOT / max(1, len(rows))

    def y(level: float) -> float:
        return TOP + height - level / top * height

    path = [f"M{LEFT} {TOP + height}"]
    for index, (_, level) in enumerate(rows):
        at = LEFT + index * step
        path.append(f"L{at:.1f} {y(level):.1f}L{at + step:.1f} {y(level):.1f}")
    path.append(f"L{WIDTH - RIGHT} {TOP + height}Z")
    parts = [_axis(height), f'<path class="c{colour % COLOURS} area" d="{"".join(path)}"/>']
    if limit:
        parts.append(
            f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(limit):.1f}" y2="{y(limit):.1f}"/>'
        )
    parts.append(_text(LEFT - 6, TOP + 10, f"{top:.3g}", "end"))
    return _svg(about, TOP + height + 24, [*parts, *_times(end, TOP + height + 16)])


def lanes(bars: Iterable[Bar], end: float, about: str) -> str:
    """Return runs packed into as few lanes as they need, those that come after each other closely as one piece.

    Beyond `LANES_MAX` lanes the rest is left out, and said.
    """
    packed, left_out = _packed(bars)
    scale = PLOT / end if end else 0.0
    parts = []
    for lane, inside in enumerate(packed):
        y = TOP + lane * LANE
        for bar in _joined(inside, end / PLOT if end else 0.0):
            width = max(0.4, (bar.end - bar.begin) * scale)
            parts.append(
                f'<rect class="c{bar.colour % COLOURS}" x="{LEFT + bar.begin * scale:.1f}" y="{y}" width="{width:.1f}" '
                f'height="{LANE - 2}"><title>{escape(bar.about)}</title></rect>'
            )
    height = LANE * len(packed)
    title = f"{about}; {left_out} more runs at the same time are not shown" if left_out else about
    return _svg(title, TOP + height + 24, [_axis(height), *parts, *_times(end, TOP + height + 16)])


def pieces(bars: Sequence[Bar], end: float, about: str) -> str:
    """Return stretches that follow each other as one row."""
    height, scale = 26, PLOT / end if end else 0.0
    parts = [
        f'<rect class="c{bar.colour % COLOURS}" x="{LEFT + bar.begin * scale:.1f}" y="{TOP}" '
        f'width="{max(0.4, (bar.end - bar.begin) * scale):.1f}" height="{height}">'
        f"<title>{escape(bar.about)}</title></rect>"
        for bar in _joined(bars, end / PLOT if end else 0.0)
    ]
    return _svg(about, TOP + height + 24, [_axis(height), *parts, *_times(end, TOP + height + 16)])


def ranges(rows: Sequence[tuple[str, float, float, float]], about: str) -> str:
    """Return a bar for each (name, least, middle, most) with its range."""
    row, scale = 24, (PLOT - 200) / (max(most for *_, most in rows) or 1.0)
    left, parts = LEFT + 200, []
    for index, (name, least, middle, most) in enumerate(rows):
        y = TOP + index * row
        title = f"{name}: {span(least)} to {span(most)}, middle {span(middle)}"
        bar = f'<rect class="c0" x="{left}" y="{y + 3}" width="{middle * scale:.1f}" height="{row - 8}">'
        between = f'x1="{left + least * scale:.1f}" x2="{left + most * scale:.1f}"'
        label = name if len(name) <= NAME_MAX else name[: NAME_MAX - 1] + "…"
        parts.append(_text(left - 8, y + 15, label, "end"))
        parts.append(f"{bar}<title>{escape(title)}</title></rect>")
        parts.append(f'<line class="limit" {between} y1="{y + row / 2 - 1}" y2="{y + row / 2 - 1}"/>')
    return _svg(about, TOP + row * len(rows) + 8, parts)


def _packed(bars: Iterable[Bar]) -> tuple[list[list[Bar]], int]:
    """Return lanes in which no two bars overlap, and how many found no lane."""
    packed: list[list[Bar]] = []
    ends: list[tuple[float, int]] = []  # of lanes in use
    free: list[int] = []
    left_out = 0
    for bar in sorted(bars):
        while ends and ends[0][0] <= bar.begin:
            heapq.heappush(free, heapq.heappop(ends)[1])
        if free:
            lane = heapq.heappop(free)
        elif len(packed) < LANES_MAX:
            lane = len(packed)
            packed.append([])
        else:
            left_out += 1
            continue
        packed[lane].append(bar)
        heapq.heappush(ends, (bar.end, lane))
    return packed, left_out


def _joined(bars: Sequence[Bar], pixel: float) -> list[Bar]:
    """Return the bars, those closer than a pixel as one."""
    found: list[Bar] = []
    count = 1
    for bar in bars:
        last = found[-1] if found else None
        near = last is not None and bar.begin - last.end < pixel and bar.end - last.begin < 2 * pixel
        if last is not None and near:
            count += 1
            found[-1] = Bar(last.begin, bar.end, last.colour, f"{count} runs")
        else:
            count = 1
            found.append(bar)
    return found


def _svg(about: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg role="img" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}">'
        f"<title>{escape(about)}</title>{''.join(parts)}</svg>"
    )


def _axis(height: float) -> str:
    return f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{TOP + height}" y2="{TOP + height}"/>'


def _times(end: float, y: float) -> list[str]:
    return [
        _text(LEFT, y, "0"),
        _text(LEFT + PLOT / 2, y, span(end / 2), "middle"),
        _text(WIDTH - RIGHT, y, span(end), "end"),
    ]


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(text)}</text>'
