"""Several hosts for one manager, a host that does not answer, and the manager's verbs by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from datatask import STDOUT, CallerError, Resources, SSHLinuxManager, TemporaryError
from datatask.schema.messages import Adopted, Ended, Reachable, Started, Unreachable
from tests.run_kit import Facts, opened, spec, until
from tests.ssh_kit import proxied, server, serving
from tests.ssh_runs import ended, make, message, on_each_server, on_server

pytestmark = pytest.mark.server("sshd")


@pytest.fixture
def crowd(tmp_path: Path) -> SSHLinuxManager:
    """Two hosts, one with three times the room of the other."""
    hosts = [
        server().host("small", quota=Resources.parse(2, "2Gi")),
        server().host("large", quota=Resources.parse(6, "6Gi")),
    ]
    return SSHLinuxManager("app", remote_path=tmp_path / "remote", hosts=hosts)


def places(facts: Facts) -> list[str]:
    """Return where runs were started."""
    return [fact.where for fact in facts.all if isinstance(fact, Started)]


@on_each_server
async def test_runs_go_to_the_host_with_the_most_room_and_wait_for_room(
    crowd: SSHLinuxManager, tmp_path: Path
) -> None:
    """Eight fit; the ninth waits for an end, and takes its place."""
    assert crowd.quota == Resources.parse(8, "8Gi", 2 * 999_999_999)
    one = Resources.parse(1, "1Gi")
    runner = make(
        crowd, f"while [ ! -e {tmp_path}/go-{{{{ job }}}} ]; do sleep 0.1; done\n", resources=one
    ).runner
    async with opened(runner) as facts:
        for run in range(1, 10):
            runner.start(spec(run, f"j{run}"))
        for run in range(1, 9):
            await facts.first(run, Started)
        await asyncio.sleep(0.2)
        assert sorted(places(facts)) == ["large"] * 6 + ["small"] * 2
        assert facts.of(9) == []
        (tmp_path / "go-j1").touch()
        await facts.end_of(1)
        nine = await facts.first(9, Started)
        assert isinstance(nine, Started)
        assert nine.where == next(fact.where for fact in facts.of(1) if isinstance(fact, Started))
        for run in range(2, 10):
            runner.stop(run, "cancelled", 0)
        for run in range(2, 10):
            await facts.end_of(run)


async def test_what_no_host_can_ever_take_is_refused(crowd: SSHLinuxManager) -> None:
    end = await ended(crowd, "true\n", resources=Resources.parse(7, "1Gi"))
    assert end.ending.outcome == "refused"
    assert "no host can ever take cpu 7, mem 1Gi; raise a quota" in message(end)


@on_each_server
async def test_a_later_engine_finds_runs_on_whichever_host_they_are(crowd: SSHLinuxManager) -> None:
    """Also when the log does not say where, for the engine died before it was told."""
    runner = make(crowd, "sleep 60\n", resources=Resources.parse(2, "1Gi")).runner
    async with opened(runner) as facts:
        for run in range(1, 5):
            runner.start(spec(run))
        for run in range(1, 5):
            await facts.first(run, Started)
        before = places(facts)
    later = make(crowd, "sleep 60\n", resources=Resources.parse(2, "1Gi")).runner
    async with opened(later) as facts:
        await later.recover([spec(run) for run in range(1, 6)])
        found = sorted(fact.where for fact in facts.all if isinstance(fact, Adopted))
        assert found == sorted(before) == ["large"] * 3 + ["small"]
        assert [fact.run for fact in facts.all if isinstance(fact, Ended)] == [5]
        for run in range(1, 5):
            later.stop(run, "cancelled", 0)
        for run in range(1, 5):
            await facts.end_of(run)


async def test_a_host_that_is_down_gets_no_runs(tmp_path: Path) -> None:
    with serving(tmp_path / "gone") as gone:
        host = gone.host("gone")
    manager = SSHLinuxManager("app", remote_path=tmp_path / "remote", hosts=[host, server().host("here")])
    runner = make(manager, "true\n").runner
    async with opened(runner) as facts:
        for run in range(1, 6):
            runner.start(spec(run))
        for run in range(1, 6):
            await facts.end_of(run)
        assert places(facts) == ["here"] * 5


async def test_the_quota_of_a_silent_host_is_held_and_others_go_on(tmp_path: Path) -> None:
    """What waits goes where there is room; back in contact, the silent one has room only when its own run has ended."""
    one = Resources.parse(1, "1Gi")
    script = f"while [ ! -e {tmp_path}/go-{{{{ job }}}} ]; do sleep 0.05; done\n"
    async with proxied(server()) as proxy:
        hosts = [server().host("silent", port=proxy.port, quota=one), server().host("other", quota=one)]
        manager = SSHLinuxManager("app", remote_path=tmp_path / "remote", hosts=hosts)
        runner = make(manager, script, resources=one).runner
        async with opened(runner) as facts:
            for run in range(1, 5):
                runner.start(spec(run, f"j{run}"))
            await until(lambda: len(places(facts)) == 2)
            where = {fact.where: fact.run for fact in facts.all if isinstance(fact, Started)}
            held, free = where["silent"], where["other"]
            proxy.refusing = True
            proxy.cut()
            await facts.first(held, Unreachable)
            (tmp_path / f"go-j{free}").touch()
            await until(lambda: len(places(facts)) == 3)
            third = [fact for fact in facts.all if isinstance(fact, Started)][-1]
            (fourth,) = {1, 2, 3, 4} - {held, free, third.run}
            assert third.where == "other"
            proxy.refusing = False
            await facts.first(held, Reachable)
            await asyncio.sleep(0.5)
            assert facts.of(fourth) == []
            (tmp_path / f"go-j{held}").touch()
            started = await facts.first(fourth, Started)
            assert isinstance(started, Started)
            assert started.where == "silent"
            for run in (third.run, fourth):
                (tmp_path / f"go-j{run}").touch()
                assert (await facts.end_of(run)).ending.outcome == "succeeded"


async def test_a_host_that_does_not_answer_is_a_temporary_trouble(tmp_path: Path) -> None:
    with serving(tmp_path / "gone") as gone:
        host = gone.host()
    with pytest.raises(TemporaryError):
        await host.connect()


# --- by hand ------------------------------------------------------------------------------------------


@on_each_server
async def test_the_manager_s_verbs_work_by_hand(tmp_path: Path) -> None:
    """Files and processes, as a manager of a user's own has them."""
    manager = on_server(tmp_path)
    folder = tmp_path / "by hand/below"
    await manager.mkdir(folder)
    async with manager.open(folder / "file", "wb") as file:
        await file.write(b"\xff\n")
    async with manager.open(folder / "file", "rb") as file:
        assert await file.read() == b"\xff\n"
    with pytest.raises(FileNotFoundError):
        async with manager.open(folder / "none", "r"):
            pass
    code, out = str(folder / "code"), str(folder / "out")
    pid = await manager.spawn(
        ["/bin/sh", "-c", "cat; echo $X; exit 5"],
        {"X": "a b"},
        str(folder),
        code,
        str(folder / "file"),
        out,
        STDOUT,
    )
    await until(Path(code).exists)
    assert Path(code).read_text() == "5\n"
    assert Path(out).read_bytes() == b"\xff\na b\n"
    assert await manager.get_live_pids({pid}) == set()
    pid = await manager.spawn(["/bin/sleep", "60"], None, str(folder), code, None, None, None)
    assert await manager.get_live_pids({pid, "999999999"}) == {pid}
    await manager.kill(pid)
    async with asyncio.timeout(60):
        while await manager.get_live_pids({pid}):
            await asyncio.sleep(0.02)
    await manager.rmtree(folder)
    assert not folder.exists()


