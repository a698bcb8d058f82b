"""Whatever the target has for a POSIX shell, the agent works, and no script is read by a shell that it is not for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from datatask.adapters.execute.ssh import link
from datatask.schema.messages import Started
from tests.run_kit import contents, opened, spec
from tests.ssh_kit import Server, serving
from tests.ssh_runs import SECOND, ended, make, message, on_server

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
    monkeypatch.setattr(link, "SHELL", str(wrapper))
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
