"""Whatever the target has for a POSIX shell, and the account for a login shell, the agent works; no other shell reads a script."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from datatask import CallerError, SSHLinuxManager, TemporaryError
from datatask.adapters.execute.ssh import sessions
from datatask.schema.messages import Started, Unreachable
from tests.run_kit import contents, opened, spec
from tests.ssh_kit import Server, serving
from tests.ssh_runs import LOG, SECOND, ended, make, message, on_server

pytestmark = pytest.mark.server("sshd")


@pytest.fixture(
    params=["dash", pytest.param("busybox", marks=pytest.mark.server("busybox")), "bash", "no setsid"]
)
def shell(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """A server whose targets have this shell as /bin/sh: seen so by what it runs."""
    bare = tmp_path / "bin"
    bare.mkdir()
    tools = "mkdir mv rm mkfifo ls id sleep sed sort env cat chmod rmdir od tr"
    if request.param == "busybox":
        for tool in (*tools.split(), "setsid"):
            (bare / tool).symlink_to(shutil.which("busybox") or "")
    else:
        for tool in (*tools.split(), "perl") if request.param == "no setsid" else (*tools.split(), "setsid"):
            (bare / tool).symlink_to(shutil.which(tool) or "")
    name = {"busybox": "busybox sh", "bash": "bash --posix", "no setsid": "dash"}.get(
        request.param, request.param
    )
    program, *rest = name.split()
    wrapper = tmp_path / "sh"
    wrapper.write_text(f'#!/bin/dash\nexec {shutil.which(program)} {" ".join(rest)} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setattr(sessions, "SHELL", str(wrapper))
    with serving(tmp_path / "server", f" PATH={bare} DATATASK_TEST_SHELL={wrapper}") as at:
        yield at


async def test_any_posix_shell_will_do(shell: Server, tmp_path: Path) -> None:
    """Starts, ends, stops, recovery, with nothing but the usual utilities in the path."""
    script = "{% if job == 'slow' %}/bin/sleep 60{% elif job == 'bad' %}exit 3{% else %}echo $$; cut -d' ' -f1,5,6 /proc/$$/stat{% endif %}\n"
    first = make(on_server(tmp_path, shell), script, environ={"PATH": os.environ["PATH"]}).runner
    async with opened(first) as facts:
        for run, job in enumerate(("good", "bad", "slow"), 1):
            first.start(spec(run, job))
        await facts.first(3, Started)
        good, bad = await facts.end_of(1), await facts.end_of(2)
    words = (contents(good.writes[0]) or b"").split()
    assert len(words) == 4
    assert len(set(words)) == 1, "process, group and session are one"
    assert bad.ending.exit_code == 3
    later = make(on_server(tmp_path, shell), script).runner
    async with opened(later) as facts:
        await later.recover([spec(3, "slow"), spec(4)])
        assert (await facts.end_of(4)).ending.outcome == "lost"
        later.stop(3, "cancelled", SECOND // 4)
        assert (await facts.end_of(3)).ending.outcome == "cancelled"


@pytest.mark.parametrize(
    "content",
    [
        b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\x16\0" + bytes(80),  # for s390
        b"touch {mark}\n",  # a script that does not say for what
        b"#! /no/such/interpreter -x\n",
        b"#!{self}\n",
    ],
    ids=["foreign", "unsaid", "missing", "circular"],
)
async def test_an_interpreter_that_the_kernel_cannot_execute_is_refused(
    shell: Server, tmp_path: Path, content: bytes
) -> None:
    """No shell takes its place, nor its script's; one that is a script itself is as good as any."""
    broken, mark, wrapper = tmp_path / "broken", tmp_path / "mark", tmp_path / "wrapper"
    broken.write_bytes(content.replace(b"{mark}", bytes(mark)).replace(b"{self}", bytes(broken)))
    wrapper.write_text("#! /bin/sh -e\n. $1\n")
    for path in (broken, wrapper):
        path.chmod(0o755)
    manager = on_server(tmp_path, shell)
    end = await ended(manager, f"#!{broken}\ntouch {mark}\n")
    assert end.ending.outcome == "refused"
    assert f"the interpreter {broken} of the script's first line cannot be run" in message(end)
    assert not mark.exists()
    assert (await ended(manager, f"#!{wrapper}\nexit 4\n")).ending.exit_code == 4


DROPBEAR = [pytest.mark.server("dropbear")]
NUSHELL = pytest.param("nu", marks=pytest.mark.skipif(shutil.which("nu") is None, reason="no nushell"))


