"""How far a log is verified is told unasked only where much is left."""

from __future__ import annotations

import pytest

from datatask.adapters.history.verify.progress import FAR_BEHIND, UpTo


@pytest.mark.parametrize(
    ("position", "head", "told"),
    [(0, 11, False), (0, FAR_BEHIND - 1, False), (0, FAR_BEHIND, True), (7, FAR_BEHIND + 7, True),
     (10 * FAR_BEHIND - 3, 10 * FAR_BEHIND, False)],
)  # fmt: skip
def test_far_behind(position: int, head: int, told: bool) -> None:
    assert UpTo(position, head).is_far_behind is told
