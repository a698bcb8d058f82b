"""Logs of pods in parts, with cuts anywhere."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datatask.adapters.execute.kube.lines import IN_MEMORY_BYTES, Lines


class Container:
    """What a kubelet would answer about a container's log: lines with times, from a second on."""

    def __init__(self, lines: list[tuple[int, bytes]]) -> None:
        self.lines = [
            (f"2026-11-23T01:51:{tick // 1000:02}.{tick % 1000:03}000000Z", text) for tick, text in lines
        ]

    def answer(self, since: str) -> bytes:
        """Return all lines from a second on."""
        return b"".join(
            stamp.encode() + b" " + text + b"\n"
            for stamp, text in self.lines
            if not since or stamp >= since[:-1]
        )

    def whole(self) -> bytes:
        """Return what the container wrote."""
        return b"".join(text + b"\n" for _, text in self.lines)


texts = st.one_of(
    st.binary(max_size=8).map(lambda text: text.replace(b"\n", b"")), st.just(b"2026-01-01T00:00:00Z x")
)
steps = st.lists(st.tuples(st.sampled_from([0, 0, 1, 400, 1000, -1]), texts), max_size=25)


@given(steps=steps, cuts=st.lists(st.integers(0, 400), max_size=6), parts=st.integers(1, 40))
def test_a_log_has_no_gaps_and_no_repeats_wherever_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, bytes]], cuts: list[int], parts: int
) -> None:
    """Times may stand still, and go back, though the server is asked by whole seconds."""
    now, timed = 5000, []
    for step, text in steps:
        now = max(0, now + step)
        timed.append((now, text))
    container = Container(timed)
    lines = Lines(tmp_path_factory.mktemp("log", numbered=True) / "log")
    for cut in [*cuts, None]:
        data = container.answer(lines.since)[:cut]
        lines.begin()
        for at in range(0, len(data), parts):
            lines.feed(data[at : at + parts])
        lines.cut()
    assert lines.content() == container.whole()
    lines.close()


def test_a_line_of_the_second_before_is_not_missed_where_the_stream_was_cut(tmp_path: Path) -> None:
    container = Container([(5000, b""), (4999, b"late")])
    lines = Lines(tmp_path / "log")
    for cut in (32, None):
        lines.begin()
        lines.feed(container.answer(lines.since)[:cut])
        lines.cut()
    content = lines.content()
    lines.close()
    assert content == container.whole()


def test_a_log_moves_into_a_file_when_it_grows_and_long_lines_are_not_held(tmp_path: Path) -> None:
    """The last line may lack its newline."""
    lines = Lines(tmp_path / "log")
    lines.begin()
    lines.feed(b"2026-11-23T01:51:14.085767642Z begin\n2026-11-23T01:51:14.085767643Z ")
    for _ in range(50):
        lines.feed(b"x" * 1000)
    assert lines.size > IN_MEMORY_BYTES
    lines.cut()  # taken back, to come again
    assert lines.read(0, 100) == b"begin\n"
    lines.begin()
    lines.feed(b"2026-11-23T01:51:14.085767642Z begin\n2026-11-23T01:51:14.085767643Z " + b"x" * 50_000)
    lines.finish()
    content = lines.content()
    assert isinstance(content, Path)
    assert content.read_bytes() == b"begin\n" + b"x" * 50_000
    assert lines.tail(3) == b"xxx"
    lines.take_back(6)
    assert content.read_bytes() == b"begin\n"
    lines.close()
    assert not content.exists()


@pytest.mark.parametrize("cut", [1, 3, 9, 40, 200])
def test_lines_without_a_time_are_the_kubelets_words_and_no_output(tmp_path: Path, cut: int) -> None:
    """Whole or in parts, alone or after output, with or without a newline."""
    words = b"unable to retrieve container logs for containerd://ee8b25e131f0362e4155b3578c622b6d"
    stamped = b"2026-11-23T01:51:14.085767642Z one\n2026-11-23T01:51:15.085767642Z unable to\n"
    for said, output in ((words, b""), (words + b"\n", b""), (stamped + words, b"one\nunable to\n")):
        lines = Lines(tmp_path / "log")
        lines.begin()
        for at in range(0, len(said), cut):
            lines.feed(said[at : at + cut])
        lines.finish()
        assert lines.content() == output
        assert lines.words.strip() == words
        lines.begin()
        assert lines.words == b""


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part that could not be written comes again."""
    container = Container([(tick, b"y" * 1000) for tick in range(40)])
    lines = Lines(tmp_path / "log")
    lines.begin()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", _full)
        with pytest.raises(OSError, match="No space"):
            lines.feed(container.answer(""))
    lines.cut()
    data = container.answer(lines.since)
    lines.begin()
    lines.feed(data)
    lines.finish()
    assert lines.read(0, 1 << 20) == container.whole()


def _full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_log_of_any_size_takes_little_memory(tmp_path: Path) -> None:
    """Many lines, and one of many megabytes."""
    lines = Lines(tmp_path / "log")
    part = b"".join(b"2026-11-23T01:51:14.%09dZ %s\n" % (at, b"x" * 80) for at in range(600))
    tracemalloc.start()
    lines.begin()
    for _ in range(200):
        lines.feed(part)
    lines.feed(b"2026-11-23T01:51:15.000000000Z ")
    for _ in range(300):
        lines.feed(b"y" * 65536)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    lines.finish()
    assert lines.size == 200 * 600 * 81 + 300 * 65536
    assert most < 2_000_000
    lines.close()
