"""A cluster: its address and credentials, requests to it, streams from it, and what its refusals mean.

In: a configuration as kubectl has it, or an object of kubernetes_asyncio's. Out: answers as bytes, or a `Refusal`: whether
to ask again, how soon, and the server's words. Configuration, credentials and TLS are kubernetes_asyncio's; its models
cost ten times the CPU and are not used. Every request has a time limit, which the library does not set: a half-open
connection would hang for ever. The status 403 means a missing right, a quota, a limit range, an admission webhook or a
namespace that is deleted; reason and text tell them apart. aiohttp and kubernetes_asyncio are loaded at the first request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, urlencode

import msgspec

from datatask.adapters.execute.kube.pods import ApiStatus, decode_status
from datatask.schema.errors import (
    CallerError,
    InvalidValueError,
    NotInstalledError,
    NotOpenError,
    TemporaryError,
)

ANSWER_SECONDS = 30.0
CONNECT_SECONDS = 5.0
REFRESH_SECONDS = 60.0
RELOAD_SECONDS = 5.0
CONNECTIONS = 160
OLD_MAX = 2
BLANK_HOSTS = ("", "http://localhost")
"""Of a default configuration that the library made up by itself."""
MERGE_PATCH = "application/merge-patch+json"


class RefusedError(TemporaryError):
    """The API server did not do it: `refusal` says whether to ask again."""

    code = "kubernetes"

    def __init__(self, refusal: Refusal, *, where: str = "") -> None:
        super().__init__(refusal.words, where=where)
        self.refusal = refusal


class Location(NamedTuple):
    """Where a configuration comes from: an object, or a file (None: as kubectl finds it) and one of its contexts."""

    config: Any = None
    kubeconfig: str | None = None
    context: str | None = None


class Cluster:
    """One API server, with one connection pool. Opened by its first user, closed by its last."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.host = ""
        self._users = 0
        self._api: Any = None
        self._loader: Any = None
        self._old: list[Any] = []
        self._opening: asyncio.Lock | None = None
        self._refreshed = 0.0
        self._reloaded = 0.0

    def __repr__(self) -> str:
        return self.host or "a cluster that has not been reached yet"

    # --- opening ----------------------------------------------------------------------------------

    async def attach(self) -> None:
        """One more user: read the configuration; nothing is asked of the server yet."""
        self._opening = self._opening or asyncio.Lock()
        async with self._opening:
            if self._users == 0:
                await self._load()
            self._users += 1

    async def detach(self) -> None:
        """One user less."""
        self._users -= 1
        if self._users == 0:
            apis = [self._api, *self._old]
            self._api, self._opening = None, None
            self._old.clear()
            for api in apis:
                if api is not None:
                    await api.close()

    @property
    def api(self) -> Any:
        """The ApiClient, for calls by hand; `CallerError` while nobody has opened the cluster."""
        if self._api is None:
            raise NotOpenError("the cluster is not open", remedy="use it within `async with pipeline:`")
        return self._api

    async def _load(self) -> None:
        try:
            from kubernetes_asyncio import client
        except ImportError as error:
            raise NotInstalledError(
                "kubernetes_asyncio is not installed", remedy="pip install 'datatask-engine[kubernetes]'"
            ) from error
        given = self.location.config
        if given is None or isinstance(given, Mapping):
            configuration = await self._configured(client)
        else:
            configuration = given
            self._loader = None
        configuration.connection_pool_maxsize = max(configuration.connection_pool_maxsize or 0, CONNECTIONS)
        self._api = client.ApiClient(configuration)
        self._api.user_agent = "datatask"
        self.host = configuration.host
        self._refreshed = time.monotonic()

    async def _configured(self, client: Any) -> Any:
        """Return the configuration as kubectl finds it: given, KUBECONFIG, ~/.kube/config, the pod's service account."""
        from kubernetes_asyncio import config

        location = self.location
        default = getattr(client.Configuration, "_default", None)
        if location == Location() and default is not None and default.host not in BLANK_HOSTS:
            return default  # the program has loaded one itself, as scripts for pydatatask do
        configuration = type.__call__(client.Configuration)
        try:
            if isinstance(location.config, Mapping):
                self._loader = await config.load_kube_config_from_dict(
                    location.config, context=location.context, client_configuration=configuration
                )
            elif files := _files(location.kubeconfig):
                self._loader = await config.load_kube_config(
                    files, context=location.context, client_configuration=configuration, persist_config=False
                )
            elif location.kubeconfig or location.context or not os.environ.get("KUBERNETES_SERVICE_HOST"):
                named = location.kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
                raise InvalidValueError(
                    f"there is no configuration of a cluster in {named}",
                    remedy="set KUBECONFIG, or pass kubeconfig= to PodManager",
                )
            else:
                config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except CallerError:
            raise
        except Exception as error:
            where = location.kubeconfig or os.environ.get("KUBECONFIG") or "the cluster's configuration"
            context = f" (context {location.context})" if location.context else ""
            raise CallerError(
                f"it cannot be used{context}: {error}", where=where, remedy="see `kubectl config view`"
            ) from error
        return configuration

    async def _authorization(self) -> str | None:
        configuration = self.api.configuration
        now = time.monotonic()
        if self._loader is not None and now - self._refreshed > REFRESH_SECONDS and self._expires():
            self._refreshed = now
            await self._loader.load_and_set(configuration)
        value: str | None = await configuration.get_api_key_with_prefix("BearerToken", "authorization")
        return value

    def _expires(self) -> bool:
        """Whether time alone may end the credentials: those of a plugin that names no end are kept until refused."""
        plugin = "exec" in (getattr(self._loader, "_user", None) or ())
        return not plugin or hasattr(self._loader, "exec_plugin_expiry")

    async def reload(self) -> None:
        """Read configuration and credentials anew, files and plugins: we were turned away."""
        now = time.monotonic()
        if now - self._reloaded < RELOAD_SECONDS or self._api is None:
            return
        self._reloaded = now
        if self.location.config is not None and not isinstance(self.location.config, Mapping):
            return
        old = self._api
        try:
            await self._load()
        except CallerError:
            return
        if old is not self._api:
            self._old.append(old)  # requests on it go on; it is closed when it is surely quiet, or with us
            if len(self._old) > OLD_MAX:
                await self._old.pop(0).close()

    # --- asking -----------------------------------------------------------------------------------

    async def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int] | None = None,
        body: Any = None,
        *,
        content_type: str = "application/json",
        seconds: float = ANSWER_SECONDS,
    ) -> bytes:
        """Return the answer's body; `RefusedError` for anything but 2xx, and where there is no answer in time."""
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        data = None if body is None else msgspec.json.encode(body)
        async with self._asked(method, path, query, data, content_type, timeout) as response:
            read: bytes = await response.read()
            return read

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, str | int], *, silent_seconds: float | None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Lend a body that comes in parts, for as long as it lasts; `RefusedError` also where it breaks or falls silent."""
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silent_seconds)
        async with self._asked("GET", path, query, None, "application/json", timeout) as response:
            yield response.content.iter_any()

    @contextlib.asynccontextmanager
    async def _asked(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int] | None,
        data: bytes | None,
        content_type: str,
        timeout: Any,
    ) -> AsyncIterator[Any]:
        from aiohttp import ClientError

        where = self.host
        try:
            rest = self.api.rest_client
            headers = {"Accept": "application/json, */*", "User-Agent": "datatask"}
            if data is not None:
                headers["Content-Type"] = content_type
            if authorization := await self._authorization():
                headers["Authorization"] = authorization
            more = {"proxy": rest.proxy} if rest.proxy else {}
            if rest.proxy_headers:
                more["proxy_headers"] = rest.proxy_headers
            if rest.server_hostname:
                more["server_hostname"] = rest.server_hostname
            url = f"{self.host}{path}{'?' + urlencode(query) if query else ''}"
            async with rest.pool_manager.request(
                method, url, data=data, headers=headers, timeout=timeout, **more
            ) as response:
                if not 200 <= response.status <= 299:
                    body = await response.content.read(1 << 20)
                    raise RefusedError(refusal(response.status, body, response.headers), where=where)
                yield response
        except RefusedError as error:
            if error.refusal.code == 401:
                await self.reload()
            raise
        except TimeoutError as error:
            words = f"no answer within {timeout.total or timeout.sock_read or CONNECT_SECONDS:g} s"
            raise RefusedError(unanswered(TimeoutError(words)), where=where) from error
        except (ClientError, OSError) as error:
            raise RefusedError(unanswered(error), where=where) from error


def path_of(namespace: str, name: str = "", part: str = "", *, kind: str = "pods") -> str:
    """Return the path of a namespace's pods, of one pod, or of a part of it such as `log`."""
    path = f"/api/v1/namespaces/{quote(namespace, safe='')}/{kind}"
    if name:
        path += f"/{quote(name, safe='')}"
    return f"{path}/{part}" if part else path


def _files(given: str | None) -> str:
    """Return the configuration files that exist, joined as KUBECONFIG has them; the empty string for none."""
    listed = (given or os.environ.get("KUBECONFIG") or "~/.kube/config").split(os.pathsep)
    found = [path for path in map(os.path.expanduser, filter(None, listed)) if os.path.exists(path)]
    return os.pathsep.join(found)


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
