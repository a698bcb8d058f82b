"""Managers and addresses of hosts."""

from __future__ import annotations

import pytest

from datatask import CallerError, SSHHost, SSHLinuxManager


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


async def test_a_run_that_is_looked_for_on_a_host_of_no_name_is_kept() -> None:
    manager = SSHLinuxManager("app", "node1")
    with pytest.raises(CallerError, match="none of the hosts"):
        manager.place("a.1.1", "node2")
    with pytest.raises(CallerError, match="not been started"):
        manager.place("a.1.1", "")
