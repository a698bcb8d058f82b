"""SSH runs as a user meets them: what they are made of, how they end, what they leave and what they are told."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
from pathlib import Path

import pytest

from datatask import (
    STDOUT,
    CallerError,
    InProcessBlobRepository,
    InProcessMetadataRepository,
    Parameter,
    Pipeline,
    ProcessTask,
    ResourceManager,
    Resources,
    Retry,
    Session,
    SSHHost,
    SSHLinuxManager,
)
from datatask.schema.messages import Noticed, Started
from tests.integration.test_local_endings import ATTACKS
from tests.machine import mounted
from tests.run_kit import contents, opened, spec, until
from tests.ssh_runs import SECOND, ended, make, message, on_each_server, on_server

pytestmark = pytest.mark.server("sshd")


# --- what a manager is made of -------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["", "a b", "host:port", "-oProxyCommand=x", "a@b@c", "x;y z"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(CallerError, match="no SSH address"):
        SSHHost(address)


def test_a_manager_needs_hosts_with_different_names() -> None:
    with pytest.raises(CallerError, match="one host"):
        SSHLinuxManager("app")
    with pytest.raises(CallerError, match="same name"):
        SSHLinuxManager("app", hosts=["a@host", "b@host"])
    with pytest.raises(CallerError, match="ssh is a int"):
        SSHLinuxManager("app", 5)  # type: ignore[arg-type]
    with pytest.raises(CallerError, match="remote_path"):
        SSHLinuxManager("app", "host", "a\nb")


@pytest.mark.machine("root")
async def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "remote/app/target"
    folder.mkdir(parents=True)
    os.chown(folder.parent, 12345, 12345)
    with pytest.raises(CallerError, match="does not belong to this user"):
        async with opened(make(on_server(tmp_path), "true\n").runner):
            pass


@on_each_server
async def test_a_pipeline_writes_down_what_became_of_each_job(tmp_path: Path) -> None:
    """The same as of processes here: code, times by our clock, outputs in their repositories, no pids, no folders."""
    inp = InProcessBlobRepository({str(n): str(n).encode() for n in range(20)})
    out, done, pids = InProcessBlobRepository(), InProcessMetadataRepository(), InProcessMetadataRepository()
    quota = ResourceManager(Resources.parse("1", "1Gi"))
    task = ProcessTask(
        "process",
        on_server(tmp_path),
        quota,
        Resources.parse("100m", "1Mi"),
        pids,
        "cat; echo; echo bye >&2; exit {{ job }}",
        done=done,
        stdin=inp,
        stdout=out,
        stderr=STDOUT,
    )
    began = dt.datetime.now(dt.UTC)
    async with Pipeline([task], Session(), [quota], log="memory:") as pipeline:
        await pipeline.run(timeout=60)
    ended = dt.datetime.now(dt.UTC)
    assert {job: entry["return_code"] for job, entry in done.data.items()} == {str(n): n for n in range(20)}
    assert {job for job, entry in done.data.items() if entry["success"]} == {"0"}
    slack = dt.timedelta(seconds=0.1)  # the target tells hundredths of a second since its start
    for entry in done.data.values():
        assert began - slack <= entry["start_time"] <= entry["end_time"] + slack <= ended + 2 * slack
    assert out.data == {str(n): f"{n}\nbye\n".encode() for n in range(20)}
    assert pids.data == {}
    await until(lambda: not list((tmp_path / "remote/app/target").glob("*/[0-9]*")))


@on_each_server
async def test_parameters_reach_templates_over_ssh(tmp_path: Path) -> None:
    """With the values that were given, also what a shell would take apart."""
    inp = InProcessBlobRepository({"a": b""})
    out, pids = InProcessBlobRepository(), InProcessMetadataRepository()
    factor, label = Parameter("factor", 2), Parameter("label", "plain")
    factor.give("3")
    label.give("it's; two")
    script = 'printf "%s/%s" {{ factor }} {{ label | sh }}'
    nothing = Resources()
    task = ProcessTask("process", on_server(tmp_path), None, nothing, pids, script, stdin=inp, stdout=out)
    async with Pipeline([task], Session(), [], log="memory:", parameters=[factor, label]) as pipeline:
        assert (await pipeline.run(timeout=60)).exit_code == 0
        recorded = {one.name: one.value for one in pipeline.state.definition.parameters}
    assert out.data == {"a": b"3/it's; two"}
    assert recorded == {"factor": 3, "label": "it's; two"}


@on_each_server
async def test_a_second_attempt_over_ssh_has_more_memory(tmp_path: Path) -> None:
    """In its template, and by the limit on the target."""
    inp = InProcessBlobRepository({"a": b""})
    out, pids = InProcessBlobRepository(), InProcessMetadataRepository()
    task = ProcessTask(
        "process",
        on_server(tmp_path),
        None,
        [Resources(mem="300MiB"), Resources(mem="600MiB")],
        pids,
        "#!/bin/sh\necho {{ request.mem }} $(ulimit -v)\ntest {{ request.mem }} -gt 400000000\n",
        stdin=inp,
        stdout=out,
        enforce="ulimit",
        retry=Retry(2, backoff=0.01),
    )
    async with Pipeline([task], Session(), [], log="memory:") as pipeline:
        assert (await pipeline.run(timeout=60)).exit_code == 0
    assert out.data == {"a": b"%d %d\n" % (600 << 20, 600 << 10)}


@on_each_server
async def test_runs_over_ssh_are_told_their_own_cards(tmp_path: Path) -> None:
    """Beside the task's own environment; no two have one, and with more runs than cards each waits for one."""
    inp = InProcessBlobRepository({str(n): b"" for n in range(6)})
    out, done, pids = InProcessBlobRepository(), InProcessMetadataRepository(), InProcessMetadataRepository()
    box = ResourceManager(Resources.parse(64, "64GiB", gpu=["a'", "b"]), variables={"gpu": "CARD"})
    locks = tmp_path / "locks"
    locks.mkdir()
    task = ProcessTask(
        "process",
        on_server(tmp_path),
        box,
        Resources.parse(1, "1Mi", gpu=1),
        pids,
        f'exec 9>"{locks}/$CARD"; flock -n 9 || exit 9; sleep 0.1; printf "%s %s" "$CARD" "$OWN"',
        environ={"PATH": os.environ["PATH"], "OWN": "kept"},
        done=done,
        stdin=inp,
        stdout=out,
    )
    async with Pipeline([task], Session(), [box], log="memory:") as pipeline:
        assert (await pipeline.run(timeout=60)).exit_code == 0
    assert set(out.data.values()) == {b"a' kept", b"b kept"}


