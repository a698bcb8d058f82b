"""What remote stores answer, in the engine's words: try later, hold, refuse by name.

In: an HTTP status and the store's own code for what is wrong. Out: one of our errors. `TemporaryError`: the engine backs off and
tries again, and a listing that ends so deletes nothing. `NotPermittedError`, `StoreError`, `InvalidValueError`: trying again changes
nothing, the run or the command ends with it. The store's own text is never repeated: it may have names and signatures in it.
"""

from __future__ import annotations

from datatask.adapters.store.inputs import MissingFileError, NotPermittedError
from datatask.adapters.store.resuming import LastingError
from datatask.schema.errors import DatataskError, InvalidValueError, StoreError, TemporaryError

EXPIRED = frozenset(
    (
        "ExpiredToken",
        "ExpiredTokenException",
        "RequestExpired",
        "TokenRefreshRequired",
        "RequestTimeTooSkewed",
    )
)
NO_BUCKET = frozenset(("NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted", "NamespaceNotFound"))
ARCHIVED = frozenset(("InvalidObjectState", "BlobArchived", "ObjectNotInActiveTierError"))
UNKNOWN_KEY = frozenset(
    ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity", "AuthenticationFailed", "InvalidToken")
)
ELSEWHERE = frozenset(
    ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")
)
LATER = frozenset((408, 425, 429))
SLOW = frozenset(("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "ServerBusy"))


def outcome(status: int | None, code: str, where: str, what: str = "it does not answer") -> DatataskError:
    """Return the error for an answer; `status` is None where there was none, and `what` then says why."""
    said = f"it answers {status}{' ' + code if code else ''}" if status else what
    if code in EXPIRED:
        return LastingError(
            f"the credentials have expired ({code})",
            where=where,
            remedy="it is tried again with what the provider gives then; renew the login if it is yours",
        )
    if code in NO_BUCKET:
        return LastingError(
            f"there is no bucket of that name ({code})",
            where=where,
            remedy="make it or correct the name; nothing in it is taken for deleted meanwhile",
        )
    if code in ARCHIVED:
        return StoreError(
            f"the object is archived ({code})",
            where=where,
            remedy="restore it from Glacier or the archive tier first",
        )
    if code in ELSEWHERE or status in (301, 307):
        return InvalidValueError(
            f"the bucket is in another region ({said})",
            where=where,
            remedy="set AWS_REGION to the bucket's region",
        )
    if code in UNKNOWN_KEY or status == 401:
        return NotPermittedError(
            f"the store does not accept the credentials ({said})",
            where=where,
            remedy="look at the key in the environment, and at the endpoint",
        )
    if status == 403:
        return NotPermittedError(
            f"it is not allowed, so it cannot be told whether it is there ({said})",
            where=where,
            remedy="grant the right to list, read and write; without the right to list, what is absent looks forbidden",
        )
    if status == 404:
        return MissingFileError("it is not there", where=where, remedy="write it first, or ask contains()")
    if status is None or status in LATER or (status >= 500 and status != 501) or code in SLOW:
        return TemporaryError(said, where=where, remedy="it is tried again")
    return StoreError(f"the store refuses it ({said})", where=where, remedy="look at the bucket's rules")
