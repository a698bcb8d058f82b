"""Errors of a connection: who has to act."""

from __future__ import annotations

import asyncssh

from datatask import CallerError, TemporaryError
from datatask.adapters.execute.ssh.connections import mapped


def test_errors_tell_who_has_to_act() -> None:
    """A person, or time."""
    callers: tuple[Exception, ...] = (
        asyncssh.PermissionDenied("no"),
        asyncssh.HostKeyNotVerifiable("no"),
        asyncssh.KeyImportError("no"),
        TypeError("x"),
    )
    for error in callers:
        assert isinstance(mapped(error, "node"), CallerError)
    passing: tuple[Exception, ...] = (
        TimeoutError(),
        OSError("x"),
        asyncssh.ConnectionLost("x"),
        asyncssh.ChannelOpenError(2, "x"),
    )
    for error in passing:
        assert isinstance(mapped(error, "node"), TemporaryError)
    ours = CallerError("x")
    assert mapped(ours, "node") is ours
