"""How the tests run: coroutine tests on an event loop of their own, within a time limit; coverage on request."""

from __future__ import annotations

import asyncio
import inspect
import os
from typing import Any

import pytest

TEST_SECONDS = 120.0

if os.environ.get("DATATASK_COVERAGE"):  # set by the checks; plain `pytest` measures nothing
    import atexit

    import coverage

    if coverage.Coverage.current() is None:
        _measured = coverage.Coverage(config_file=True)
        _measured.start()

        @atexit.register
        def _save() -> None:
            _measured.stop()
            _measured.save()


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def test_...` with asyncio.run, and fail it when it takes longer than `TEST_SECONDS`."""
    function = pyfuncitem.obj
    if not inspect.iscoroutinefunction(function):
        return None
    arguments: dict[str, Any] = {
        name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames if name in pyfuncitem.funcargs
    }

    async def limited() -> None:
        async with asyncio.timeout(TEST_SECONDS):
            await function(**arguments)

    asyncio.run(limited())
    return True
