"""SSH runs when the network, the target or the engine fails: nothing is lost that is not provably gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from datatask import InProcessBlobRepository
from datatask.adapters.execute.ssh import contact, ground, sessions
from datatask.adapters.execute.ssh import manager as ssh_manager
from datatask.adapters.execute.ssh import target as ssh_target
from datatask.schema.messages import Adopted, Ended, Reachable, RunSpec, Started, Unreachable
from tests.run_kit import contents, opened, spec, until
from tests.ssh_kit import proxied, server, serving
from tests.ssh_runs import (
    LOG,
    SECOND,
    effects,
    left_behind,
    on_each_server,
    record_of,
    runs_of,
    ssh_task,
    through_proxy,
)

pytestmark = pytest.mark.server("sshd")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_target, "PING_SECONDS", 0.5)
    monkeypatch.setattr(contact, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(ssh_target, "RETRY_SECONDS_MAX", 0.3)


# --- connections --------------------------------------------------------------------------------------


@on_each_server
async def test_runs_go_on_while_the_connection_is_cut(tmp_path: Path) -> None:
    """Cut again and again, at any moment: each script runs once, each run ends once."""
    template = f"echo {{{{ job }}}} >> {tmp_path}/effects; sleep 0.3; echo done\n"
    async with through_proxy(tmp_path, template) as (proxy, runner, facts):
        for run in range(1, 41):
            runner.start(spec(run, f"j{run}"))
            if run % 8 == 0:
                await until(lambda: proxy.accepted > run // 8 - 1)  # noqa: B023 - it is awaited at once
                await asyncio.sleep(0.1)
                proxy.cut()
        endings = [(await facts.end_of(run)) for run in range(1, 41)]
    assert sorted(effects(tmp_path)) == sorted(f"j{run}" for run in range(1, 41))
    assert {ended.ending.outcome for ended in endings} == {"succeeded"}
    assert {contents(ended.writes[0]) for ended in endings} == {b"done\n"}
    assert len([fact for fact in facts.all if isinstance(fact, Ended)]) == 40
    assert proxy.accepted >= 5


@on_each_server
@pytest.mark.parametrize("seconds", [0.5, pytest.param(600, marks=pytest.mark.soak)])
async def test_a_silent_target_is_unreachable_and_what_ended_meanwhile_is_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Nothing is lost, and nothing is started twice, however long the silence."""
    monkeypatch.setattr(contact, "SILENT_SECONDS", 60)  # however long the first contact takes
    async with through_proxy(tmp_path, f"echo x >> {tmp_path}/effects; sleep 0.5; echo done\n") as (
        proxy,
        runner,
        facts,
    ):
        runner.start(spec(1))
        await facts.first(1, Started)
        monkeypatch.setattr(contact, "SILENT_SECONDS", 0.3)
        proxy.silent = True
        await facts.first(1, Unreachable)
        runner.start(spec(2))
        await facts.first(2, Unreachable)
        await asyncio.sleep(seconds)
        assert not [fact for fact in facts.all if isinstance(fact, Ended)]
        proxy.silent = False
        proxy.cut()
        assert [(await facts.end_of(run)).ending.outcome for run in (1, 2)] == ["succeeded", "succeeded"]
        first, *silences, last = [type(fact) for fact in facts.of(1)]
        assert (first, last) == (Started, Ended)
        assert silences == [Unreachable, Reachable] * (len(silences) // 2), (
            "each silence is told, and its end"
        )
    assert effects(tmp_path) == ["x", "x"]


@pytest.mark.parametrize("after", range(4_000, 52_000, 4_000))
async def test_a_connection_that_breaks_while_the_target_is_prepared_is_made_anew(
    tmp_path: Path, after: int
) -> None:
    """After so many bytes: in the handshake, in what is sent first, between the sessions; half an answer is none."""
    async with proxied(server()) as proxy:
        proxy.cut_after = after
        runner = ssh_task(tmp_path, "echo done\n", server().host(port=proxy.port)).runner
        async with opened(runner) as facts:
            runner.start(spec(1))
            end = await facts.end_of(1)
    assert contents(end.writes[0]) == b"done\n"


