"""Refusals of a server: whether to ask again."""

from __future__ import annotations

import json

import pytest

from datatask.adapters.execute.kube.connection import refusal, unanswered
from tests.kube.recorded import answer


@pytest.mark.parametrize(
    ("recording", "again", "reason"),
    [
        ("quota-exceeded", "full", "QuotaExceeded"),
        ("quota-must-specify", "never", "QuotaNeedsRequests"),
        ("limitrange-exceeded", "limited", "LimitRange"),
        ("priorityclass-missing", "limited", "PriorityClassMissing"),
        ("serviceaccount-missing", "limited", "ServiceAccountMissing"),
        ("rbac-create-forbidden", "limited", "NotAllowed"),
        ("rbac-forbidden", "limited", "NotAllowed"),
        ("too-many-requests", "busy", "TooManyRequests"),
        ("unauthorized", "limited", "Unauthorized"),
        ("pod-create-duplicate", "exists", "AlreadyExists"),
        ("pod-delete-wrong-uid", "busy", "Conflict"),
        ("pod-create-in-terminating-ns", "limited", "NamespaceTerminating"),
        ("pod-create-bad-quantity", "never", "BadRequest"),
        ("pod-create-invalid-name", "never", "Invalid"),
        ("pod-get-missing", "limited", "NotFound"),
        ("list-future-rv", "busy", "Timeout"),
    ],
)
def test_recorded_refusals_say_whether_to_ask_again(recording: str, again: str, reason: str) -> None:
    """With the server's own words."""
    response = answer(recording)
    body = json.dumps(response["json"]) if "json" in response else response["text"]
    found = refusal(response["status"], body.encode(), response["headers"])
    assert (found.again, found.reason) == (again, reason)
    assert found.words == (response["json"]["message"] if "json" in response else response["text"].strip())
    assert found.after_seconds == (1.0 if "Retry-After" in response["headers"] else None)


@pytest.mark.parametrize(
    ("code", "words", "again"),
    [
        (403, 'admission webhook "policy.example" denied the request: no', "limited"),
        (400, 'admission webhook "policy.example" denied the request: no', "limited"),
        (500, 'failed calling webhook "policy.example": context deadline exceeded', "busy"),
        (503, "apiserver is shutting down", "busy"),
        (409, "Operation cannot be fulfilled on resourcequotas", "busy"),
        (413, "too large", "never"),
    ],
)
def test_other_refusals(code: int, words: str, again: str) -> None:
    """Webhooks deny until somebody changes something; servers come back."""
    body = json.dumps({"kind": "Status", "message": words}).encode()
    found = refusal(code, body, {"Retry-After": "nonsense"})
    assert (found.again, found.words, found.after_seconds) == (again, words, None)


def test_no_answer_is_no_answer() -> None:
    """It may have been done."""
    assert unanswered(TimeoutError()).again == "busy"
    assert unanswered(TimeoutError()).words == "TimeoutError"
