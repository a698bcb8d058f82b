"""What functions print: bounded, told apart by run, and printed all the same."""

from __future__ import annotations

import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datatask.engine import capture
from datatask.engine.capture import Capture
from datatask.schema.messages import Printed, printed_of


@given(st.lists(st.binary(max_size=40)), st.integers(1, 64))
def test_beginning_and_end_are_kept_whatever_the_pieces(pieces: list[bytes], most: int) -> None:
    made = Capture(most)
    for piece in pieces:
        made.add("stdout", piece)
    whole, half = b"".join(pieces), max(1, most // 2)
    printed = made.printed()
    if not whole:
        assert printed == ()
        return
    (found,) = printed
    assert (found.stream, found.size) == ("stdout", len(whole))
    assert found.head == whole[:half]
    assert found.tail == whole[half:][-half:]


@given(st.binary(max_size=100), st.integers(2, 64))
def test_contents_are_cut_in_the_middle(content: bytes, most: int) -> None:
    found = printed_of("stdout", content, most)
    if not content:
        assert found == ()
    elif len(content) <= most:
        assert found == (Printed("stdout", len(content), content),)
    else:
        assert found == (Printed("stdout", len(content), content[: most // 2], content[-(most // 2) :]),)


def test_what_is_printed_and_logged_is_captured_once_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    made: Capture | None = Capture(1000)
    before = sys.stdout, sys.stderr
    capture.begin(lambda: made)
    try:
        print("one")
        sys.stdout.buffer.write(b"two\n")
        sys.stderr.write("three\n")
        logging.getLogger("mine").warning("four %d", 4)
        logging.getLogger("datatask.engine").warning("ours")
        kept, made = made, None
        print("nobody's")
    finally:
        capture.end()
    assert (sys.stdout, sys.stderr) == before
    assert kept is not None
    streams = {one.stream: one.head for one in kept.printed()}
    assert streams == {"stdout": b"one\ntwo\n", "stderr": b"three\nWARNING mine: four 4\n"}
    out, err = capsys.readouterr()
    assert out == "one\ntwo\nnobody's\n" or set(out.splitlines()) == {"one", "two", "nobody's"}
    assert "three" in err


def test_a_warning_that_nobody_handles_is_printed_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        capture.begin(lambda: None)
        logging.getLogger("mine").warning("plain")
        logging.getLogger("mine").info("unseen")
        capture.end()
        assert root.handlers == []
    finally:
        root.handlers = handlers
    assert capsys.readouterr().err == "plain\n"
