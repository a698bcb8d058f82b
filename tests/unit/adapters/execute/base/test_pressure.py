"""What the machine has no room for is told once each time that it happens."""

from __future__ import annotations

import pytest

from datatask.adapters.execute.base.pressure import Pressure
from datatask.schema.messages import Fact


async def test_room_that_lacks_again_after_all_were_withdrawn_is_told_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    facts: list[Fact] = []
    pressure = Pressure("t", facts.append)
    pressure.refused(1, lambda: None, "no processes")
    pressure.refused(2, lambda: None, "no processes")
    assert len(caplog.messages) == 1
    assert pressure.withdraw(1)
    assert pressure.withdraw(2)
    assert not pressure.withdraw(2)
    pressure.refused(3, lambda: None, "no memory")
    assert len(caplog.messages) == 2
    assert "no memory" in caplog.messages[1]
    pressure.close()
