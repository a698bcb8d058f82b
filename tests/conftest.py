"""How the tests run: coroutine tests on an event loop of their own, within a time limit.

A test that talks to a server says so with `@pytest.mark.server("program")`, one that needs more of the machine than
a user may do with `@pytest.mark.machine("root")` (see `tests.machine`).
"""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
import signal
import sys
from typing import Any

import pytest
from hypothesis import settings

TEST_SECONDS = 120.0
SOAK_SECONDS = 3600.0

# No deadline per example: under coverage, on a busy machine, time says nothing. The blob replays a failure.
settings.register_profile("datatask", deadline=None, print_blob=True)
settings.load_profile("datatask")

# Where the tests run in the background of a script, Ctrl-C is ignored; the processes that they interrupt must not
# inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with files marked `long`: one that came last would leave the other processes without work."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Save what was measured: a worker of a distributed run is ended without a word."""
    if hasattr(session.config, "workerinput") and "coverage" in sys.modules:
        measured = sys.modules["coverage"].Coverage.current()
        if measured is not None:
            measured.save()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test where what it is marked to need is missing; under CI=true fail it: CI has it all."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
    for marker in item.iter_markers("server"):
        for program in marker.args:
            if shutil.which(program, path=path) is None:
                _misses(f"{program}, which is not installed", "add it to .ci/run")
    for marker in item.iter_markers("machine"):
        from tests.machine import lacking

        for what in marker.args:
            if words := lacking(what):
                _misses(words, "run .ci/run as root on a machine of its own")


def _misses(what: str, remedy: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"needs {what}: {remedy}", pytrace=False)
    pytest.skip(f"needs {what}")


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def test_...` with asyncio.run, and fail it when it takes longer than is allowed."""
    function = pyfuncitem.obj
    if not inspect.iscoroutinefunction(function):
        return None
    arguments: dict[str, Any] = {
        name: pyfuncitem.funcargs[name]
        for name in pyfuncitem._fixtureinfo.argnames
        if name in pyfuncitem.funcargs
    }

    soaks = pyfuncitem.get_closest_marker("soak") is not None

    async def limited() -> None:
        async with asyncio.timeout(SOAK_SECONDS if soaks else TEST_SECONDS):
            await function(**arguments)

    asyncio.run(limited())
    return True
