"""Errors of a connection: who has to act."""

from __future__ import annotations

import asyncssh

from datatask import CallerError, TemporaryError
from datatask.adapters.execute.ssh.connections import mapped


def test_errors_tell_who_has_to_act() -> None:
    """A person, or time."""
    for error in (
        asyncssh.PermissionDenied("no"),
        asyncssh.HostKeyNotVerifiable("no"),
        asyncssh.KeyImportError("no"),
        TypeError("x"),
    ):
        assert isinstance(mapped(error, "node"), CallerError)
    for error in (
        TimeoutError(),
        OSError("x"),
        asyncssh.ConnectionLost("x"),
        asyncssh.ChannelOpenError(2, "x"),
    ):
        assert isinstance(mapped(error, "node"), TemporaryError)
    ours = CallerError("x")
    assert mapped(ours, "node") is ours
