"""Requests to S3 that obstore does not make: listings with keys as they are, and the parts of uploads that have failed.

In: a bucket that signs addresses. Out: the objects right below a prefix (`delimiter=/`), a page at a time, and what is left of uploads.
obstore's own listing ends at a key that it cannot name, and gives `a/` as `a`; an upload of its that fails leaves its parts. It signs
addresses of objects only, so that a request is put into an endpoint: its last parameter is the `/` that obstore adds for the empty key.
"""

from __future__ import annotations

import asyncio
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, Protocol
from urllib.parse import quote, unquote_plus
from xml.etree import ElementTree

from datatask.adapters.store.buckets import Entry
from datatask.adapters.store.outcomes import outcome

PAGE = 1_000
PAGE_SECONDS = 60.0
SIGNED_SECONDS = 300.0
_CODE = re.compile(rb"<Code>(\w{1,80})</Code>")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|&#(?:x0*1?[0-9a-fA-F]|0*[12]?[0-9]|0*3[01]);")
_PROBE = "x"


class Signer(Protocol):
    """Signs addresses in a bucket."""

    where: str

    def made(self, **options: Any) -> Any: ...
    def signed(self, key: str, seconds: float, *, method: str = "GET", store: Any = None) -> str: ...


class S3Requests:
    """Requests to one bucket; they wait in threads."""

    def __init__(self, bucket: Signer) -> None:
        self._bucket = bucket
        self._base = ""

    async def page(self, prefix: str, token: str, size: int | None = None) -> tuple[list[Entry], str | None]:
        """Return the entries of a page, and the token of the next one; None at the end."""
        query = f"list-type=2&encoding-type=url&max-keys={size or PAGE}&prefix={quote(prefix, safe='')}"
        if token:
            query += f"&continuation-token={quote(token, safe='')}"
        return _page(await self._asked("GET", "", f"{query}&delimiter="), self._bucket.where)

    async def forget_uploads(self, key: str) -> None:
        """Throw away what uploads of this object have left that did not end: of an engine that was killed, say."""
        body = await self._asked("GET", "", f"uploads=&prefix={quote(key, safe='')}&delimiter=")
        for upload in _children(_parsed(body, self._bucket.where), "Upload"):
            parts = dict(_texts(upload))
            if parts.get("Key") == key:
                query = f"uploadId={quote(parts['UploadId'], safe='')}&x-id="
                await self._asked("DELETE", f"/{quote(key)}", query)

    async def _asked(self, method: str, path: str, query: str) -> bytes:
        return await asyncio.to_thread(self._ask, method, path, query)

    def _ask(self, method: str, path: str, query: str) -> bytes:
        request = urllib.request.Request(self._address(method, path, query), method=method)
        where = self._bucket.where
        try:
            with urllib.request.urlopen(request, timeout=PAGE_SECONDS) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                code = _CODE.search(error.read())
            # what is there of a bucket is its listing: where it is not, the bucket is not
            bare = "NoSuchBucket" if error.code == 404 else ""
            raise outcome(error.code, code[1].decode() if code else bare, where) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise outcome(None, "", where, f"its listing failed ({type(reason).__name__})") from None

    def _address(self, method: str, path: str, query: str) -> str:
        if not self._base:
            signed = self._bucket.signed(_PROBE, SIGNED_SECONDS)
            self._base = signed.partition("?")[0].removesuffix("/" + _PROBE)
        store = self._bucket.made(endpoint=f"{self._base}{path}?{query}", virtual_hosted_style_request=True)
        return self._bucket.signed("", SIGNED_SECONDS, method=method, store=store)


def _page(body: bytes, where: str) -> tuple[list[Entry], str | None]:
    root = _parsed(body, where)
    told = dict(_texts(root))
    entries: list[Entry] = []
    for element in _children(root, "Contents"):
        parts = dict(_texts(element))
        entries.append(Entry(parts["Key"], parts["ETag"].strip('"')))
    if told.get("EncodingType") == "url":
        entries = [Entry(unquote_plus(key), version) for key, version in entries]
    following = told.get("NextContinuationToken")
    if told.get("IsTruncated") != "true":
        return entries, None
    if not following:
        raise outcome(None, "", where, "its listing was cut")
    return entries, following


def _parsed(body: bytes, where: str) -> ElementTree.Element:
    """Parse an answer, also of a server that writes control characters of keys as they are: a `?` is no id either."""
    try:
        return ElementTree.fromstring(body)
    except ElementTree.ParseError:
        pass
    try:
        return ElementTree.fromstring(_CONTROL.sub(b"?", body))
    except ElementTree.ParseError:
        raise outcome(None, "", where, "its listing was cut") from None


def _children(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (child for child in element if child.tag.rpartition("}")[2] == name)


def _texts(element: ElementTree.Element) -> Iterator[tuple[str, str]]:
    return ((child.tag.rpartition("}")[2], child.text or "") for child in element)
