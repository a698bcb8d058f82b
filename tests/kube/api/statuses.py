"""Refusals: in comes what went wrong, out goes the Status object that the API server answers with, in its own words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    406: "NotAcceptable",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


class Refusal(Exception):
    """A request that is answered with a Status; `details` and `headers` as they are sent."""

    def __init__(
        self,
        code: int,
        message: str,
        reason: str | None = None,
        *,
        details: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        more: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = REASONS.get(code, "") if reason is None else reason
        self.details = details
        self.headers = headers or {}
        self.more = more or {}

    def body(self) -> dict[str, Any]:
        """Return the Status."""
        told: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.more,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details is not None:
            told["details"] = self.details
        return {**told, "code": self.code}


def cause(reason: str, message: str, field: str) -> dict[str, str]:
    """Return one cause of a refusal."""
    return {"reason": reason, "message": message, "field": field}


def not_found(resource: str, name: str) -> Refusal:
    """Return: no such object."""
    return Refusal(404, f'{resource} "{name}" not found', details={"name": name, "kind": resource})


def no_such_resource() -> Refusal:
    """Return: no such path."""
    return Refusal(404, "the server could not find the requested resource", details={})


def method_not_allowed() -> Refusal:
    """Return: not this method here."""
    return Refusal(405, "the server does not allow this method on the requested resource", details={})


def forbidden(resource: str, name: str, why: str, causes: Sequence[dict[str, str]] = ()) -> Refusal:
    """Return: admission says no."""
    details: dict[str, Any] = {"name": name, "kind": resource}
    if causes:
        details["causes"] = list(causes)
    return Refusal(403, f'{resource} "{name}" is forbidden: {why}', details=details)


def no_right(
    user: str, verb: str, resource: str, group: str, namespace: str | None, name: str = ""
) -> Refusal:
    """Return: RBAC says no."""
    what = f'{resource} "{name}"' if name else resource
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    message = f'{what} is forbidden: User "{user}" cannot {verb} resource "{resource}" in API group "{group}" {where}'
    details = {"name": name, "kind": resource} if name else {"kind": resource}
    return Refusal(403, message, details=details, headers={"X-Content-Type-Options": "nosniff"})


def invalid(kind: str, name: str, causes: Sequence[dict[str, str]]) -> Refusal:
    """Return: the object breaks rules."""
    told = [f"{one['field']}: {one['message']}" for one in causes]
    message = told[0] if len(told) == 1 else f"[{', '.join(told)}]"
    details = {"name": name, "kind": kind, "causes": list(causes)}
    return Refusal(422, f'{kind} "{name}" is invalid: {message}', details=details)


def modified(resource: str, name: str) -> Refusal:
    """Return: somebody was faster."""
    text = "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {resource} "{name}": {text}'
    return Refusal(409, message, details={"name": name, "kind": resource})


def gone(message: str, **more: Any) -> Refusal:
    """Return: that version is too old."""
    return Refusal(410, message, more=more)


def too_large(asked: int, current: int) -> Refusal:
    """Return: that version is not there yet."""
    found = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    return Refusal(
        504,
        f"Timeout: Too large resource version: {asked}, current: {current}",
        details={"causes": [found], "retryAfterSeconds": 1},
        headers={"Retry-After": "1"},
    )
