"""What the API server says when it refuses: Status objects with the codes, reasons and words of the recordings.

A handler raises a Refusal; `server.py` makes it an answer. `text` is for the few that are no JSON.
"""

from __future__ import annotations

from typing import Any

NAME_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
QUANTITY_RULE = "^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$"
POD_IS_FIXED = (
    "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n"
)


class Refusal(Exception):
    """An answer that is no success."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        text: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message
        self.details, self.headers, self.text = details, headers or {}, text
        self.continue_token = ""

    def status(self) -> dict[str, Any]:
        """Return the Status object."""
        told: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {"continue": self.continue_token} if self.continue_token else {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details is not None:
            told["details"] = self.details
        return {**told, "code": self.code}


def not_found(plural: str, name: str) -> Refusal:
    """404: no such object."""
    return Refusal(404, "NotFound", f'{plural} "{name}" not found', details={"name": name, "kind": plural})


def no_such_resource() -> Refusal:
    """404: no such path."""
    return Refusal(404, "NotFound", "the server could not find the requested resource", details={})


def already_exists(plural: str, name: str) -> Refusal:
    """409: the name is taken."""
    return Refusal(
        409, "AlreadyExists", f'{plural} "{name}" already exists', details={"name": name, "kind": plural}
    )


def conflict(plural: str, name: str, why: str = "") -> Refusal:
    """409: another version, or another object, than the request was for."""
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    text = f'Operation cannot be fulfilled on {plural} "{name}": {why}'
    return Refusal(409, "Conflict", text, details={"name": name, "kind": plural})


def forbidden(plural: str, name: str, why: str, causes: list[dict[str, str]] | None = None) -> Refusal:
    """403 by admission: quota, limit range, missing things, a namespace that goes."""
    details: dict[str, Any] = {"name": name, "kind": plural}
    if causes:
        details["causes"] = causes
    return Refusal(403, "Forbidden", f'{plural} "{name}" is forbidden: {why}', details=details)


def invalid(kind: str, name: str, causes: list[tuple[str, str, str]]) -> Refusal:
    """422: fields that cannot be; causes are (reason, message, field)."""
    told = [f"{field}: {message}" for _, message, field in causes]
    text = told[0] if len(told) == 1 else f"[{', '.join(told)}]"
    listed = [{"reason": reason, "message": message, "field": field} for reason, message, field in causes]
    details = {"name": name, "kind": kind, "causes": listed}
    return Refusal(422, "Invalid", f'{kind} "{name}" is invalid: {text}', details=details)


def bad_request(message: str) -> Refusal:
    """400."""
    return Refusal(400, "BadRequest", message)


def expired(message: str) -> Refusal:
    """410: the version is forgotten."""
    return Refusal(410, "Expired", message)


def too_old(asked: int, oldest: int) -> Refusal:
    """410 of a watch."""
    return expired(f"too old resource version: {asked} ({oldest})")


def too_new(asked: int, current: int) -> Refusal:
    """504: a version that is not there yet."""
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    return Refusal(
        504,
        "Timeout",
        f"Timeout: Too large resource version: {asked}, current: {current}",
        details={"causes": [cause], "retryAfterSeconds": 1},
        headers={"Retry-After": "1"},
    )


def too_many_requests(retry_after: int = 1) -> Refusal:
    """429 as the server's own flow control says it: plain text."""
    text = "Too many requests, please try again later.\n"
    return Refusal(429, "TooManyRequests", text, headers={"Retry-After": str(retry_after)}, text=text)


def budget_exceeded(budget: str, needed: int, healthy: int) -> Refusal:
    """429 of an eviction: JSON, and no Retry-After."""
    why = f"The disruption budget {budget} needs {needed} healthy pods and has {healthy} currently"
    return Refusal(
        429,
        "TooManyRequests",
        "Cannot evict pod as it would violate the pod's disruption budget.",
        details={"causes": [{"reason": "DisruptionBudget", "message": why}]},
    )


def internal_error(what: str = "etcdserver: request timed out") -> Refusal:
    """500."""
    text = f"Internal error occurred: {what}"
    return Refusal(500, "InternalError", text, details={"causes": [{"message": what}]})


def unavailable() -> Refusal:
    """503 of a server that is starting or going."""
    text = "apiserver is shutting down"
    return Refusal(
        503, "ServiceUnavailable", text, headers={"Retry-After": "1"}, details={"retryAfterSeconds": 1}
    )


def unauthorized() -> Refusal:
    """401."""
    return Refusal(401, "Unauthorized", "Unauthorized")


def method_not_allowed() -> Refusal:
    """405."""
    text = "the server does not allow this method on the requested resource"
    return Refusal(405, "MethodNotAllowed", text, details={})


def unsupported_media_type() -> Refusal:
    """415: a patch of an unknown kind."""
    return Refusal(415, "UnsupportedMediaType", "415: Unsupported Media Type", details={})


def not_acceptable() -> Refusal:
    """406."""
    text = (
        "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, "
        "application/vnd.kubernetes.protobuf, application/json;stream=watch, "
        "application/vnd.kubernetes.protobuf;stream=watch"
    )
    return Refusal(406, "NotAcceptable", text, details={})


def denied_by_webhook(webhook: str, message: str, code: int = 403) -> Refusal:
    """What an admission webhook says; without a code of its own the server makes it 400."""
    text = f'admission webhook "{webhook}" denied the request: {message or "without explanation"}'
    return Refusal(code or 400, "Forbidden" if code == 403 else "", text)