async def test_a_shell_that_is_killed_while_it_prepares_the_target_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one here kills itself."""
    (tmp_path / "sh").write_text(
        f'#!/bin/sh\nmkdir {tmp_path}/once 2>/dev/null && kill -9 $$\nexec /bin/sh "$@"\n'
    )
    (tmp_path / "sh").chmod(0o755)
    monkeypatch.setattr(sessions, "SHELL", str(tmp_path / "sh"))
    runner = ssh_task(tmp_path, "echo done\n").runner
    async with opened(runner) as facts:
        runner.start(spec(1))
        assert contents((await facts.end_of(1)).writes[0]) == b"done\n"
    assert (tmp_path / "once").exists()


@on_each_server
async def test_a_stop_reaches_the_run_after_the_silence(tmp_path: Path) -> None:
    """Asked for while nobody could hear it."""
    async with through_proxy(tmp_path, "sleep 60\n") as (proxy, runner, facts):
        runner.start(spec(1))
        await facts.first(1, Started)
        proxy.refusing = True
        proxy.cut()
        await facts.first(1, Unreachable)
        runner.stop(1, "cancelled", SECOND // 5)
        await asyncio.sleep(0.3)
        assert not [fact for fact in facts.all if isinstance(fact, Ended)]
        proxy.refusing = False
        assert (await facts.end_of(1)).ending.outcome == "cancelled"


async def test_a_slow_network_changes_nothing(tmp_path: Path) -> None:
    """A tenth of a second each way."""
    async with through_proxy(tmp_path, "echo done\n") as (proxy, runner, facts):
        proxy.delay = 0.05
        for run in range(1, 11):
            runner.start(spec(run))
        assert {(await facts.end_of(run)).ending.outcome for run in range(1, 11)} == {"succeeded"}


@on_each_server
async def test_a_download_goes_on_where_the_connection_broke(tmp_path: Path) -> None:
    """Eight megabytes, cut in the middle, arrive whole."""
    template = "#!/usr/bin/python3\nimport sys, hashlib\nfor n in range(1 << 17):\n"
    template += "    sys.stdout.buffer.write(hashlib.blake2b(b'%d' % n).digest())\n"
    async with through_proxy(tmp_path, template) as (proxy, runner, facts):
        runner.start(spec(1))
        await facts.first(1, Started)
        proxy.cut_after = proxy.forwarded + 3_000_000
        ended = await facts.end_of(1)
        data = contents(ended.writes[0])
        runner.forget(1)
    assert proxy.cut_after is None
    assert proxy.accepted >= 2
    import hashlib

    assert data == b"".join(hashlib.blake2b(b"%d" % n).digest() for n in range(1 << 17))


@on_each_server
async def test_an_upload_that_breaks_begins_anew(tmp_path: Path) -> None:
    """Its script is started only when all of its input is there."""
    stdin = InProcessBlobRepository()
    data = os.urandom(1 << 22)
    async with stdin.open("good", "wb") as file:
        await file.write(data)
    async with proxied(server()) as proxy:
        runner = ssh_task(tmp_path, "cat\n", server().host(port=proxy.port), stdin=stdin).runner
        async with opened(runner) as facts:
            proxy.cut_after = 1 << 21
            runner.start(spec(1))
            ended = await facts.end_of(1)
            assert ended.ending.outcome == "succeeded"
            assert contents(ended.writes[0]) == data
    assert proxy.accepted >= 2


async def test_a_target_that_is_down_at_first_is_waited_for(tmp_path: Path) -> None:
    """Opening succeeds; runs wait, and say so."""
    async with proxied(server()) as proxy:
        proxy.refusing = True
        runner = ssh_task(tmp_path, "true\n", server().host(port=proxy.port)).runner
        async with opened(runner) as facts:
            runner.start(spec(1))
            await facts.first(1, Unreachable)
            proxy.refusing = False
            assert (await facts.end_of(1)).ending.outcome == "succeeded"


async def test_five_hundred_live_runs_need_three_sessions(tmp_path: Path) -> None:
    """sshd allows ten on a connection by default."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    runner = ssh_task(tmp_path, f"read line <{gate}\nexit 0\n").runner
    async with opened(runner) as facts:
        try:
            for run in range(1, 501):
                runner.start(spec(run))
            await until(lambda: len([fact for fact in facts.all if isinstance(fact, Started)]) == 500, 60)
            assert not [fact for fact in facts.all if isinstance(fact, Ended)]
        finally:  # whatever happens, nobody is left waiting
            opener = os.open(gate, os.O_RDWR)
            await asyncio.sleep(0.5)
            os.close(opener)
        await until(lambda: len([fact for fact in facts.all if isinstance(fact, Ended)]) == 500, 60)
    assert {fact.ending.outcome for fact in facts.all if isinstance(fact, Ended)} == {"succeeded"}


