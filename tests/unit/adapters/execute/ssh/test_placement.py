"""Where runs are placed among hosts."""

from __future__ import annotations

import asyncio

from datatask import Resources, SSHHost
from datatask.adapters.execute.ssh.placement import Hosts
from datatask.adapters.execute.ssh.target import Target


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
