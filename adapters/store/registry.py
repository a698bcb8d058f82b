"""A small client of OCI registries: the tags of one image name, whether one is there, and how it is taken away.

In: host, image name, login. Out: tags a page at a time, by `Link` as the registry gives it; errors as ours (`outcomes`). Only the standard
library: blocking, called from threads. A tag is deleted by its name where the registry can. Where it cannot, the tag is first moved to an
image that is made for this and that no other tag can have, and that one is deleted by its digest: what other tags name stays.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import secrets
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from datatask.adapters.store import resuming
from datatask.adapters.store.outcomes import outcome
from datatask.adapters.store.registry_access import HUB, challenge, token_address
from datatask.schema.errors import DatataskError, StoreError, TemporaryError

ANSWER_SECONDS = 60.0
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
ACCEPTED = ", ".join(
    (
        MANIFEST,
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "*/*",
    )
)
_LINK = re.compile(r"""<([^>]*)>((?:\s*;\s*[\w*-]+(?:\s*=\s*(?:"[^"]*"|'[^']*'|[^\s,;"']+))?)*)""")
_NEXT = re.compile(r"""rel\s*=\s*["']?next["']?""", re.IGNORECASE)
_LOOPBACK = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?")
_UNSUPPORTED = frozenset((400, 404, 405))


class Answer(NamedTuple):
    """What a registry says; `url` is where."""

    status: int
    headers: Any
    body: bytes
    url: str


class _Plain(urllib.request.HTTPRedirectHandler):
    """Redirects are answers: a login must not go along to where they point."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


class Registry:
    """One image name in a registry."""

    def __init__(
        self,
        host: str,
        name: str,
        *,
        login: Callable[[], str] = lambda: "",
        protocol: str = "",
        context: ssl.SSLContext | None = None,
    ) -> None:
        hub = host in HUB
        self.where = f"docker://{host}/{name}"
        self._host = "registry-1.docker.io" if hub else host
        self._name = f"library/{name}" if hub and "/" not in name else name
        protocol = protocol or ("http" if _LOOPBACK.fullmatch(host) else "https")  # as Docker does
        self._base = f"{protocol}://{self._host}/v2/{self._name}/"
        self._login = login
        self._access: dict[str, str] = {}
        self._deletes = False
        tls = [urllib.request.HTTPSHandler(context=context)] if context is not None else []
        self._opener = urllib.request.build_opener(_Plain(), *tls)

    # --- tags -----------------------------------------------------------------------------------------

    def page(self, url: str = "") -> tuple[list[str], str]:
        """Return the tags of a page, and the address of the next one, "" at the end; a name that is unknown has none."""
        answer = self._asked("GET", url or self._base + "tags/list")
        if answer.status == 404 and not url:
            return [], ""
        if answer.status != 200:
            raise self._refused(answer)
        try:
            tags = json.loads(answer.body)["tags"]
        except (ValueError, KeyError, TypeError):
            raise outcome(None, "", self.where, "its listing was cut") from None
        following = _following(answer.headers.get_all("Link") or ())
        next_url = urljoin(answer.url, following) if following else ""
        if next_url and next_url == answer.url:
            raise outcome(None, "", self.where, "a page of its listing names itself as the next one")
        return [str(tag) for tag in tags or ()], next_url  # an emptied repository says null

    def has(self, tag: str) -> bool:
        """Whether a tag is there."""
        answer = self._asked("HEAD", self._manifest(tag))
        if answer.status == 404:
            return False
        if answer.status != 200:
            raise self._refused(answer)
        return True

    # --- taking away ----------------------------------------------------------------------------------

    def delete(self, tag: str) -> None:
        """Take a tag away, and no other one; absent is fine."""
        answer = self._asked("DELETE", self._manifest(tag))
        if answer.status in (200, 202, 204):
            return
        if answer.status not in _UNSUPPORTED:
            raise self._refused(answer)
        if not self.has(tag):
            return
        self._check_deletes()
        digest = self._push(tag)
        answer = self._asked("DELETE", self._manifest(digest))
        if answer.status not in (200, 202, 204, 404):
            raise self._refused(answer)

    def _check_deletes(self) -> None:
        """Raise where a registry deletes nothing: found out with an image without a tag, before a tag is moved."""
        if self._deletes:
            return
        answer = self._asked("DELETE", self._manifest(self._push("")))
        if answer.status not in (200, 202, 204):
            if answer.status not in _UNSUPPORTED:
                raise self._refused(answer)
            raise StoreError(
                f"the registry deletes nothing (it answers {answer.status}), so the tag stays",
                where=self.where,
                remedy="allow deletes there (storage.delete.enabled in docker-registry's configuration)",
            )
        self._deletes = True

    def _push(self, tag: str) -> str:
        """Push an image of nothing that is like no other one, under a tag or only its digest; return the digest."""
        config = json.dumps(
            {"architecture": "amd64", "os": "linux", "datatask": secrets.token_hex(16)}
        ).encode()
        self._push_blob(config)
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"mediaType": CONFIG, "digest": _digest(config), "size": len(config)},
                "layers": [],
            }
        ).encode()
        digest = _digest(manifest)
        answer = self._asked("PUT", self._manifest(tag or digest), manifest, MANIFEST)
        if answer.status not in (200, 201, 202):
            raise self._refused(answer)
        return digest

    def _push_blob(self, data: bytes) -> None:
        answer = self._asked("POST", self._base + "blobs/uploads/", b"")
        if answer.status != 202:
            raise self._refused(answer)
        url = urljoin(answer.url, answer.headers.get("Location", ""))
        url += f"{'&' if '?' in url else '?'}digest={_digest(data)}"
        answer = self._asked("PUT", url, data, "application/octet-stream")
        if answer.status != 201:
            raise self._refused(answer)

    # --- asking ---------------------------------------------------------------------------------------

    def _manifest(self, reference: str) -> str:
        return f"{self._base}manifests/{reference}"

    def _refused(self, answer: Answer) -> DatataskError:
        return outcome(answer.status, _code(answer.body), self.where)

    def _asked(self, method: str, url: str, body: bytes | None = None, kind: str = "") -> Answer:
        """Ask; a registry that wants to know who asks, or whose token has ended, is told once."""
        right = "pull" if method in ("GET", "HEAD") else "delete" if method == "DELETE" else "push"
        headers = {"Accept": ACCEPTED, **({"Content-Type": kind} if kind else {})}
        ours = urlsplit(url).netloc == self._host
        if ours and (access := self._access.get(right)):
            headers["Authorization"] = access
        answer = self._sent(method, url, headers, body)
        if answer.status != 401 or not ours:
            return answer
        access = self._admitted(answer.headers.get("WWW-Authenticate", ""))
        if not access:
            return answer
        self._access[right] = access
        return self._sent(method, url, {**headers, "Authorization": access}, body)

    def _admitted(self, header: str) -> str:
        """Return the access that a challenge asks for, "" where we have none."""
        kind, parameters = challenge(header)
        login = self._login()
        basic = f"Basic {login}" if login else ""
        if kind == "basic":
            return basic
        if kind != "bearer" or not parameters.get("realm", "").startswith(("http://", "https://")):
            return ""
        headers = {"Authorization": basic} if basic else {}
        answer = self._sent("GET", token_address(parameters), headers, None)
        if answer.status != 200:
            raise self._refused(answer)
        try:
            found = json.loads(answer.body)
            return f"Bearer {found.get('token') or found['access_token']}"
        except (ValueError, KeyError, AttributeError):
            raise outcome(None, "", self.where, "its token cannot be read") from None

    def _sent(self, method: str, url: str, headers: dict[str, str], body: bytes | None) -> Answer:
        """Send a request until it is answered: each may be made twice, and a chain of them is not begun anew."""
        rest = resuming.PAUSE_SECONDS
        for left in reversed(range(resuming.TRIES)):
            try:
                return self._sent_once(method, url, headers, body)
            except TemporaryError:
                if not left:
                    raise
            time.sleep(rest)
            rest = min(2 * rest, resuming.PAUSE_SECONDS_MAX)
        raise AssertionError("the last try raises")

    def _sent_once(self, method: str, url: str, headers: dict[str, str], body: bytes | None) -> Answer:
        request = urllib.request.Request(url, body, headers, method=method)
        try:
            try:
                with self._opener.open(request, timeout=ANSWER_SECONDS) as found:
                    answer = Answer(found.status, found.headers, found.read(), url)
            except urllib.error.HTTPError as error:
                with error:
                    answer = Answer(error.code, error.headers, error.read(), url)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            said = f"it does not answer as it should ({type(reason).__name__})"
            raise outcome(None, "", self.where, said) from None
        if answer.status in (408, 425, 429) or answer.status >= 500:
            raise self._refused(answer)
        return answer


def _following(links: Any) -> str:
    """Return the address of the next page, as the registry wrote it."""
    for address, parameters in _LINK.findall(", ".join(links)):
        if _NEXT.search(parameters):
            return str(address)
    return ""


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _code(body: bytes) -> str:
    """Return the registry's own code for what is wrong; its text is not repeated."""
    try:
        code = str(json.loads(body)["errors"][0]["code"])
    except (ValueError, KeyError, IndexError, TypeError):
        return ""
    return code if re.fullmatch(r"[A-Z_]{1,60}", code) else ""
