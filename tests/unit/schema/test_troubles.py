"""What the machine refuses is told with what, where and remedy; what it does not is a mistake of ours."""

from __future__ import annotations

import errno
import os

import pytest

from datatask.schema.errors import CallerError, InternalError, SystemTroubleError
from datatask.schema.troubles import as_error, printable, trouble


@pytest.mark.parametrize(
    ("error", "kind", "what", "where"),
    [
        (OSError(errno.ENOSPC, "x", "/a"), SystemTroubleError, "the disk is full", "/a"),
        (OSError(errno.EACCES, "x", "/a", None, "/b"), SystemTroubleError, "not permitted", "/a -> /b"),
        (FileNotFoundError(errno.ENOENT, "x", b"/M\xe4rz"), SystemTroubleError, "it is not there", "/M\\xe4rz"),
        (OSError("odd"), SystemTroubleError, "the system refused something", "here"),
        (MemoryError(), SystemTroubleError, "no memory is left", "here"),
        (RuntimeError("can't start new thread"), SystemTroubleError, "no process, thread or memory", "here"),
        (RecursionError(), CallerError, "nested too deeply", "here"),
        (UnicodeDecodeError("utf-8", b"M\xe4", 1, 2, "x"), CallerError, "not utf-8 text (byte 0xe4 at 1)", "here"),
        (UnicodeEncodeError("utf-8", "M\udce4", 1, 2, "x"), CallerError, "cannot be written in utf-8", "here"),
    ],
)  # fmt: skip
def test_each_has_what_where_and_remedy(error: Exception, kind: type, what: str, where: str) -> None:
    """`where` is the error's own, else the one that is given."""
    told = trouble(error, "here")
    assert told is not None
    assert isinstance(told, kind)
    assert what in told.what
    assert told.where == where
    assert told.remedy
    assert "\n" not in str(told)


def test_what_is_no_trouble_is_a_mistake_of_ours() -> None:
    """Told as such, by its type."""
    assert trouble(KeyError("x")) is None
    told = as_error(KeyError("x"), "here")
    assert isinstance(told, InternalError)
    assert told.what == "KeyError: 'x'"


def test_every_text_can_be_written() -> None:
    """What stands for bytes that are no UTF-8, and what stands for nothing."""
    assert printable(os.fsdecode(b"M\xe4rz")) == "M\\xe4rz"
    assert printable("März") == "März"
    assert printable("\ud800").isascii()
