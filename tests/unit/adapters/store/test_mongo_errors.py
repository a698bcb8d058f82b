"""What MongoDB answers, in the engine's words."""

from __future__ import annotations

import pytest
from pymongo import errors

from datatask.adapters.store.inputs import NotPermittedError
from datatask.adapters.store.mongo import mapped
from datatask.schema.errors import DatataskError, InvalidValueError, StoreError, TemporaryError

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.AutoReconnect(SECRET), TemporaryError),
        (errors.NetworkTimeout(SECRET), TemporaryError),
        (errors.ServerSelectionTimeoutError(SECRET), TemporaryError),
        (errors.WaitQueueTimeoutError(SECRET), TemporaryError),
        (errors.ExecutionTimeout(SECRET, 50), TemporaryError),
        (errors.CursorNotFound(SECRET, 43), TemporaryError),
        (errors.NotPrimaryError(SECRET), TemporaryError),
        (errors.DuplicateKeyError(SECRET, 11000), TemporaryError),
        (errors.OperationFailure(SECRET, 13), NotPermittedError),
        (errors.OperationFailure(SECRET, 18), NotPermittedError),
        (errors.OperationFailure(SECRET, 73), InvalidValueError),
        (errors.ConfigurationError(SECRET), InvalidValueError),
        (errors.InvalidURI(SECRET), InvalidValueError),
        (errors.OperationFailure(SECRET, 2), StoreError),
    ],
)
def test_each_error_has_its_outcome_and_its_text_is_not_repeated(
    error: Exception, kind: type[DatataskError]
) -> None:
    ours = mapped(error, "mongodb://host/db.c")
    assert isinstance(ours, kind)
    assert SECRET not in str(ours)
    assert "\n" not in str(ours)
    assert str(ours).startswith("mongodb://host/db.c")


def test_errors_of_others_are_left_as_they_are() -> None:
    error = ZeroDivisionError()
    assert mapped(error, "here") is error
    ours = StoreError("x")
    assert mapped(ours, "here") is ours
