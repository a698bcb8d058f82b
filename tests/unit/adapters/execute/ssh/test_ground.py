"""Whose a target is."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from datatask.adapters.execute.ssh.ground import Identity, OccupiedError, Owner, check_owner, home_of

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
