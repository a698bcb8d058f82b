"""The pure parts of SSH runs: whose a target is, what errors mean, where room is, what a shell's numbers say."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import asyncssh
import pytest

from datatask import CallerError, Resources, SSHHost, SSHLinuxManager, TemporaryError
from datatask.adapters.execute.ssh.agent_messages import parse, plain, seconds
from datatask.adapters.execute.ssh.connections import mapped
from datatask.adapters.execute.ssh.contact import Target
from datatask.adapters.execute.ssh.link import Identity, OccupiedError, Owner, check_owner, home_of
from datatask.adapters.execute.ssh.placing import Hosts
from datatask.schema.events import StopReason

HERE = socket.gethostname()
MINE = Identity("a" * 16, 3, "mine", [HERE, "/logs/mine.db", "1", "2"])


def owner(
    log: str = "a" * 16,
    epoch: int = 2,
    token: str = "other.1",
    *,
    live: bool = True,
    home: list[str] | None = None,
) -> Owner:
    """Return a record that an engine left on a target."""
    return Owner(log, epoch, token, live, home or MINE.home)


@pytest.mark.parametrize(
    "known",
    [
        None,
        owner(token="mine.2"),
        owner(),
        owner(epoch=3, live=False),
        owner(log="b" * 16, live=False),
        owner(home=[HERE, "/logs/moved.db", "1", "2"]),
        owner(home=["elsewhere", "/logs/mine.db", "7", "8"]),
    ],
)
def test_a_target_that_is_free_or_ours_is_taken(known: Owner | None) -> None:
    """Nobody's, our own of before, an earlier engine's of this log, and what a dead engine left."""
    check_owner(known, MINE, "node")


def test_a_target_that_is_somebody_else_s_is_refused_by_name(tmp_path: Path) -> None:
    """Another log's, another manager's, that of the log of which this is a copy, and that of a later state."""
    log = tmp_path / "other.db"
    log.touch()
    for known, whose in (
        (owner(log="b" * 16), "b" * 16),
        (owner(epoch=3), "another manager"),
        (owner(live=False, home=home_of(f"sqlite:///{log}")), "of which this is a copy"),
        (owner(epoch=4, live=False), "a later state"),
    ):
        with pytest.raises(OccupiedError, match=whose):
            check_owner(known, MINE, "node")


def test_errors_tell_who_has_to_act() -> None:
    """A person, or time."""
    for error in (
        asyncssh.PermissionDenied("no"),
        asyncssh.HostKeyNotVerifiable("no"),
        asyncssh.KeyImportError("no"),
        TypeError("x"),
    ):
        assert isinstance(mapped(error, "node"), CallerError)
    for error in (
        TimeoutError(),
        OSError("x"),
        asyncssh.ConnectionLost("x"),
        asyncssh.ChannelOpenError(2, "x"),
    ):
        assert isinstance(mapped(error, "node"), TemporaryError)
    ours = CallerError("x")
    assert mapped(ours, "node") is ours


def test_a_shell_tells_signals_as_128_and_more() -> None:
    assert [plain(text) for text in ("0", "3", "127", "128", "137", "143", "255")] == [
        0,
        3,
        127,
        128,
        -9,
        -15,
        255,
    ]


def test_times_of_every_shell_are_seconds() -> None:
    """dash, bash and busybox print them differently."""
    assert [seconds(text) for text in ("0m0.070000s", "2m1.5s", "0m0,25s")] == [0.07, 121.5, 0.25]


WHOLE = "71 990 b00t 12.50 137 - -stdout=9,stdout_sum=77,peak=5,oom=0,peak=7,oom=1, 0m1.5s 1m0.25s"


def test_a_record_is_read_or_told_to_be_torn() -> None:
    """Each cut of a record is torn, but for those of its last number, which the agent's closing dot covers."""
    record = parse(WHOLE.split(" "))
    assert record == (
        "71",
        "990",
        "b00t",
        12.5,
        -9,
        None,
        {"stdout": 9},
        7,
        True,
        61.75,
        {},
        {"stdout": "77"},
        False,
    )
    gone = parse(WHOLE.replace("stdout=9", "stdout=9,stdout_gone=1,stderr_written=5").split(" "))
    assert gone is not None
    assert gone.sizes == {"stderr": 0}
    assert {name: words.partition(" while ")[0] for name, words in gone.wrong.items()} == {
        "stdout": "its stdout was removed or exchanged",
        "stderr": "its stderr was cut",
    }
    assert [cut for cut in range(len(WHOLE)) if parse(WHOLE[:cut].split(" "))] == []
    assert parse([*WHOLE.split(" "), "more"]) is None


@pytest.mark.parametrize(
    ("noted", "stop", "outcome", "words"),
    [
        ("137 - -", None, "failed", "killed by SIGKILL"),
        (
            "137 - -killed=1,",
            None,
            "failed",
            "killed by SIGKILL: the kernel has killed for lack of memory meanwhile",
        ),
        (
            "137 - -oom=1,",
            None,
            "failed",
            "killed by SIGKILL: out of memory: the kernel killed at the 64 bytes",
        ),
        ("137 timeout -", None, "timed_out", "stopped: its time was up"),
        ("137 - -", "cancelled", "cancelled", "stopped: it was cancelled"),
        ("3 - -", "cancelled", "failed", "exit code 3"),
        ("unstarted - -", None, "lost", "it could not be started"),
    ],
)
def test_what_a_record_means(noted: str, stop: StopReason | None, outcome: str, words: str) -> None:
    record = parse(f"71 990 b00t 12.50 {noted} 0m0.0s 0m0.0s".split(" "))
    assert record is not None
    ending = record.ending(stop, 64)
    assert (ending.outcome, ending.error is not None and ending.error.message.startswith(words)) == (
        outcome,
        True,
    )


def test_addresses_name_their_hosts() -> None:
    labels = [
        SSHHost(text).label
        for text in ("node1", "ada@node1:22", "ssh://ada@node1/", "[::1]:22", "n.example.org")
    ]
    assert labels == ["node1", "node1", "node1", "__1", "n.example.org"]
    assert SSHHost("node1", name="the big/one").label == "the_big_one"
    assert "secret" not in repr(SSHHost("node1", options={"password": "secret"}))


def test_managers_of_one_target_are_one_to_it() -> None:
    """Two tasks may each make a manager of their own."""
    one, two = SSHLinuxManager("app", "node1"), SSHLinuxManager("app", "node1")
    assert one._shared is two._shared
    assert SSHLinuxManager("other", "node1")._shared is not one._shared
    assert str(one.basedir) == ".datatask/app"
    assert one.quota is None


async def test_who_gives_up_waiting_for_room_takes_none() -> None:
    """Neither before nor after it was given."""
    hosts = Hosts([Target(SSHHost("node", Resources.parse(1, 1)), "app", "x")])
    one = Resources.parse(1, 1)
    await hosts.place("first", one)
    second = asyncio.ensure_future(hosts.place("second", one))
    third = asyncio.ensure_future(hosts.place("third", one))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    hosts.release("first")
    assert (await third).label == "node"
    assert hosts.used(hosts.targets[0]).cpu == 1
    hosts.release("third")
    assert hosts.used(hosts.targets[0]).cpu == 0


async def test_a_run_that_is_looked_for_on_a_host_of_no_name_is_kept() -> None:
    manager = SSHLinuxManager("app", "node1")
    with pytest.raises(CallerError, match="none of the hosts"):
        manager.place("a.1.1", "node2")
    with pytest.raises(CallerError, match="not been started"):
        manager.place("a.1.1", "")
