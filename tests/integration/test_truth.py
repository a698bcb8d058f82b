"""A simulation of a log says what another quota would really bring. How closely, `python -m benchmarks truth` measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.truth import apart, imagined, lived

TRIES = 5


async def test_twice_the_places_bring_what_the_log_of_fewer_foretold(tmp_path: Path) -> None:
    """Real processes that sleep. The machine may do anything meanwhile: one of some pairs of lives is to show it."""
    for number in range(TRIES):
        folder = tmp_path / str(number)
        few = await lived(folder / "few", "sleeps", 2, 12, 0.5)
        many = await lived(folder / "many", "sleeps", 4, 12, 0.5)
        foretold = imagined(folder / "few" / "log.db", 4)
        assert foretold.makespan < 0.75 * few.makespan
        away = apart(few, imagined(folder / "few" / "log.db", 2))[0], apart(many, foretold)[0]
        if max(away) < 0.3:
            return
    pytest.fail(f"the last foretold ones were {away} away")
