"""The report: what was found goes in as plain data, Markdown and a chart in SVG come out."""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

ROWS = 15
SHORT_NAMES = {"Lib": "single modules"}
LEFT_OUT = {"test"}
"""Half of all lines: beside it nothing else could be seen in the chart."""


@dataclass(frozen=True)
class Findings:
    """By job: what was measured, what is a copy of what, and why a file could not be parsed."""

    metrics: Mapping[str, Mapping[str, Any]]
    copies: Mapping[str, Mapping[str, Any]]
    errors: Mapping[str, str]

    def sum(self, field: str) -> int:
        """Return a metric's sum over all files."""
        return sum(found[field] for found in self.metrics.values())

    def packages(self) -> list[tuple[str, Counter[str]]]:
        """Return each top-level package with the sums of its metrics, the largest first."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for job, metrics in self.metrics.items():
            sums = found[package(job)]
            sums["files"] += 1
            for field in ("lines", "statements", "functions", "documented", "classes", "branches"):
                sums[field] += metrics[field]
        return sorted(found.items(), key=lambda item: (-item[1]["lines"], item[0]))


def package(job: str) -> str:
    """Return the top-level package that a file belongs to."""
    folder, *names = job.removesuffix(".py").split(".")
    return names[0] if len(names) > 1 else SHORT_NAMES.get(folder, folder)


def path(job: str) -> str:
    """Return a job as the path that CPython's own repository uses."""
    return job.removesuffix(".py").replace(".", "/") + ".py"


# --- Markdown -----------------------------------------------------------------------------------------


def text(findings: Findings, *, chart: str) -> str:
    """Return the report; `chart` is the chart's file name."""
    sections = [_head(findings, chart), _packages(findings), _longest(findings), _imports(findings)]
    sections += [_copies(findings), _errors(findings)]
    return "\n\n".join(sections) + "\n"


def _head(findings: Findings, chart: str) -> str:
    functions = findings.sum("functions")
    share = findings.sum("documented") / functions if functions else 0.0
    return (
        f"# The standard library of Python {platform.python_version()}\n\n"
        f"{len(findings.metrics) + len(findings.errors):,} files, {findings.sum('lines'):,} lines, "
        f"{findings.sum('classes'):,} classes and {functions:,} functions, {share:.0%} of them with a docstring. "
        f"{len(findings.copies)} files are copies of others, {len(findings.errors)} cannot be parsed.\n\n"
        f"![Lines by package]({chart})"
    )


def _packages(findings: Findings) -> str:
    rows = [
        (
            name,
            sums["files"],
            sums["lines"],
            sums["functions"],
            f"{sums['branches'] / max(1, sums['functions']):.1f}",
        )
        for name, sums in findings.packages()[:ROWS]
    ]
    return "## Largest packages\n\n" + _table(
        ("package", "files", "lines", "functions", "branches per function"), rows
    )


def _longest(findings: Findings) -> str:
    found = [(metrics["longest"], job) for job, metrics in findings.metrics.items() if metrics["longest"]]
    found.sort(key=lambda item: (-item[0]["lines"], item[1]))
    rows = [
        (f"`{each['function']}`", each["lines"], f"`{path(job)}:{each['line']}`")
        for each, job in found[:ROWS]
    ]
    return "## Longest functions\n\n" + _table(("function", "lines", "where"), rows)


def _imports(findings: Findings) -> str:
    counts = Counter(name for metrics in findings.metrics.values() for name in metrics["imports"])
    rows = [(f"`{name}`", count) for name, count in counts.most_common(ROWS)]
    return "## Most imported modules\n\n" + _table(("module", "imported by files"), rows)


def _copies(findings: Findings) -> str:
    groups: dict[str, list[str]] = defaultdict(list)
    for job, found in findings.copies.items():
        groups[found["of"]].append(job)
    if not groups:
        return "## Identical files\n\nNone."
    largest = sorted(groups.items(), key=lambda item: (-findings.copies[item[1][0]]["bytes"], item[0]))
    rows = [
        (
            f"`{path(first)}`",
            findings.copies[jobs[0]]["bytes"],
            _some([f"`{path(job)}`" for job in sorted(jobs)]),
        )
        for first, jobs in largest[:ROWS]
    ]
    return "## Identical files\n\n" + _table(("file", "bytes", "is the same as"), rows)


def _errors(findings: Findings) -> str:
    if not findings.errors:
        return "## Files that cannot be parsed\n\nNone."
    rows = [(f"`{path(job)}`", error.replace("|", "\\|")) for job, error in sorted(findings.errors.items())]
    return "## Files that cannot be parsed\n\n" + _table(("file", "why"), rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    titles = list(head)
    lines = [titles, ["---"] * len(titles)]
    lines += [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# --- the chart ----------------------------------------------------------------------------------------

WIDTH, LEFT, BAR, GAP, TOP = 860, 150, 22, 8, 78
BLUE, PALE = "#2f6f9f", "#a9cbe2"


def chart(findings: Findings) -> str:
    """Return an SVG: a bar per package, as long as it has lines, the dark part those that begin a statement."""
    rows = [(name, sums) for name, sums in findings.packages() if name not in LEFT_OUT][:ROWS]
    scale = (WIDTH - LEFT - 90) / max((sums["lines"] for _, sums in rows), default=1)
    height = TOP + len(rows) * (BAR + GAP) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="16" y="30" font-size="18">Lines by package, without its tests: Python {escape(platform.python_version())}</text>',
        f'<rect x="16" y="46" width="12" height="12" fill="{BLUE}"/><text x="34" y="57">statements</text>',
        f'<rect x="130" y="46" width="12" height="12" fill="{PALE}"/>',
        '<text x="148" y="57">everything else: comments, docstrings, continued and blank lines</text>',
    ]
    for number, (name, sums) in enumerate(rows):
        parts += _bar(name, sums, y=TOP + number * (BAR + GAP), scale=scale)
    return "\n".join([*parts, "</svg>\n"])


def _bar(name: str, sums: Counter[str], *, y: int, scale: float) -> list[str]:
    lines, dark = sums["lines"] * scale, min(sums["statements"], sums["lines"]) * scale
    middle = y + BAR / 2 + 4.5
    return [
        f'<text x="{LEFT - 8}" y="{middle}" text-anchor="end">{escape(name)}</text>',
        f'<rect x="{LEFT}" y="{y}" width="{lines:.1f}" height="{BAR}" fill="{PALE}"/>',
        f'<rect x="{LEFT}" y="{y}" width="{dark:.1f}" height="{BAR}" fill="{BLUE}"/>',
        f'<text x="{LEFT + lines + 6:.1f}" y="{middle}" fill="#444">{sums["lines"]:,}</text>',
    ]
