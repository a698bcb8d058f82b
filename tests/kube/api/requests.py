"""What is asked: in comes a request's method and path, out goes its verb, resource, namespace, name and subresource."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiohttp import web

from tests.kube.api.kinds import BY_PATH, REVIEWS, Kind
from tests.kube.api.statuses import Refusal, method_not_allowed, no_such_resource

_VERBS = {"GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass
class User:
    """Who asks: `rights` are words like `create pods` or `get pods/log`; None may do all but what is `denied`. `at_once` is its share."""

    name: str
    rights: set[str] | None = None
    at_once: int | None = None
    denied: set[str] = field(default_factory=set)
    busy: int = field(default=0, init=False)

    def may(self, verb: str, resource: str) -> bool:
        """Whether a right is there."""
        right = f"{verb} {resource}"
        return right not in self.denied if self.rights is None else right in self.rights


@dataclass
class Asked:
    """One request, as the server understands it."""

    request: web.Request
    verb: str
    kind: Kind | None
    group: str
    plural: str
    namespace: str
    name: str
    part: str

    @property
    def resource(self) -> str:
        """The resource as rights name it: `pods`, `pods/log`."""
        return f"{self.plural}/{self.part}" if self.part else self.plural

    @property
    def query(self) -> dict[str, str]:
        """The request's parameters."""
        return dict(self.request.query)

    def is_set(self, key: str) -> bool:
        """Whether a parameter says yes."""
        return self.request.query.get(key, "").lower() in ("true", "1")

    @property
    def is_dry(self) -> bool:
        """Whether nothing shall be stored."""
        return self.request.query.get("dryRun") == "All"

    def number(self, key: str) -> int | None:
        """Return a parameter's number; 400 where it is none."""
        text = self.request.query.get(key)
        if not text:
            return None
        try:
            return int(text)
        except ValueError:
            raise Refusal(400, f'strconv.ParseInt: parsing "{text}": invalid syntax') from None


def understand(request: web.Request) -> Asked:
    """Return what a request asks; 404 for paths that are nothing."""
    parts = request.path.strip("/").split("/")
    if parts[0] == "api" and len(parts) > 2:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        raise no_such_resource()
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    plural, name, part = (*rest, "", "")[0:3]
    kind = BY_PATH.get((group, version, plural))
    if (kind is None and (group, version, plural) != REVIEWS) or len(rest) > 3:
        raise no_such_resource()
    return Asked(request, _verb(request, name, part), kind, group, plural, namespace, name, part)


def _verb(request: web.Request, name: str, part: str) -> str:
    method = request.method
    if method == "POST":
        if name and not part:
            raise method_not_allowed()
        return "create"
    if method not in _VERBS or (method in ("PUT", "PATCH") and not name):
        raise method_not_allowed()
    if method == "GET" and part == "exec":
        return "get"
    if not name:
        watches = request.query.get("watch", "").lower() in ("true", "1")
        return "deletecollection" if method == "DELETE" else "watch" if watches else "list"
    return _VERBS[method]
