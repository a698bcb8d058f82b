"""A script has the limits, priority, cores, rights and groups of the engine that starts it, whoever started the launcher."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datatask.adapters.execute.local import spawning
from datatask.schema.messages import Fact
from tests.integration.local_kit import ends, launcher_pid, run_all, spec, task_of
from tests.run_kit import until

SHOWN = """#!{python}
import json, sys
sys.path.insert(0, {root!r})
from datatask.adapters.execute.local import spawning as situation
print(json.dumps(situation.present()))
"""
ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def fewer_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] - 24, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def lower_priority() -> Iterator[None]:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, before + 3)
    yield
    os.setpriority(os.PRIO_PROCESS, 0, before)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    yield
    os.sched_setaffinity(0, before)


@contextlib.contextmanager
def batches() -> Iterator[None]:
    before = os.sched_getscheduler(0)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    yield
    os.sched_setscheduler(0, before, os.sched_param(0))


@contextlib.contextmanager
def idle_disk() -> Iterator[None]:
    number = spawning._IOPRIO_GET[os.uname().machine] - 1
    before = spawning._ioprio()
    ctypes.CDLL(None).syscall(number, 1, 0, 3 << 13)
    yield
    ctypes.CDLL(None).syscall(number, 1, 0, before)


@contextlib.contextmanager
def another_group() -> Iterator[None]:
    before = os.getgroups()
    os.setgroups([*before, 12345])
    yield
    os.setgroups(before)


@contextlib.contextmanager
def killed_sooner() -> Iterator[None]:
    file = Path("/proc/self/oom_score_adj")
    before = file.read_text()
    file.write_text("321")
    yield
    file.write_text(before)


@contextlib.contextmanager
def another_control_group() -> Iterator[None]:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        root = Path("/sys/fs/cgroup") if not names else Path("/sys/fs/cgroup") / names.removeprefix("name=")
        home = root / path.lstrip("/")
        if names in ("", "pids") and (home / "cgroup.procs").exists():
            break
    else:
        pytest.skip("no control group of ours is mounted where it usually is")
    group = home / f"situation-{os.getpid()}"
    group.mkdir()
    (group / "cgroup.procs").write_text("0")
    yield
    (home / "cgroup.procs").write_text("0")


CHANGES = [
    fewer_files,
    lower_priority,
    one_core,
    batches,
    idle_disk,
    another_group,
    killed_sooner,
    another_control_group,
]


async def shown(path: Path, run: int) -> spawning.Situation:
    """Return the situation of a script."""
    script = SHOWN.format(python=sys.executable, root=str(ROOT))
    done = await run_all(task_of(path, script), spec(run))
    assert done[run].ending.outcome == "succeeded", done
    (write,) = done[run].writes
    assert write.source is not None

    found: spawning.Situation = json.loads(write.source.read_text())
    return found


@pytest.mark.machine("root", "groups")
async def test_each_engine_gives_its_own_situation_to_its_scripts(tmp_path: Path) -> None:
    """And what an earlier launcher started goes on, and its end is told."""
    first = task_of(tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; exit 5")
    facts: list[Fact] = []
    await first.runner.open(facts.append)
    first.runner.start(spec(1))
    await until(lambda: facts)
    launchers = {launcher_pid(tmp_path)}
    await first.runner.close()
    for number, change in enumerate(CHANGES, 2):
        with change():
            wanted = spawning.present()
            found = await shown(tmp_path, number)
            assert spawning.differences(wanted, found) == "", change.__name__
            launchers.add(launcher_pid(tmp_path))
    assert len(launchers) == 1 + len(CHANGES)
    facts.clear()
    await first.runner.open(facts.append)
    await first.runner.recover([spec(1)])
    (tmp_path / "go").touch()
    await until(lambda: ends(facts))
    assert ends(facts)[1].ending.exit_code == 5
    await first.runner.close()


async def test_an_engine_in_the_same_situation_goes_on_with_the_launcher(tmp_path: Path) -> None:
    await shown(tmp_path, 1)
    launcher = launcher_pid(tmp_path)
    await shown(tmp_path, 2)
    assert launcher_pid(tmp_path) == launcher


OTHER = """
import asyncio, resource, sys
sys.path.insert(0, {root!r})
from tests.integration.local_kit import ends, launcher_pid, run_all, spec, task_of
hard = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
end = asyncio.run(run_all(task_of(sys.argv[1], "ulimit -Hn"), spec(hard, epoch=hard)))[hard]
print(end.ending.outcome, end.writes[0].source.read_text().strip())
"""


@pytest.mark.machine("root")
@pytest.mark.server("setpriv")
def test_a_hard_limit_that_a_launcher_cannot_raise_is_that_of_the_next_one(tmp_path: Path) -> None:
    """Of a user without the right to."""
    program = OTHER.format(root=str(Path(__file__).parents[2]))
    user = [
        "setpriv",
        "--bounding-set=-sys_resource",
        "--inh-caps=-sys_resource",
        sys.executable,
        "-c",
        program,
    ]
    for limit in ("300", "1000"):
        command = [*user, str(tmp_path), limit]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout == f"succeeded {limit}\n", done.stderr


async def test_an_engine_that_changes_while_it_runs_is_told_what_is_different(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No launcher can be as it wants; the run is refused by name, and nothing ran."""
    present: Callable[[], spawning.Situation] = spawning.present
    monkeypatch.setattr(spawning, "present", lambda: present() | {"nice": 77})
    ending = (await run_all(task_of(tmp_path, f"touch {tmp_path}/ran"), spec(1)))[1].ending
    assert ending.outcome == "refused"
    assert ending.error is not None
    assert f"nice: {os.getpriority(os.PRIO_PROCESS, 0)} instead of 77" in ending.error.message
    assert "leave the engine's limits" in ending.error.message
    assert not (tmp_path / "ran").exists()


def test_differences_are_told_in_words() -> None:
    assert (
        spawning.differences({"nice": 3, "cores": [0]}, {"nice": 0, "cores": [0]}) == "nice: 0 instead of 3"
    )
