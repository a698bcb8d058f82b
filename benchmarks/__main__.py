"""One table of all figures: `python -m benchmarks [NAME ...]`, each module in a process of its own.

`python -m benchmarks compare COMMIT [NAME ...]` sets this checkout beside another commit.

Beside a figure stands what is asked of it on two quiet cores, where something is. Timings swing with the machine's
load: compare figures of one run with each other, and quote ratios. Results and causes: docs/performance.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ASKED: dict[str, tuple[str, float]] = {
    "append.single_ratio": ("at least", 0.5),
    "append.callers_256.events_per_second": ("at least", 80_000),
    "append.callers_256.p99_ms": ("at most", 20),
    "append.bytes_per_event": ("at most", 160),
    "dask.ratio": ("at least", 0.7),
    "gathering.cost_to_a_tenth": ("at most", 1.5),
    "kube.burst_ratio": ("at least", 0.9),
    "kube.ending_ms_p95": ("at most", 100),
    "kube.memory_kb_per_pod": ("at most", 20),
    "kube.starts_per_second": ("at least", 150),
    "local.ratio": ("at least", 0.5),
    "opening.applied_events_per_second": ("at least", 1_500_000),
    "opening.without_checkpoint_events_per_second": ("at least", 1_000_000),
    "opening.with_checkpoint_seconds": ("at most", 0.5),
    "pipeline.bytes_per_event": ("at most", 160),
    "pipeline.sqlite_full_64_in_flight_runs_per_second": ("at least", 6_000),
    "pipeline.sqlite_full_1024_in_flight_runs_per_second": ("at least", 10_000),
    "simulation.bytes_per_job": ("at most", 400),
    "simulation.ratio_to_simpy": ("at least", 1),
    "simulation.runs_per_second": ("at least", 150_000),
    "size.bytes_per_job_at_rest": ("at most", 300),
    "size.quiet_update_ms": ("at most", 5),
    "size.status_ms": ("at most", 20),
    "ssh.ratio_6_at_once": ("at least", 0.3),
    "ssh.ratio_64_at_once": ("at least", 0.3),
    "staleness.bytes_per_job_and_task": ("at most", 24),
    "staleness.change_told_seconds": ("at most", 1),
    "staleness.cpu_ratio": ("at most", 1.05),
    "staleness.runs_per_second_ratio": ("at least", 0.95),
    "staleness.second_plan_opens": ("at most", 0),
    "start.help_ms": ("at most", 150),
    "start.status_10000_jobs_ms": ("at most", 400),
    "start.cost_to_10000_jobs": ("at most", 1.15),
    "truth.sleeps_makespan_apart": ("at most", 0.05),
    "truth.sleeps_waits_apart": ("at most", 0.15),
    "truth.work_makespan_apart": ("at most", 0.10),
    "truth.work_waits_apart": ("at most", 0.15),
    "start.run_with_nothing_to_do_ms": ("at most", 1_000),
    "verification.runs_per_second_ratio": ("at least", 0.97),
    "verification.share_of_engine_cpu": ("at most", 0.03),
}
"""What a figure is to be, by its dotted name."""


def rows(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, figure) for the leaves of a JSON value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from rows(inner, f"{name}.{key}")
    else:
        yield name, value


def line(name: str, figure: Any) -> str:
    """Return a figure's line: its name, the figure, what was asked, and whether it is missed."""
    match figure:
        case bool() | str():
            shown = str(figure)
        case int():
            shown = f"{figure:,}"
        case float():
            shown = f"{figure:,.0f}" if figure >= 1000 else f"{figure:,.3g}"
        case _:
            shown = json.dumps(figure)
    if name not in ASKED:
        return f"{name:<60} {shown:>14}"
    how, asked = ASKED[name]
    met = figure >= asked if how == "at least" else figure <= asked
    return f"{name:<60} {shown:>14}   {how:>8} {asked:<9,}{'' if met else '  missed'}"


def main() -> None:
    """Run the named benchmarks, or all; `compare` takes the arguments behind it."""
    folder = Path(__file__).parent
    if sys.argv[1:2] == ["compare"]:
        sys.exit(
            subprocess.run(
                [sys.executable, "-m", "benchmarks.compare", *sys.argv[2:]], cwd=folder.parent, check=False
            ).returncode
        )
    names = sys.argv[1:] or sorted(path.stem for path in folder.glob("[a-z]*.py") if path.stem != "compare")
    for name in names:
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=folder.parent, check=False)
        if done.returncode:
            sys.exit(f"benchmarks.{name} failed")
        for label, figure in rows(json.loads(done.stdout), name):
            print(line(label, figure), flush=True)


if __name__ == "__main__":
    main()
