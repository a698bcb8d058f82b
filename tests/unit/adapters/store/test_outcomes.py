"""What remote stores answer: each answer has one outcome, and who has to act is said."""

from __future__ import annotations

import pytest

from datatask.adapters.store.inputs import MissingFileError, NotPermittedError
from datatask.adapters.store.outcomes import outcome
from datatask.adapters.store.resuming import LastingError
from datatask.schema.errors import DatataskError, InvalidValueError, StoreError, TemporaryError


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (400, "ExpiredToken", LastingError, "credentials have expired"),
        (403, "RequestExpired", LastingError, "credentials have expired"),
        (404, "NoSuchBucket", LastingError, "nothing in it is taken for deleted"),
        (404, "ContainerNotFound", LastingError, "no bucket of that name"),
        (403, "InvalidObjectState", StoreError, "restore it from Glacier"),
        (301, "PermanentRedirect", InvalidValueError, "AWS_REGION"),
        (400, "AuthorizationHeaderMalformed", InvalidValueError, "another region"),
        (403, "InvalidAccessKeyId", NotPermittedError, "does not accept the credentials"),
        (401, "", NotPermittedError, "does not accept the credentials"),
        (403, "AccessDenied", NotPermittedError, "cannot be told whether it is there"),
        (404, "NoSuchKey", MissingFileError, "it is not there"),
        (429, "", TemporaryError, "answers 429"),
        (500, "InternalError", TemporaryError, "answers 500 InternalError"),
        (503, "SlowDown", TemporaryError, "answers 503 SlowDown"),
        (400, "SlowDown", TemporaryError, "tried again"),
        (501, "NotImplemented", StoreError, "refuses it"),
        (400, "EntityTooLarge", StoreError, "refuses it"),
        (None, "", TemporaryError, "does not answer"),
    ],
)
def test_an_answer_has_one_outcome(
    status: int | None, code: str, kind: type[DatataskError], words: str
) -> None:
    error = outcome(status, code, "s3://b/k")
    assert type(error) is kind
    assert error.where == "s3://b/k"
    assert error.remedy
    assert words in str(error)
