"""Where runs are: a place of the user's own by default, refused by name where others may fill it, of the same modes whatever the umask."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from datatask import LocalLinuxManager
from datatask.adapters.execute.local import manager
from datatask.adapters.execute.local.client import _check_peer
from datatask.adapters.execute.local.engine_connections import SOCKET
from datatask.adapters.execute.local.launcher import LOCK
from datatask.adapters.trust import UnsafePlaceError
from datatask.schema.errors import CallerError
from datatask.schema.messages import Fact, Noticed
from tests.integration.local_kit import LOG, ends, launcher_pid, run_all, spec, task_of
from tests.integration.test_situations import fewer_files
from tests.run_kit import until


def test_the_default_place_is_below_the_users_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative XDG_STATE_HOME is ignored, as its specification says; XDG_RUNTIME_DIR goes at logout."""
    monkeypatch.setattr(manager, "MACHINE_ID", tmp_path / "machine-id")
    (tmp_path / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert LocalLinuxManager("app").basedir == tmp_path / "state/datatask/runs/0123456789ab/app"
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    assert LocalLinuxManager("app").basedir == tmp_path / "home/.local/state/datatask/runs/0123456789ab/app"


def test_a_user_without_a_home_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 1_234_567)
    with pytest.raises(CallerError, match=r"uid 1234567\) has no home folder") as raised:
        LocalLinuxManager("app")
    assert raised.value.remedy == "pass local_path=, or set XDG_STATE_HOME to a folder of this user's own"


@pytest.mark.parametrize("wide", ["", "base", "base/app"])
async def test_a_place_that_every_user_may_fill_is_refused_by_name(tmp_path: Path, wide: str) -> None:
    """Before anything that lies there is read: a socket, a journal, another user's launcher."""
    (tmp_path / "base" / "app").mkdir(mode=0o700, parents=True)
    (tmp_path / wide).chmod(0o777)
    with pytest.raises(UnsafePlaceError, match="every user may") as raised:
        await task_of(tmp_path / "base", "true").runner.open(lambda fact: None)
    assert f"chmod o-w {tmp_path / wide}" in raised.value.remedy or f"chmod go-w {tmp_path / wide}" in (
        raised.value.remedy or ""
    )


async def test_a_link_in_place_of_a_launchers_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "app").symlink_to(tmp_path)
    with pytest.raises(UnsafePlaceError, match="this is a link"):
        await task_of(tmp_path, "true").runner.open(lambda fact: None)


@pytest.mark.parametrize("umask", [0, 0o277])
async def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    ours = os.umask(umask)
    try:
        end = (await run_all(task_of(tmp_path / "base", "pwd"), spec(1)))[1]
    finally:
        os.umask(ours)
    assert end.ending.outcome == "succeeded"
    app = tmp_path / "base" / "app"
    run = app / LOG / f"{LOG}.1.1"
    modes = {path.relative_to(app): path.stat().st_mode & 0o777 for path in (app, *app.rglob("*"))}
    assert {modes[path.relative_to(app)] for path in (app, app / LOG, run, run / "cwd", run / "exe")} == {
        0o700
    }
    assert {modes[Path(name)] for name in ("launcher.log", "journal", f"{LOG}.owner")} == {0o600}