# --- ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "outcome", "code", "says"),
    [
        ("exit 3\n", "failed", 3, "exit code 3"),
        ("kill -9 $$\n", "failed", 137, "killed by SIGKILL"),
        ("kill -TERM 0\n", "failed", 143, "killed by SIGTERM"),
        ("#!/no/such/interpreter\n", "refused", None, "/no/such/interpreter"),
        ("#!/etc/passwd\n", "refused", None, "/etc/passwd of the script's first line cannot be run"),
        ("printf '\\377\\376'; kill -SEGV $$\n", "failed", 139, "killed by SIGSEGV"),
        ("#!/bin/sh -e\nfalse\ntrue\n", "failed", 1, "exit code 1"),
        ("#!/usr/bin/env sh\nexit 4", "failed", 4, "exit code 4"),
        ("no-such-command\n", "failed", 127, "exit code 127"),
    ],
)
async def test_each_end_is_told_as_what_it_was(
    tmp_path: Path, script: str, outcome: str, code: int | None, says: str
) -> None:
    end = await ended(on_server(tmp_path), script)
    assert (end.ending.outcome, end.ending.exit_code) == (outcome, code)
    assert says in message(end)


@on_each_server
async def test_a_stop_is_polite_then_not_and_takes_grandchildren_along(tmp_path: Path) -> None:
    """TERM to the group, KILL to all that is in the session after the grace; the script hears the TERM."""
    script = (
        f"#!/bin/bash\ntrap 'echo heard >> {tmp_path}/heard' TERM\n"
        f"set -m\nsleep 1234.5 & echo $! > {tmp_path}/grandchild\nwhile :; do sleep 0.1; done\n"
    )
    runner = make(on_server(tmp_path), script).runner
    async with opened(runner) as facts:
        runner.start(spec(1))
        await facts.first(1, Started)
        while not (tmp_path / "grandchild").exists():
            await asyncio.sleep(0.02)
        runner.stop(1, "timeout", SECOND // 2)
        end = await facts.end_of(1)
    assert (end.ending.outcome, end.ending.exit_code) == ("timed_out", 137)
    assert (tmp_path / "heard").read_text() == "heard\n"
    pid = (tmp_path / "grandchild").read_text().strip()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            break
        await asyncio.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("way", ["setsid", "setsid env -i"])
@pytest.mark.parametrize("ending", ["exec sleep 1234.5", "trap 'exit 0' TERM; while :; do sleep 0.1; done"])
async def test_a_stop_takes_along_what_made_a_session_of_its_own(
    tmp_path: Path, ending: str, way: str
) -> None:
    """By the run's variable or by descent, also when the script itself went at the TERM; a stranger's like name is let live."""
    script = f"{way} sleep 1234.5 & echo $! $DATATASK_RUN > {tmp_path}/new\nmv {tmp_path}/new {tmp_path}/left\n{ending}\n"
    runner = make(on_server(tmp_path), script).runner
    async with opened(runner) as facts:
        runner.start(spec(1))
        await facts.first(1, Started)
        await until((tmp_path / "left").exists)
        pid, folder = (tmp_path / "left").read_text().split()
        assert folder.endswith("/" + spec(1).identity.replace(".", "/", 1))
        environ = {"DATATASK_RUN": f"{folder}0", "OTHER": f"\nDATATASK_RUN={folder}"}
        stranger = await asyncio.create_subprocess_exec("/bin/sleep", "60", env=environ)
        try:
            runner.stop(1, "cancelled", SECOND // 4)
            assert (await facts.end_of(1)).ending.outcome == "cancelled"
            await until(lambda: gone(pid))
            assert stranger.returncode is None
            assert not gone(str(stranger.pid))
        finally:
            stranger.kill()
            await stranger.wait()


async def test_what_a_script_leaves_in_a_session_of_its_own_outlives_its_normal_end(tmp_path: Path) -> None:
    await ended(on_server(tmp_path), f"setsid sleep 1234.5 & echo $! > {tmp_path}/left; sleep 0.2\n")
    pid = (tmp_path / "left").read_text().strip()
    assert not gone(pid)
    os.kill(int(pid), 9)


def gone(pid: str) -> bool:
    """Whether a process is no more, or only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def test_what_a_script_leaves_in_its_group_ends_with_it(tmp_path: Path) -> None:
    await ended(on_server(tmp_path), f"sleep 1234.5 & echo $! > {tmp_path}/left\n")
    pid = (tmp_path / "left").read_text().strip()
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()


async def test_times_and_usage_come_with_the_end(tmp_path: Path) -> None:
    """By our clock, whatever the target's says."""
    import time

    before = time.time_ns()
    end = (
        await ended(on_server(tmp_path), "i=0; while [ $i -lt 60000 ]; do i=$((i + 1)); done; sleep 0.2\n")
    ).ending
    after = time.time_ns()
    assert end.started_at is not None
    assert end.ended_at is not None
    margin = SECOND // 10
    assert before - margin < end.started_at < end.ended_at < after + margin
    assert end.ended_at - end.started_at > 0.15 * SECOND
    assert end.usage is not None
    assert 0.01 < end.usage["cpu_seconds"] < 10


# --- output and input ---------------------------------------------------------------------------------


@on_each_server
async def test_output_is_bytes_of_any_kind_and_size(tmp_path: Path) -> None:
    script = "#!/usr/bin/python3\nimport sys\nsys.stdout.buffer.write(bytes(range(256)) * 16384)\n"
    script += "sys.stderr.buffer.write(b'\\xff\\xfe\\n')\n"
    runner = make(on_server(tmp_path), script).runner
    async with opened(runner) as facts:
        runner.start(spec(1))
        end = await facts.end_of(1)
        assert contents(end.writes[0]) == bytes(range(256)) * (1 << 14)
        assert contents(end.writes[1]) == b"\xff\xfe\n"
        kept = end.writes[0].source
        assert kept is not None
        runner.forget(1)
        assert not kept.exists()


async def test_a_hundred_thousand_lines_at_once_come_whole_and_in_order(tmp_path: Path) -> None:
    runner = make(on_server(tmp_path), "seq 1 100000\n").runner
    async with opened(runner) as facts:
        runner.start(spec(1))
        data = contents((await facts.end_of(1)).writes[0])
    assert data is not None
    assert data.split() == [str(number).encode() for number in range(1, 100_001)]


@on_each_server
async def test_both_streams_can_go_to_one(tmp_path: Path) -> None:
    end = await ended(on_server(tmp_path), "echo a; echo b >&2; echo c\n", stderr=STDOUT)
    assert [contents(write) for write in end.writes] == [b"a\nb\nc\n"]


@pytest.mark.parametrize(
    "script",
    [
        "printf '%s' '\\n$HOME`id`\"'\n",
        "cat <<'E'\n  leading and trailing  \nE\n",
        "#!/bin/cat\nno newline at the end",
        f"#!/bin/cat\n{'x' * 9000}\n",
        "#!/bin/cat\nnäïve ☃ \x01\x7f\n",
        "#!/bin/cat\n\n\n\n",
    ],
)
async def test_scripts_arrive_as_they_are(tmp_path: Path, script: str) -> None:
    """Those that travel with their start and those that are uploaded."""
    repo = InProcessBlobRepository()
    async with repo.open("good", "wb") as file:
        await file.write(b"")
    template = "{% raw %}" + script.replace("\n", "\n", 1) + "{% endraw %}"
    texts = [contents((await ended(on_server(tmp_path / str(n)), template, **more)).writes[0])
             for n, more in enumerate(({}, {"stdin": repo}))]  # fmt: skip
    assert texts[0] == texts[1]
    if script.startswith("#!/bin/cat"):
        assert texts[0] == script.encode()


async def test_a_documents_value_that_is_quoted_is_one_word_on_a_target_too(tmp_path: Path) -> None:
    """Whatever a value is, neither the script nor the agent, who reads both, takes it for its own."""
    attacks = [*ATTACKS, "\nstop 1.1 0 cancelled\nstart 1.2 t true - 0\n/bin/touch\n{mark}\n"]
    values = [attack.format(mark=tmp_path / "mark") for attack in attacks]
    task = make(on_server(tmp_path), "printf '%s\\0' {{ doc.names | sh }}\n")
    task.link("doc", InProcessMetadataRepository({"good": {"names": values}}), is_input=True)
    async with opened(task.runner) as facts:
        task.runner.start(spec(1))
        end = await facts.end_of(1)
    assert end.ending.outcome == "succeeded"
    assert (contents(end.writes[0]) or b"").decode().split("\0") == [*values, ""]
    assert not (tmp_path / "mark").exists()


@on_each_server
async def test_an_environment_replaces_the_other_one_and_leaves_no_trace(tmp_path: Path) -> None:
    """Values of every kind; neither on the disk nor on a command line."""
    value = 'it\'s a "secret"\nof two lines $HOME `id` \\'
    script = f'#!/usr/bin/python3\nimport os, json\nprint(json.dumps(dict(os.environ)))\nos.system(\'cat /proc/*/cmdline 2>/dev/null | tr "\\\\0" " " > {tmp_path}/lines; grep -rl two.lines {tmp_path}/remote > {tmp_path}/files\')\n'
    given = {"SECRET": value, "PATH": "/usr/bin:/bin"}
    given |= dict.fromkeys(("run", "dir", "place", "id"), "ours")  # as the agent calls variables of its own
    end = await ended(on_server(tmp_path), script, environ=given)
    import json

    data = contents(end.writes[0])
    assert data is not None
    environ = json.loads(data)
    assert {name: environ[name] for name in given} == given
    assert Path(environ["DATATASK_RUN"]).is_relative_to(tmp_path / "remote")
    assert set(environ) <= {*given, "PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE", "DATATASK_RUN"}
    assert "of two lines" not in (tmp_path / "lines").read_text(errors="replace")


async def test_a_variable_that_no_shell_can_set_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match="A-B"):
        async with opened(make(on_server(tmp_path), "true\n", environ={"A-B": "x"}).runner):
            pass


@pytest.mark.machine("mounts")
async def test_a_full_disk_loses_no_end(tmp_path: Path) -> None:
    """The script fails by itself; a run that cannot be started waits until there is room, and begins then."""
    script = "{% if job == 'big' %}head -c 4000000 /dev/zero{% else %}echo there{% endif %}"
    with mounted(tmp_path / "remote", "size=1m"):
        runner = make(on_server(tmp_path), script).runner
        async with opened(runner) as facts:
            runner.start(spec(1, "big"))
            first = await facts.end_of(1)
            runner.start(spec(2))
            noticed = await facts.first(2, Noticed)
            runner.forget(1)
            second = await facts.end_of(2)
    assert (first.ending.outcome, first.ending.exit_code) == ("failed", 1)
    assert isinstance(noticed, Noticed)
    assert noticed.phase == "pending"
    assert "disk is full" in noticed.message
    assert second.ending.outcome == "succeeded"