async def test_two_managers_that_say_the_same_are_one(tmp_path: Path) -> None:
    host = server().host(quota=Resources.parse(1, "1Gi"))
    one, other = (SSHLinuxManager("app", host, tmp_path / "remote") for _ in range(2))
    job = Resources.parse(1, "1Gi")
    first, second = (make(manager, "sleep 0.3\n", resources=job).runner for manager in (one, other))
    async with opened(first) as facts, opened(second) as others:
        first.start(spec(1))
        second.start(spec(2))
        ends = [(await facts.end_of(1)).ending, (await others.end_of(2)).ending]
    assert [ending.outcome for ending in ends] == ["succeeded"] * 2
    times = sorted((ending.started_at or 0, ending.ended_at or 0) for ending in ends)
    assert times[0][1] <= times[1][0]  # they share the host's quota


@pytest.mark.parametrize(
    ("quota", "options", "what"),
    [
        (Resources.parse(2, "1Gi"), {}, "the quotas cpu 1, mem 1Gi and cpu 2, mem 1Gi"),
        (Resources.parse(1, "1Gi"), {"compression_algs": None}, "different options: compression_algs"),
    ],
)
async def test_two_managers_that_say_otherwise_are_told_apart(
    tmp_path: Path, quota: Resources, options: dict[str, Any], what: str
) -> None:
    """While one works, the other is refused; afterwards it may."""
    at_first = server().host(quota=Resources.parse(1, "1Gi"))
    one = SSHLinuxManager("app", at_first, tmp_path / "remote")
    other = SSHLinuxManager("app", server().host(quota=quota, **options), tmp_path / "remote")
    async with opened(make(one, "true\n").runner):
        with pytest.raises(CallerError, match="two managers of the app 'app' use it at once") as raised:
            async with opened(make(other, "true\n").runner):
                pass
        assert what in str(raised.value)
    assert (await ended(other, "true\n")).ending.outcome == "succeeded"
