"""Time lines as pictures and as text: what is drawn where, and what is said to who cannot see it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from datatask.adapters.history.timeline import Lane, Span, Timeline, bar, draw, lasting, lines, save
from datatask.schema.errors import CallerError

SECOND = 1_000_000_000
BEGAN = 1_700_000_000 * SECOND
SVG = "{http://www.w3.org/2000/svg}"


def _span(phase: str, began: int, ended: int | None, **more: object) -> Span:
    at = None if ended is None else BEGAN + ended * SECOND
    return Span(phase=phase, began_at=BEGAN + began * SECOND, ended_at=at, position=began + 1, **more)  # type: ignore[arg-type]


LINE = Timeline(
    job="cat",
    position=9,
    until=BEGAN + 100 * SECOND,
    lanes=(
        Lane(
            task="double",
            spans=(
                _span("ready", 0, 20),
                _span("running", 20, 40, run=5, attempt=1, outcome="failed", error="ValueError: <no>\nmore"),
                _span("retrying", 40, 50),
                _span("running", 50, 60, run=8, attempt=2, outcome="succeeded", where="host"),
                _span("ended", 60, None, run=8, outcome="succeeded"),
            ),
        ),
        Lane(task="shout", spans=()),
        Lane(task="tell", spans=(_span("waiting", 60, None),)),
    ),
)


def _bars(row: ET.Element) -> list[ET.Element]:
    return row.findall(f"{SVG}rect")


def test_a_row_a_task_that_saw_the_job() -> None:
    """Tasks that the job never came near have no row."""
    root = ET.fromstring(draw([LINE]))
    rows = root.findall(f"{SVG}g")
    assert [row.get("aria-label") for row in rows] == ["double", "tell"]
    assert [[bar.get("class") for bar in _bars(row)] for row in rows] == [
        ["ready", "bad", "retrying", "succeeded", "succeeded"],
        ["waiting"],
    ]


def test_spans_stand_where_their_times_are() -> None:
    """Positions and widths are proportional to time, and what still lasts reaches the end."""
    first, second, *_, last = _bars(ET.fromstring(draw([LINE])).findall(f"{SVG}g")[0])
    assert float(first.get("width", 0)) == pytest.approx(float(second.get("width", 0)), abs=0.1)
    assert float(second.get("x", 0)) == pytest.approx(
        float(first.get("x", 0)) + float(first.get("width", 0)), abs=0.1
    )
    assert float(last.get("x", 0)) + float(last.get("width", 0)) == pytest.approx(960 - 16, abs=0.1)


def test_the_picture_says_what_it_shows() -> None:
    """Title, description, and for each span its position, run and error, with nothing left unescaped."""
    root = ET.fromstring(draw([LINE]))
    assert root.get("role") == "img"
    assert root.findtext(f"{SVG}title") == "Time line of cat"
    assert "cat in double: 2 runs (failed, succeeded)." in (root.findtext(f"{SVG}desc") or "")
    titles = [bar.findtext(f"{SVG}title") or "" for bar in root.iter(f"{SVG}rect")]
    assert any("run 5; failed; ValueError: <no> @21" in title for title in titles)
    assert all("more" not in title for title in titles)


def test_the_picture_stands_alone_and_follows_light_and_dark() -> None:
    """Nothing is fetched, nothing runs, and the colours follow the reader's scheme."""
    text = draw([LINE])
    assert text.startswith("<svg")
    assert "prefers-color-scheme: dark" in text
    for foreign in ("href", "<script", "url(", "@import", "<image"):
        assert foreign not in text


def test_several_jobs_share_one_axis() -> None:
    """With more jobs than one, each row names its job."""
    rows = ET.fromstring(draw([LINE, LINE])).findall(f"{SVG}g")
    assert [row.get("aria-label") for row in rows] == ["cat double", "cat tell"] * 2


def test_a_time_line_of_nothing_is_still_a_picture() -> None:
    """A job that no task has seen gives an SVG that says so."""
    empty = Timeline(job="cat", position=3, until=BEGAN, lanes=())
    assert "no task has seen" in draw([empty])
    assert list(lines(empty)) == ["cat: no task has seen it (position 3)"]


def test_bars_of_text_keep_runs_visible() -> None:
    """A run is at least a character wide, whatever else happened in its cell."""
    short = Lane(
        task="t", spans=(_span("ready", 0, 50), _span("running", 50, 50, run=3), _span("ended", 50, None))
    )
    assert bar(short, BEGAN, BEGAN + 100 * SECOND, 10) == "-----#____"


def test_text_tells_each_span() -> None:
    """Phase, time, duration, run, attempt, place, outcome, and the position to look at."""
    text = "\n".join(lines(LINE))
    assert "cat: 1 min 40 s, 2023-11-14T22:13:20.000000Z to 2023-11-14T22:15:00.000000Z (position 9)" in text
    assert "running  2023-11-14T22:14:10.000000Z for 10 s; run 8, attempt 2; on host; succeeded @51" in text
    assert "waiting  2023-11-14T22:14:20.000000Z since 40 s @61" in text


def test_durations_below_a_second_are_milliseconds() -> None:
    """Short spans are not told as nothing."""
    assert [lasting(0.0), lasting(0.0614), lasting(1.5), lasting(200)] == [
        "0 s",
        "61.4 ms",
        "1.5 s",
        "3 min 20 s",
    ]


def test_a_drawing_replaces_drawings_only(tmp_path: Path) -> None:
    """A slip of the hand does not cost a pipeline file, and nothing else is left in the folder."""
    save(tmp_path / "a.svg", draw([LINE]))
    save(tmp_path / "a.svg", draw([LINE]))
    (tmp_path / "pipeline.py").write_text("import datatask\n")
    with pytest.raises(CallerError, match="no drawing"):
        save(tmp_path / "pipeline.py", draw([LINE]))
    with pytest.raises(CallerError, match="No such file"):
        save(tmp_path / "none" / "a.svg", draw([LINE]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "pipeline.py"]
