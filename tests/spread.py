"""How a run of all tests is spread over the cores.

A file's tests share what it sets up, so they run in one process; in the folders whose tests take long and share
little, each test goes where there is room. Two processes a core and more, since most tests wait for other processes.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from tests import bytecode

SINGLY = ("tests/crash/", "tests/damage/", "tests/misuse/", "tests/simulation/")


class Spreading(LoadFileScheduling):  # type: ignore[misc] # xdist is not typed
    """Hands out files, or single tests."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if nodeid.startswith(SINGLY) else nodeid.partition("::")[0]


def over_the_cores(config: pytest.Config) -> None:
    """Choose processes and scheduling, as if they had been asked for; all processes find the tests compiled."""
    bytecode.prepare()
    config.option.numprocesses = 2 * len(os.sched_getaffinity(0)) + 2
    config.option.dist = "loadfile"
    config.option.loadscopereorder = False  # in the order of `pytest_collection_modifyitems`


def scheduler(config: pytest.Config, log: Any) -> Spreading | None:
    """Return what hands out the tests; None leaves it to xdist."""
    return Spreading(config, log) if config.option.dist == "loadfile" else None