@pytest.mark.machine("mounts")
async def test_a_target_that_restarts_under_an_engine_has_lost_what_ran_and_takes_new_runs(
    tmp_path: Path,
) -> None:
    """All of its processes are gone at once, whoever waits for a run before the run; then it is back with another boot id."""
    (tmp_path / "boot").write_text("11111111-2222-3333-4444-555555555555\n")
    boot_id = "/proc/sys/kernel/random/boot_id"
    with serving(tmp_path / "server") as before:
        host, port = before.host(), before.port
        runner = ssh_task(
            tmp_path, "{% if job == 'slow' %}sleep 60{% else %}echo done{% endif %}\n", host
        ).runner
        stack = contextlib.AsyncExitStack()
        facts = await stack.enter_async_context(opened(runner))
        runner.start(spec(1, "slow"))
        await facts.first(1, Started)
        pid, _, _, waiter = (runs_of(tmp_path) / "1.1/claim").read_text().split()
    os.kill(int(waiter), signal.SIGKILL)
    os.killpg(int(pid), signal.SIGKILL)
    async with stack:
        await facts.first(1, Unreachable)
        with serving(tmp_path / "server", port=port, over={boot_id: tmp_path / "boot"}):
            lost = (await facts.end_of(1)).ending
            runner.start(spec(2, "quick"))
            started = await facts.first(2, Started)
            end = await facts.end_of(2)
    assert lost.outcome == "lost"
    assert lost.error is not None
    assert lost.error.message == "the machine was restarted while it ran"
    assert isinstance(started, Started)
    assert started.handle["boot"] == (tmp_path / "boot").read_text().strip()
    assert (end.ending.outcome, contents(end.writes[0])) == ("succeeded", b"done\n")


# --- later engines ------------------------------------------------------------------------------------


def rewrite_claim(path: Path, name: str, **changes: str) -> None:
    """Change what a run's claim says."""
    claim = runs_of(path) / name / "claim"
    keys = ("pid", "boot", "start", "waiter")
    words = dict(zip(keys, claim.read_text().split(), strict=True)) | changes
    claim.write_text(" ".join(words.values()) + "\n")


async def test_a_run_of_before_a_reboot_is_lost_and_what_had_ended_is_collected(tmp_path: Path) -> None:
    """The boot id tells; a record of an end stays what it is."""
    async with left_behind(
        tmp_path, "sleep {{ 0.2 if job == 'quick' else 60 }}; echo done\n", "quick", "slow"
    ) as specs:
        await until(lambda: record_of(tmp_path, "1.1") is not None)
        pid = int(str((specs[1].handle or {})["pid"]))
        for name in ("1.1", "1.2"):
            rewrite_claim(tmp_path, name, boot="before")
        record = record_of(tmp_path, "1.1")
        assert record is not None
        record.write_text(record.read_text().replace(str((specs[0].handle or {})["boot"]), "before"))
        later = ssh_task(tmp_path, "true\n").runner
        async with opened(later) as facts:
            await later.recover(specs)
            ended = await facts.end_of(1)
            lost = await facts.end_of(2)
    os.killpg(pid, signal.SIGKILL)
    assert (ended.ending.outcome, contents(ended.writes[0])) == ("succeeded", b"done\n")
    assert lost.ending.outcome == "lost"
    assert lost.ending.error is not None
    assert "restarted" in lost.ending.error.message


async def test_a_recycled_pid_is_not_taken_for_the_run(tmp_path: Path) -> None:
    """Somebody else's process with the run's pid is neither adopted nor killed."""
    async with left_behind(tmp_path, "sleep 60\n", "slow") as specs:
        await asyncio.sleep(0.05)  # start times are in hundredths of a second
        stranger = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
        ours = int(str((specs[0].handle or {})["pid"]))
        rewrite_claim(tmp_path, "1.1", pid=str(stranger.pid), waiter=str(stranger.pid))
        later = ssh_task(tmp_path, "true\n").runner
        async with opened(later) as facts:
            await later.recover(specs)
            assert (await facts.end_of(1)).ending.outcome == "lost"
            later.stop(1, "cancelled", 0)
            later.forget(1)
            await until(lambda: not (runs_of(tmp_path) / "1.1").exists())
        assert stranger.returncode is None
        stranger.kill()
        await stranger.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(ours, signal.SIGKILL)


async def test_a_run_whose_shell_was_killed_is_watched_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is adopted while it runs; then it counts as lost, for nobody saw how it ended."""
    monkeypatch.setattr(ssh_target, "CHECK_EVERY", 1)
    async with left_behind(tmp_path, "sleep 1\n", "slow") as specs:
        waiter = (runs_of(tmp_path) / "1.1/claim").read_text().split()[3]
        os.kill(int(waiter), signal.SIGKILL)
        later = ssh_task(tmp_path, "true\n").runner
        async with opened(later) as facts:
            await later.recover(specs)
            assert isinstance(facts.of(1)[0], Adopted)
            ended = await facts.end_of(1)
    assert ended.ending.outcome == "lost"
    assert ended.ending.error is not None
    assert "nobody recorded" in ended.ending.error.message


async def test_a_start_that_comes_after_recovery_does_nothing(tmp_path: Path) -> None:
    """The tombstone is under the run's own name."""
    runner = ssh_task(tmp_path, f"echo x >> {tmp_path}/effects\n").runner
    async with opened(runner) as facts:
        await runner.recover([spec(1)])
        assert (await facts.end_of(1)).ending.outcome == "lost"
    runner = ssh_task(tmp_path, f"echo x >> {tmp_path}/effects\n").runner
    async with opened(runner) as facts:
        runner.start(spec(1))
        assert (await facts.end_of(1)).ending.outcome == "lost"
    assert effects(tmp_path) == []


