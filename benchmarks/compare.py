"""This checkout against another commit: both built, run in turn on this machine, and each figure as a ratio.

    python -m benchmarks compare COMMIT [NAME ...] [--rounds 5]

In: a commit and names of benchmarks (`pipeline` if none is given). Each tree, this one with its changes to files that git
tracks, is installed into a folder of its own, beside its own benchmarks; both use the dependencies of this environment. A round runs a benchmark once in
each tree, in alternating order, so that both meet the same load. Out: for each figure that both print, the medians and
the ratio (this checkout to the commit), as median, lowest and highest of the rounds. Below 1 is faster for a duration
and slower for a rate.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks.__main__ import rows

ROOT = Path(__file__).parent.parent
BESIDE = ("benchmarks", "tests")  # benchmarks.kube drives the API server of the tests

Figures = dict[str, float]


def build(commit: str, folder: Path) -> Path:
    """Install the tree of a commit into a folder, without dependencies and with its benchmarks; return the folder."""
    tree = folder.with_suffix(".tree")
    with tarfile.open(fileobj=io.BytesIO(_git("archive", commit))) as archive:
        archive.extractall(tree, filter="tar")
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *quiet, "--target", str(folder), str(tree)], check=True
    )
    for name in BESIDE:
        shutil.copytree(tree / name, folder / name)
    return folder


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout


def measure(folder: Path, name: str) -> Figures:
    """Run one benchmark of a built tree in a process of its own; return its figures by dotted name."""
    around = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}"],
        cwd=folder,
        env=around,
        stdout=subprocess.PIPE,
        check=True,
    )
    found = rows(json.loads(done.stdout), name)
    return {label: figure for label, figure in found if type(figure) in (int, float)}


def line(label: str, here: list[float], there: list[float]) -> str:
    """Return a figure's line: its medians here and there, and the ratio of each round."""
    medians = f"{label:<60} {statistics.median(here):>14,.6g} {statistics.median(there):>14,.6g}"
    ratios = [mine / its for mine, its in zip(here, there, strict=True) if its]
    if not ratios:
        return f"{medians} {'-':>7}"
    return f"{medians} {statistics.median(ratios):>7.3f}  ({min(ratios):.3f} to {max(ratios):.3f})"


def compare(name: str, here: Path, there: Path, rounds: int) -> list[str]:
    """Run a benchmark in both trees in turn; return a line for each figure that both have."""
    found: tuple[list[Figures], list[Figures]] = ([], [])
    for number in range(rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            found[side].append(measure((here, there)[side], name))
    shared = [label for label in found[0][0] if label in found[1][0]]
    return [line(label, *([one[label] for one in side] for side in found)) for label in shared]


def main(arguments: list[str] | None = None) -> None:
    """Build both, measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare")
    parser.add_argument("commit")
    parser.add_argument("names", nargs="*", default=["pipeline"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        changed = _git("stash", "create").decode().strip()  # a commit of the tracked files as they are
        here, there = build(changed or "HEAD", folder / "here"), build(options.commit, folder / "there")
        print(
            f"{'figure':<60} {'here':>14} {options.commit[:12]:>14} {'ratio':>7}  (of {options.rounds} rounds)"
        )
        for name in options.names:
            for text in compare(name, here, there, options.rounds):
                print(text, flush=True)


if __name__ == "__main__":
    main()
