"""Who asks, and what they may: bearer tokens, rights as RBAC has them, and a limit on requests for one who asks too much."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.kube.fake.refusals import Refusal, too_many_requests, unauthorized
from tests.kube.fake.resources import Target

Right = tuple[str, str]  # verb, resource or resource/subresource; "*" is any


class User:
    """Somebody with a token."""

    def __init__(self, name: str, rights: set[Right] | None = None, burst: int = 0) -> None:
        self.name = name
        self.rights = {("*", "*")} if rights is None else rights
        self.denied: set[Right] = set()
        self.burst = burst
        self._left = float(burst)
        self._told_at = 0.0

    def may(self, verb: str, resource: str) -> bool:
        """Tell whether a verb on a resource is allowed."""
        asked = {(one, other) for one in (verb, "*") for other in (resource, "*")}
        return not asked & self.denied and bool(asked & self.rights)

    def take_turn(self) -> None:
        """Refuse with 429 who asks more than `burst` times at once, or a second."""
        if not self.burst:
            return
        now = asyncio.get_running_loop().time()
        self._left = min(self.burst, self._left + (now - self._told_at) * self.burst)
        self._told_at = now
        if self._left < 1:
            raise too_many_requests()
        self._left -= 1


class Identities:
    """All tokens: `admin` may everything, `limited` nothing, `throttled` is slowed down."""

    def __init__(self) -> None:
        self.users = {
            "admin": User("admin"),
            "limited": User("limited", set()),
            "throttled": User("throttled", burst=10),
        }

    def of(self, authorization: str) -> User:
        """Return whose token it is."""
        user = self.users.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise unauthorized()
        return user

    @staticmethod
    def check(user: User, verb: str, target: Target) -> None:
        """Refuse what the user may not."""
        resource = target.resource
        full = f"{resource.plural}/{target.subresource}" if target.subresource else resource.plural
        if user.may(verb, full):
            return
        place = f' in the namespace "{target.namespace}"' if target.namespace else " at the cluster scope"
        named = f'{resource.plural} "{target.name}"' if target.name else resource.plural
        text = (
            f'{named} is forbidden: User "{user.name}" cannot {verb} resource "{full}" '
            f'in API group "{resource.group}"{place}'
        )
        details = {"name": target.name} if target.name else {}
        raise Refusal(
            403,
            "Forbidden",
            text,
            details={**details, "kind": resource.plural},
            headers={"X-Content-Type-Options": "nosniff"},
        )


def reviewed(user: User, review: dict[str, Any]) -> dict[str, Any]:
    """Answer a SelfSubjectAccessReview."""
    asked = review["spec"].get("resourceAttributes") or {}
    resource = "/".join(filter(None, (asked.get("resource", ""), asked.get("subresource", ""))))
    allowed = user.may(asked.get("verb", ""), resource)
    status = {
        "allowed": allowed,
        **({} if not allowed else {"reason": "RBAC: allowed by a rule of the test"}),
    }
    return {
        "kind": "SelfSubjectAccessReview",
        "apiVersion": "authorization.k8s.io/v1",
        "metadata": {},
        "spec": review["spec"],
        "status": status,
    }
