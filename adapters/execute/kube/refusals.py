"""What the API server's answers mean for a request that it did not carry out.

In: an HTTP status, its body, its headers. Out: a `Refusal`: whether to ask again, how soon, and the server's words. A 403
may be a missing right, a quota, a limit range, an admission webhook or a namespace that goes away; they are told apart
by reason and text, for the status is the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec

from datatask.adapters.execute.kube.pods import ApiStatus, decode_status

Again = Literal["exists", "full", "busy", "limited", "never"]
"""`exists`: an object has that name. `full`: when others have ended. `busy`: the server, for everybody: soon.
`limited`: only if somebody changes the cluster. `never`: not as it is."""

WORDS_MAX = 1000
RETRY_AFTER_MAX = 300.0
_OF_A_QUOTA = re.compile(r"exceeded quota|quota .*(exceeded|insufficient)", re.IGNORECASE)
_MANIFEST = re.compile(r"failed quota: .*must specify")


class Refusal(NamedTuple):
    """Why a request was not carried out. `code` is HTTP's, 0 where there was no answer."""

    again: Again
    code: int
    reason: str
    words: str
    after_seconds: float | None = None


def refusal(code: int, body: bytes, headers: Mapping[str, str]) -> Refusal:
    """Return what an answer other than 2xx means for a create, a delete, a list."""
    status = _status(body)
    words = (status.message or body[:WORDS_MAX].decode(errors="replace").strip() or f"HTTP {code}")[
        :WORDS_MAX
    ]
    reason = status.reason or {401: "Unauthorized", 429: "TooManyRequests"}.get(code, f"HTTP{code}")
    after = _after(status, headers)
    return Refusal(_again(code, status, words), code, _precise(code, reason, words), words, after)


def unanswered(error: BaseException) -> Refusal:
    """Return what a request without an answer means: ask again, it may or may not have been carried out."""
    words = str(error) or type(error).__name__
    return Refusal("busy", 0, "Unreachable", words[:WORDS_MAX])


def _again(code: int, status: ApiStatus, words: str) -> Again:
    if code == 409:
        return "exists" if status.reason == "AlreadyExists" else "busy"
    if code == 403 and _OF_A_QUOTA.search(words):
        return "full"
    if code == 403 and _MANIFEST.search(words):
        return "never"
    if code in (401, 403, 404):
        return "limited"
    if code in (408, 425, 429) or code >= 500:
        return "busy"
    return "limited" if "denied the request" in words else "never"


def _precise(code: int, reason: str, words: str) -> str:
    """Return the reason in a word, where `Forbidden` says too little."""
    if code not in (403, 500):
        return reason
    for text, precise in _PRECISE.items():
        if text in words:
            return precise
    return reason


_PRECISE = {
    "exceeded quota": "QuotaExceeded",
    "failed quota": "QuotaNeedsRequests",
    "admission webhook": "AdmissionWebhook",
    "ValidatingAdmissionPolicy": "AdmissionPolicy",
    "violates PodSecurity": "PodSecurity",
    "is being terminated": "NamespaceTerminating",
    "no PriorityClass": "PriorityClassMissing",
    "service account": "ServiceAccountMissing",
    " per Container is": "LimitRange",
    " per Pod is": "LimitRange",
    "cannot create resource": "NotAllowed",
    "cannot list resource": "NotAllowed",
    "cannot watch resource": "NotAllowed",
    "cannot delete resource": "NotAllowed",
    "cannot patch resource": "NotAllowed",
    "cannot get resource": "NotAllowed",
}


def _status(body: bytes) -> ApiStatus:
    try:
        return decode_status(body)
    except (msgspec.DecodeError, msgspec.ValidationError):  # plain text, as a 429's is
        return ApiStatus()


def _after(status: ApiStatus, headers: Mapping[str, str]) -> float | None:
    told = headers.get("Retry-After") or ""
    if not told and status.details is not None and status.details.retry_after_seconds:
        told = str(status.details.retry_after_seconds)
    try:
        return min(max(0.0, float(told)), RETRY_AFTER_MAX)
    except ValueError:
        return None