async def test_runs_that_an_earlier_version_left_are_gone_on_with_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    earlier = tmp_path / "tmp" / f"datatask-{os.getuid()}"
    before = task_of(earlier, f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; echo there")
    facts: list[Fact] = []
    await before.runner.open(facts.append)
    before.runner.start(spec(1))
    await until(lambda: facts)
    await before.runner.close()
    after = task_of(None, "true")
    await after.runner.open(facts.append)
    await after.runner.recover([spec(1)])
    (tmp_path / "go").touch()
    await until(lambda: ends(facts))
    (write,) = ends(facts)[1].writes
    assert write.source is not None
    assert write.source.read_text() == "there\n"
    await after.runner.close()


LISTENS = """
import os, socket
os.setuid(65534)
listener = socket.socket(socket.AF_UNIX)
listener.bind({name!r})
listener.listen(1)
print(flush=True)
listener.accept()
"""


@pytest.mark.machine("root")
def test_who_answers_at_a_launchers_socket_is_a_process_of_this_user() -> None:
    """A socket may have come into the folder while that was wider."""
    name = f"\0datatask-test-{os.getpid()}"
    code = LISTENS.format(name=name)
    with (
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other,
        socket.socket(socket.AF_UNIX) as client,
    ):
        assert other.stdout is not None
        other.stdout.readline()
        client.connect(name)
        with pytest.raises(PermissionError, match="belongs to uid 65534"):
            _check_peer(client)


async def test_a_launcher_of_an_earlier_version_is_greeted_in_its_words(tmp_path: Path) -> None:
    """It hangs up on what it does not understand; runs that it has are gone on with after an update."""
    task = task_of(tmp_path, "true")
    facts: list[Fact] = []
    await task.runner.open(facts.append)

    async def earlier(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if "wanted" not in json.loads(await reader.readline()):
            writer.write(b'{"hello": 1, "boot": "b"}\n')
            while line := await reader.readline():
                if (question := json.loads(line))["op"] == "settle":
                    writer.write(b'{"absent": "%s"}\n' % question["id"].encode())
        writer.close()

    server = await asyncio.start_unix_server(earlier, tmp_path / "app" / SOCKET)
    async with server:
        await asyncio.wait_for(task.runner.recover([spec(1)]), 100)
        await task.runner.close()
    assert [end.ending.outcome for end in ends(facts).values()] == ["lost"]


DIES = """
import socket
listener = socket.socket(socket.AF_UNIX)
listener.bind({name!r})
listener.listen(1)
print(flush=True)
listener.accept()[0].recv(1)
"""


async def test_a_launcher_that_dies_before_it_greets_is_not_taken_for_an_earlier_one(tmp_path: Path) -> None:
    """The next one is told the situation of the engine, as any of this version."""
    task = task_of(tmp_path, "true")
    facts: list[Fact] = []
    await task.runner.open(facts.append)
    name = tmp_path / "app" / SOCKET
    name.parent.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(name.with_name(LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # the client starts no launcher of its own meanwhile
    hellos: list[dict[str, object]] = []

    async def next_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hellos.append(json.loads(await reader.readline()))
        writer.write(b'{"hello": 1, "boot": "b"}\n')
        while line := await reader.readline():
            if (question := json.loads(line))["op"] == "settle":
                writer.write(b'{"absent": "%s"}\n' % question["id"].encode())
        writer.close()

    code = DIES.format(name=str(name))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as dying:  # noqa: ASYNC220
        assert dying.stdout is not None
        dying.stdout.readline()
        recovered = asyncio.create_task(task.runner.recover([spec(1)]))
        await until(lambda: dying.poll() is not None)
    name.unlink(missing_ok=True)
    async with await asyncio.start_unix_server(next_one, name):
        await asyncio.wait_for(recovered, 60)
        await task.runner.close()
    os.close(lock)
    assert "wanted" in hellos[0]


EARLIER = """
import sys
sys.path.insert(0, sys.argv[1])
from datatask.adapters.execute.local import launcher
understood = launcher.Launcher.do_hello

def do_hello(self, engine, log, epoch, pid, start, home):
    understood(self, engine, log, epoch, pid, start, home)

launcher.Launcher.do_hello = do_hello
del launcher.Launcher.do_retire
sys.exit(launcher.main(sys.argv[2]))
"""
ROOT = Path(__file__).parents[2]


def earlier_launcher(folder: Path) -> int:
    """Start a launcher that understands what those of version 1.0 did, and no more; return its pid."""
    folder.mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-I", "-S", "-c", EARLIER, str(ROOT), str(folder)]
    subprocess.run(command, check=True, timeout=60)
    deadline = time.monotonic() + 60
    while not (folder / SOCKET).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return launcher_pid(folder.parent)


async def test_an_earlier_launcher_starts_runs_of_an_engine_in_its_situation(tmp_path: Path) -> None:
    before = earlier_launcher(tmp_path / "app")
    done = await run_all(task_of(tmp_path, "exit 5"), spec(1))
    assert done[1].ending.exit_code == 5
    assert launcher_pid(tmp_path) == before


async def test_an_earlier_launcher_without_runs_is_replaced_where_its_limits_are_others(
    tmp_path: Path,
) -> None:
    before = earlier_launcher(tmp_path / "app")
    with fewer_files():
        wanted = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        done = await run_all(task_of(tmp_path, "ulimit -Sn"), spec(1))
    (write,) = done[1].writes
    assert write.source is not None
    assert int(write.source.read_text()) == wanted
    assert launcher_pid(tmp_path) != before
    assert not Path(f"/proc/{before}").exists()


async def test_an_earlier_launcher_with_runs_keeps_them_and_gets_no_more_of_another_situation(
    tmp_path: Path,
) -> None:
    before = earlier_launcher(tmp_path / "app")
    task = task_of(tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; ulimit -Sn")
    facts: list[Fact] = []
    await task.runner.open(facts.append)
    task.runner.start(spec(1))
    await until(lambda: facts)
    with fewer_files():
        wanted = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        task.runner.start(spec(2))
        await until(lambda: any(isinstance(fact, Noticed) and fact.run == 2 for fact in facts))
        (held,) = [fact for fact in facts if isinstance(fact, Noticed)]
        assert "of an earlier version of datatask and still has runs" in held.message
        assert launcher_pid(tmp_path) == before
        (tmp_path / "go").touch()
        await until(lambda: len(ends(facts)) == 2)
    limits = {}
    for run, end in ends(facts).items():
        (write,) = end.writes
        assert write.source is not None
        limits[run] = int(write.source.read_text())
    assert limits == {1: resource.getrlimit(resource.RLIMIT_NOFILE)[0], 2: wanted}
    await task.runner.close()
