"""Errors of the file system are named once."""

from __future__ import annotations

import errno
import os

import pytest

from datatask.adapters.store.inputs import NotPermittedError, os_errors
from datatask.schema.errors import CallerError, DatataskError, TemporaryError


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, NotPermittedError),
        (errno.EROFS, PermissionError),
        (errno.ELOOP, CallerError),
        (errno.ENOTDIR, CallerError),
        (errno.ENOENT, TemporaryError),
        (errno.ENOSPC, TemporaryError),
        (errno.ESTALE, TemporaryError),
    ],
)
def test_the_systems_errors_are_named_once(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind) as told, os_errors("/some/where"):
        raise OSError(number, os.strerror(number))
    assert isinstance(told.value, DatataskError)
    assert str(told.value).startswith(
        f"/some/where: {'the folder' if number == errno.ENOENT else os.strerror(number)}"
    )
    assert isinstance(told.value.__cause__, OSError)
