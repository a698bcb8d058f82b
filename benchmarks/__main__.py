"""One table of all figures: `python -m benchmarks [NAME ...]`, each module in a process of its own.

Timings swing with the machine's load: compare figures of one run with each other, and quote ratios.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def rows(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted name, figure) for the leaves of a JSON value."""
    match value:
        case dict():
            for key, inner in value.items():
                yield from rows(inner, f"{name}.{key}")
        case float():
            yield name, f"{value:,.3g}"
        case int():
            yield name, f"{value:,}"
        case _:
            yield name, str(value)


def main() -> None:
    """Run the named benchmarks, or all."""
    folder = Path(__file__).parent
    names = sys.argv[1:] or sorted(path.stem for path in folder.glob("[a-z]*.py"))
    for name in names:
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=folder.parent, check=False)
        if done.returncode:
            sys.exit(f"benchmarks.{name} failed")
        for label, figure in rows(json.loads(done.stdout), name):
            print(f"{label:<60} {figure:>16}")


if __name__ == "__main__":
    main()
