"""A simulation of a log says what another quota would really bring. How closely, `python -m benchmarks truth` measures."""

from __future__ import annotations

from pathlib import Path

from benchmarks.truth import apart, imagined, lived


async def test_twice_the_places_bring_what_the_log_of_fewer_foretold(tmp_path: Path) -> None:
    """Real processes that sleep; the bound is wide, since the machine may do anything meanwhile."""
    few = await lived(tmp_path / "few", "sleeps", 2, 12, 0.5)
    many = await lived(tmp_path / "many", "sleeps", 4, 12, 0.5)
    assert apart(few, imagined(tmp_path / "few" / "log.db", 2))[0] < 0.3
    foretold = imagined(tmp_path / "few" / "log.db", 4)
    assert apart(many, foretold)[0] < 0.3
    assert foretold.makespan < 0.75 * few.makespan
