"""How the tests run: coroutine tests on an event loop of their own, within a time limit.

A test that talks to a server says so with `@pytest.mark.server("program")`, one that needs more of the machine than
a user may do with `@pytest.mark.machine("root")` (see `tests.machine`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests import bytecode, spread
from tests.effort import EFFORT, EFFORTS, by_effort, is_chosen, mark
from tests.servers import SharedServer

if TYPE_CHECKING:
    from tests.object_stores import Service

bytecode.keep()

TEST_SECONDS = 300.0
SOAK_SECONDS = 3600.0

# No deadline per example: under coverage, on a busy machine, time says nothing. The blob replays a failure.
settings.register_profile(
    "datatask",
    max_examples=by_effort(quick=20, thorough=60, soak=4000),
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
    derandomize=EFFORT != "soak",  # the same examples each time: what lands does not depend on luck
)
settings.load_profile("datatask")

# Where the tests run in the background of a script, Ctrl-C is ignored; the processes that they interrupt must not
# inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure() -> None:
    """Refuse an effort that there is not."""
    if EFFORT not in EFFORTS:
        raise pytest.UsageError(f"DATATASK_TEST_EFFORT={EFFORT}: use one of {', '.join(EFFORTS)}")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Spread a run of all tests over the cores; named tests run in this process, as debuggers like it."""
    options = config.option
    if hasattr(config, "workerinput"):
        options.named = config.workerinput["named"]
        return
    options.named = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    debugged = options.usepdb or options.collectonly or options.capture == "no"
    if not (options.named or debugged) and options.numprocesses is None and options.dist == "no":
        spread.over_the_cores(config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have single tests handed out where files are too long."""
    return spread.scheduler(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker whether files were named: it is given the files that there are."""
    node.workerinput["named"] = node.config.option.named


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is for other efforts, and begin with what is `long`, so that it does not run alone at the end."""
    mark(items)
    chosen = [item for item in items if is_chosen(item, named=config.option.named)]
    kept = set(chosen)
    if others := [item for item in items if item not in kept]:
        config.hook.pytest_deselected(items=others)
    items[:] = chosen
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Save what was measured: a worker of a distributed run is ended without a word."""
    if not hasattr(session.config, "workerinput"):
        bytecode.clear()
    elif "coverage" in sys.modules:
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """End what a test that fails has left, processes and all that it had open: the next would fail by a ResourceWarning."""
    if hasattr(sys, "last_value"):  # the failure of the test before, which holds what that had
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            vars(sys).pop(name, None)
        gc.collect()
        sys.unraisablehook = hook
    begun: list[subprocess.Popen[Any]] = []
    original = subprocess.Popen.__init__
    measured = _unmeasured(item)

    def noted(self: subprocess.Popen[Any], *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        if not isinstance(self, SharedServer):
            begun.append(self)

    subprocess.Popen.__init__ = noted  # type: ignore[method-assign]
    try:
        return (yield)
    except BaseException:
        for process in begun:
            _end(process)
        raise
    finally:
        subprocess.Popen.__init__ = original  # type: ignore[method-assign]
        if measured is not None:
            measured.start()


def _unmeasured(item: pytest.Item) -> Any:
    """Stop measuring coverage where more of the same is done, which it makes three times slower; return what to start."""
    if EFFORT == "quick" or item.get_closest_marker("scaled") is None or "coverage" not in sys.modules:
        return None
    measured = sys.modules["coverage"].Coverage.current()
    if measured is not None:
        measured.stop()
    return measured


def _end(process: subprocess.Popen[Any]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _misses(what: str, remedy: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"needs {what}: {remedy}", pytrace=False)
    pytest.skip(f"needs {what}")


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Service]]:
    """Start a server of this name when it is first asked for, for all tests of this process."""
    from tests.object_stores import running

    with contextlib.ExitStack() as stack:
        yield cache(lambda name: stack.enter_context(running(name, tmp_path_factory.mktemp(name))))


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

    soaks = EFFORT == "soak"

    async def limited() -> None:
        async with asyncio.timeout(SOAK_SECONDS if soaks else TEST_SECONDS):
            await function(**arguments)

    asyncio.run(limited())
    return True
