"""Resource managers count."""

from __future__ import annotations

import datetime as dt

from datatask import (
    ResourceManager,
    Resources,
)
from datatask.schema.resources import ResourceType
from datatask.schema.units import SECOND


async def test_resource_managers_count_as_before() -> None:
    """For tasks that reserve by themselves; the engine counts its own runs."""
    manager = ResourceManager(Resources.parse("1", "1Gi"), name="box", window=dt.timedelta(minutes=2))
    request = Resources.parse("600m", "1Mi", 1)
    assert await manager.reserve(request) is None
    assert await manager.reserve(request) is ResourceType.CPU
    await manager.relinquish(request)
    assert await manager.reserve(request) is None
    await manager.flush()
    definition = manager.to_def("default")
    assert (definition.name, definition.window) == ("box", 120 * SECOND)
    assert definition.limits == {"cpu": SECOND, "mem": 2**30 * SECOND}
