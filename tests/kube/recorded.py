"""What a real cluster answered, read from `recordings/`: for the API server of the tests and for what judges pods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORDINGS = Path(__file__).parent / "recordings"
ENDS = {
    "a": ("succeeded", 0),
    "gen-4dfrk": ("lost", 137),
    "p1": ("succeeded", 0),
    "p2": ("succeeded", 0),
    "p3": ("succeeded", 0),
    "exit3": ("failed", 3),
    "badcommand": ("refused", 128),
    "imagepull": ("lost", None),
    "deadline": ("timed_out", 137),
    "oomkilled": ("failed", 137),
    "configerror": ("lost", None),
    "unschedulable": ("lost", None),
    "del": ("lost", 137),
}
"""How the pods of the recorded watch end, by name."""


def exchange(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a recorded request and its answer."""
    told = json.loads((RECORDINGS / f"{name}.json").read_text())
    return told["request"], told["response"]


def answer(name: str) -> dict[str, Any]:
    """Return a recorded answer."""
    return exchange(name)[1]


def events(name: str = "watch-whole-life-of-pods") -> list[dict[str, Any]]:
    """Return the events about objects of a recorded watch, which is from the creation of each pod to its deletion."""
    told = answer(name)["events"]
    return [event for event in told if event["type"] in ("ADDED", "MODIFIED", "DELETED")]
