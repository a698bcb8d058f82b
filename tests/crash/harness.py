"""Kill an engine again and again, and take stock.

In: a folder laid out for `shop`, a seed, how many kills. Out: what was wrong. Engines are forked from this process,
which has loaded everything; each lives in a session of its own and dies by SIGKILL, with the workers of its pools,
at a random moment. What runs as a local process goes on, as it does in life; in four lives of five its launcher is
killed too, if it is up, at a moment of its own.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random

from datatask.adapters.history.history import History
from datatask.adapters.history.replay import replay
from datatask.adapters.wiring.pipeline import Pipeline
from datatask.schema.events import RetriesExhausted
from datatask.schema.messages import RetryJobs
from tests.crash.shop import add, inputs, lay_out, shop

FINISH_SECONDS = 180
COMPUTES, STRETCHED_MAX = 0.3, 10
"""An engine that has time computes more than this part of it; a busy machine stretches a life so many times at most."""
VERIFY_EVERY = 10
MORE_MAX = 8
"""A life gets a quarter more work so many times at most."""


def load() -> None:
    """Load what an engine loads by and by, so that those that are forked from here need no time for it."""
    with tempfile.TemporaryDirectory() as scratch:
        lay_out(Path(scratch), 4)
        program = (
            "import sys; from tests.crash.harness import *; from tests.crash.harness import _work;"
            "asyncio.run(_work(Path(sys.argv[1]), shop)); print(*sys.modules)"
        )
        command = [sys.executable, "-W", "ignore", "-c", program, scratch]
        names = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    for name in names:
        with suppress(ImportError):
            importlib.import_module(name)


def engine(folder: Path, make: Callable[[Path], Pipeline] = shop) -> int:
    """Fork an engine; return its pid."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        with suppress(OSError):  # it does so itself; whoever is first, it is in its group when this returns
            os.setpgid(child, child)
        return child
    code = 70
    try:
        with suppress(OSError):
            os.setpgid(0, 0)
        logging.disable(logging.CRITICAL)
        asyncio.run(_work(folder, make))
        code = 0
    finally:
        os._exit(code)


async def _work(folder: Path, make: Callable[[Path], Pipeline]) -> None:
    async with make(folder) as pipe:
        await pipe.run(timeout=FINISH_SECONDS)


def killed(child: int, after: float, also: Callable[[], None], when: float) -> bool:
    """Kill the engine after so many seconds, and `also` something else; False when it was through before.

    Where the processor is busy with others, an engine lives longer: until it has had a part of that time.
    """
    began = time.monotonic()
    while (lived := time.monotonic() - began) < after or (
        _computed(child) < after * COMPUTES and lived < after * STRETCHED_MAX
    ):
        ended, _ = os.waitpid(child, os.WNOHANG)
        if ended:
            return False
        if lived > when:
            also()
            when = after
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def _computed(child: int) -> float:
    """Return the seconds that a process has had of a processor."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill_launchers(folder: Path) -> None:
    """Kill the launchers that there are; each has a line in `launcher-kills`."""
    for lock in folder.glob("*/*/launcher.lock"):
        with suppress(ValueError, OSError):
            pid = int(lock.read_text())
            if os.fsencode(lock.parent) not in Path(f"/proc/{pid}/cmdline").read_bytes():
                continue  # it has died before
            os.kill(pid, signal.SIGKILL)
            with open(folder / "launcher-kills", "a") as file:
                file.write(f"{lock}\n")


def finish(folder: Path, make: Callable[[Path], Pipeline] = shop) -> int:
    """Let an engine work to the end; return its exit code."""
    _, status = os.waitpid(engine(folder, make), 0)
    return os.waitstatus_to_exitcode(status)


def kill_often(
    folder: Path,
    kills: int,
    seed: int,
    lives: tuple[float, float] = (0.02, 0.45),
    make: Callable[[Path], Pipeline] = shop,
) -> list[str]:
    """Kill so many engines, then let one finish; return what was wrong on the way.

    A fast machine may be through with the work before the last kill: it gets more of it.
    """
    random = Random(seed)
    found: list[str] = []
    load()
    more = inputs(folder) // 4
    for number in range(kills):
        after = random.uniform(*lives)
        when = random.uniform(0, 1.25) * after
        tries = 0
        while not killed(engine(folder, make), after, partial(kill_launchers, folder), when):
            add(folder, more)
            tries += 1
            if tries == MORE_MAX:
                return [
                    *found,
                    f"kill {number}: engines ended by themselves in spite of {tries * more} more jobs",
                ]
        if (folder / "log.db").exists() and number % VERIFY_EVERY == 0:
            found += verified(folder)
    code = finish(folder, make)
    return found + verified(folder) + ([f"the last engine ended with {code}"] if code else [])


def verified(folder: Path) -> list[str]:
    """Return what the log's verification finds."""
    told = replay(folder / "log.db", verify=True)
    wrong = [] if told.chain == "ok" else [f"the chain: {told.chain}"]
    return wrong + [f"{divergence}" for divergence in told.divergences]


def given_up(folder: Path) -> dict[str, set[str]]:
    """Return, by task, the jobs that died with their engine so often that the policy gave them up, and said so."""
    found: dict[str, set[str]] = {}
    with History(folder / "log.db") as history:
        for _, event in history.events(kind="RetriesExhausted"):
            assert isinstance(event, RetriesExhausted)
            if event.budget == "infrastructure":
                found.setdefault(event.task, set()).add(event.job)
    return found


def losses(folder: Path) -> Counter[tuple[str, str]]:
    """Return how often each (task, job) died with its engine."""
    with History(folder / "log.db") as history:
        return Counter((run["task"], run["job"]) for run in history.runs(state="lost"))


def try_again(folder: Path, make: Callable[[Path], Pipeline] = shop) -> None:
    """Ask for what was given up once more, as a person would, and let it finish."""
    asyncio.run(_again(folder, given_up(folder), make))


async def _again(folder: Path, jobs: dict[str, set[str]], make: Callable[[Path], Pipeline]) -> None:
    async with make(folder) as pipe:
        for task, names in jobs.items():
            asked = RetryJobs(id=f"again-{task}", actor="ada@lab: test", task=task, jobs=tuple(sorted(names)))
            reply = await pipe.request(asked)
            assert reply.refusal is None, reply
        await pipe.run(timeout=FINISH_SECONDS)


def memberships(folder: Path) -> dict[str, set[str]]:
    """Return the members of every repository at the end."""
    with History(folder / "log.db") as history:
        state = history.state()
        assert not state.open_runs, state.open_runs
        return {
            leaf.id: set(state.members(leaf.id))
            for leaf in state.leaves.values()
            if leaf.definition.medium != "view"
        }


def effects(folder: Path) -> dict[str, int]:
    """Return how often each job's script had its effect."""
    return {path.name: len(path.read_text().splitlines()) for path in (folder / "effects").iterdir()}