async def test_recovery_of_a_silent_target_says_so_and_goes_on_later(tmp_path: Path) -> None:
    """Nothing is known, so nothing is lost."""
    async with left_behind(tmp_path, "sleep 0.5; echo done\n", "slow") as specs, proxied(server()) as proxy:
        proxy.silent = True
        later = ssh_task(tmp_path, "true\n", server().host(port=proxy.port))
        monkey = pytest.MonkeyPatch()
        monkey.setattr(ssh_target, "OPEN_SECONDS", 0.3)
        async with opened(later.runner) as facts:
            await later.runner.recover(specs)
            assert [type(fact) for fact in facts.of(1)] == [Unreachable]
            proxy.silent = False
            proxy.cut()
            ended = await facts.end_of(1)
        monkey.undo()
    assert (ended.ending.outcome, contents(ended.writes[0])) == ("succeeded", b"done\n")


async def test_an_engine_of_another_log_has_a_folder_beside_that_of_the_first_one(tmp_path: Path) -> None:
    """And finds it again when the first one is gone."""
    first = ssh_task(tmp_path, "true\n").runner
    other = RunSpec(1, "fedcba9876543210.1.1", "t", "good", 1, 1, {})
    monkey = pytest.MonkeyPatch()
    async with opened(first) as facts:
        first.start(spec(1))
        await facts.end_of(1)
        monkey.setattr(ssh_manager, "_hosts", {})  # as if it were another process
        monkey.setattr(ssh_target, "_at_work", {})
        second = ssh_task(tmp_path, "true\n").runner
        async with opened(second) as others:
            second.start(other)
            ended = await others.end_of(1)
    assert ended.ending.outcome == "succeeded"
    assert (tmp_path / "remote/app~2/target/fedcba9876543210").is_dir()
    third = ssh_task(tmp_path, "true\n").runner
    async with opened(third) as facts:
        third.start(other)
        assert (await facts.end_of(1)).ending.outcome == "succeeded"
    monkey.undo()


async def test_an_old_log_that_was_put_back_waits_where_a_later_state_of_it_has_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run is used up by it; they go on when somebody has removed what says so."""
    first = ssh_task(tmp_path, "true\n").runner
    async with opened(first) as facts:
        first.start(spec(1, epoch=4))
        await facts.end_of(1)
    monkeypatch.setattr(ssh_manager, "_hosts", {})  # as if it were another process
    monkeypatch.setattr(ssh_target, "_at_work", {})
    back = ssh_task(tmp_path, "true\n").runner
    async with opened(back) as facts:
        back.start(spec(2, epoch=3))
        await until(lambda: any(isinstance(fact, Unreachable) for fact in facts.of(2)))
        (silent,) = facts.of(2)
        assert isinstance(silent, Unreachable)
        assert "a later state of this log" in silent.message
        (owner,) = (tmp_path / "remote").glob("**/owner")
        owner.unlink()
        assert (await facts.end_of(2)).ending.outcome == "succeeded"


def test_the_agent_of_a_killed_engine_is_nobody_who_is_in_the_way() -> None:
    """It may live on for a while, and the first run that is recovered has its engine's epoch."""
    mine = ground.Identity(LOG, 3, ground.new_token(), ["host", "log.db", "1", "2"])
    killed = ground.Owner(LOG, 3, f"{mine.token.partition('-')[0]}-17-0123456789ab.0123abcd", True, mine.home)
    ground.check_owner(killed, mine, "target")
    beside = ground.Owner(LOG, 3, f"{ground.new_token()}.0123abcd", True, mine.home)
    with pytest.raises(ground.OccupiedError, match="another manager of this pipeline"):
        ground.check_owner(beside, mine, "target")


@on_each_server
async def test_what_earlier_engines_left_is_removed(tmp_path: Path) -> None:
    """Folders whose runs nobody counts as open any more, and their processes."""
    async with left_behind(tmp_path, "sleep 60\n", "slow") as specs:
        later = ssh_task(tmp_path, "true\n").runner
        async with opened(later) as facts:
            later.start(spec(9, epoch=2))
            await facts.end_of(9)
            later.forget(9)
        pid = int(str((specs[0].handle or {})["pid"]))
        await until(lambda: not Path(f"/proc/{pid}").exists())
        await until(lambda: not (runs_of(tmp_path) / "2.9").exists())