@pytest.mark.machine("root")
@pytest.mark.parametrize("program", ["sshd", pytest.param("dropbear", marks=DROPBEAR)])
@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.server(name)) for name in ("fish", "tcsh")), NUSHELL]
)
async def test_any_login_shell_will_do(tmp_path: Path, program: str, name: str) -> None:
    """Runs, recovery, stops, the verbs by hand, what `doctor` asks; in a folder whose name no two shells read alike."""
    login = shutil.which(name) or ""
    with serving(tmp_path / "server", program=program, shell=login) as at:
        manager = SSHLinuxManager("app", at.host(), tmp_path / "it's 1 \\ of {2} !all")
        script = "{% if job == 'slow' %}sleep 60{% else %}echo $SHELL; pwd{% endif %}\n"
        first = make(manager, script).runner
        async with opened(first) as facts:
            first.start(spec(1))
            first.start(spec(2, "slow"))
            shell, folder = (contents((await facts.end_of(1)).writes[0]) or b"").decode().splitlines()
            started = await facts.first(2, Started)
        assert shell == login
        assert Path(folder).is_relative_to(manager.basedir)
        assert isinstance(started, Started)
        later = make(manager, script).runner
        async with opened(later) as facts:
            await later.recover([spec(2, "slow")._replace(handle=started.handle)])
            later.stop(2, "cancelled", SECOND // 4)
            assert (await facts.end_of(2)).ending.outcome == "cancelled"
        place = manager.place(f"{LOG}.1.1", "target")
        assert await place.read("stdout", 0) == f"{shell}\n{folder}\n".encode()
        await place.close()
        await manager.mkdir(manager.basedir / "new")
        assert (manager.basedir / "new").is_dir()
        assert {run.state for run in await manager.list_runs()} == {"it has ended"}


@pytest.mark.machine("root")
@pytest.mark.parametrize("shell", ["nologin", "false"])
async def test_an_account_without_a_shell_is_told_with_the_remedy(tmp_path: Path, shell: str) -> None:
    """Before anything runs, by `doctor` and by the pipeline that opens: time does not help."""
    login = shutil.which(shell, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or ""
    with serving(tmp_path / "server", shell=login) as at:
        says = "no POSIX shell answers there: .*; give the account a login shell that can run: exec /bin/sh"
        with pytest.raises(CallerError, match=says):
            await on_server(tmp_path, at).list_runs()
        with pytest.raises(CallerError, match=says):
            await ended(on_server(tmp_path, at), "true\n")


@pytest.mark.machine("root")
async def test_a_shell_that_ends_before_it_reads_is_told_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing could be written to it; a shell that is there is tried again."""
    run, tried = asyncssh.SSHClientConnection.run, itertools.count()

    async def ended_early(connection: asyncssh.SSHClientConnection, *command: str, **options: Any) -> Any:
        if options.get("input") and next(tried) == 0:
            raise BrokenPipeError("Channel not open for sending")
        return await run(connection, *command, **options)

    monkeypatch.setattr(asyncssh.SSHClientConnection, "run", ended_early)
    login = shutil.which("nologin", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or ""
    with (
        serving(tmp_path / "without", shell=login) as at,
        pytest.raises(CallerError, match="no POSIX shell answers there"),
    ):
        await on_server(tmp_path, at).list_runs()
    tried = itertools.count()
    with serving(tmp_path / "with") as at:
        with pytest.raises(TemporaryError, match="Channel not open"):
            await on_server(tmp_path, at).list_runs()
        assert await on_server(tmp_path, at).list_runs() == []


@pytest.mark.server("dropbear")
@pytest.mark.machine("root")
async def test_a_dropbear_without_sftp_is_told_with_the_remedy(tmp_path: Path) -> None:
    """By `doctor`, and by the run that waits until it is there."""
    (tmp_path / "none").touch()
    says = "the server's SFTP ends at once.*; install sftp-server beside its dropbear"
    hidden = dict.fromkeys(("/usr/lib/openssh/sftp-server",), tmp_path / "none")
    with serving(tmp_path / "server", program="dropbear", over=hidden) as at:
        with pytest.raises(TemporaryError, match=says):
            await on_server(tmp_path, at).list_runs()
        runner = make(on_server(tmp_path, at), "true\n").runner
        async with opened(runner) as facts:
            runner.start(spec(1))
            told = await facts.first(1, Unreachable)
            assert isinstance(told, Unreachable)
            assert re.search(says, told.message)
            runner.stop(1, "cancelled", 0)
            assert (await facts.end_of(1)).ending.outcome == "cancelled"


async def test_a_target_that_lacks_a_program_is_told_which(tmp_path: Path) -> None:
    """As small systems do: `doctor` and the pipeline that opens say it."""
    bare = tmp_path / "bin"
    bare.mkdir()
    for tool in ["mkdir", "mv", "rm", "ls", "id", "sleep", "sed", "env", "cat", "chmod", "rmdir", "setsid"]:
        (bare / tool).symlink_to(shutil.which(tool) or "")
    says = "it lacks these programs: mkfifo sort; install coreutils"
    with serving(tmp_path / "server", f" PATH={bare}") as at, pytest.raises(CallerError, match=says):
        await on_server(tmp_path, at).list_runs()
