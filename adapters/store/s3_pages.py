"""Listings of S3 a page at a time, with keys as they are: obstore signs the request, the answer is read here.

In: a bucket, a prefix, where to go on. Out: the objects right below the prefix (`delimiter=/`), at most 1,000, and where to go on
then. obstore's own listing cannot say what it cannot name, and ends there. It signs addresses of objects only, so that the request
for a page is put into an endpoint: its last parameter is the `/` that obstore adds for the empty key.
"""

from __future__ import annotations

import asyncio
import http.client
import re
import urllib.error
import urllib.request
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
    def signed(self, key: str, seconds: float, *, store: Any = None) -> str: ...


class S3Pages:
    """The pages of one listing."""

    def __init__(self, bucket: Signer) -> None:
        self._bucket = bucket
        self._base = ""

    async def page(self, prefix: str, token: str, size: int = PAGE) -> tuple[list[Entry], str | None]:
        """Return the entries of a page, and the token of the next one; None at the end."""
        return await asyncio.to_thread(self._page, prefix, token, size)

    def _page(self, prefix: str, token: str, size: int) -> tuple[list[Entry], str | None]:
        where = f"{self._bucket.where}/{prefix}"
        request = urllib.request.Request(self._address(prefix, token, size), headers={"Accept": "*/*"})
        try:
            with urllib.request.urlopen(request, timeout=PAGE_SECONDS) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                code = _CODE.search(error.read())
            raise outcome(error.code, code[1].decode() if code else _bare(error.code), where) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise outcome(None, "", where, f"its listing failed ({type(reason).__name__})") from None
        return _read(body, where)

    def _address(self, prefix: str, token: str, size: int) -> str:
        if not self._base:
            signed = self._bucket.signed(_PROBE, SIGNED_SECONDS)
            self._base = signed.partition("?")[0].removesuffix("/" + _PROBE)
        query = f"list-type=2&encoding-type=url&max-keys={size}&prefix={quote(prefix, safe='')}"
        if token:
            query += f"&continuation-token={quote(token, safe='')}"
        store = self._bucket.made(
            endpoint=f"{self._base}?{query}&delimiter=", virtual_hosted_style_request=True
        )
        return self._bucket.signed("", SIGNED_SECONDS, store=store)


def _bare(status: int) -> str:
    """A bucket's listing that is not there means that the bucket is not."""
    return "NoSuchBucket" if status == 404 else ""


def _parsed(body: bytes) -> ElementTree.Element:
    """Parse a page, also of a server that writes control characters of keys as they are: a `?` is no id either."""
    try:
        return ElementTree.fromstring(body)
    except ElementTree.ParseError:
        return ElementTree.fromstring(_CONTROL.sub(b"?", body))


def _read(body: bytes, where: str) -> tuple[list[Entry], str | None]:
    entries: list[Entry] = []
    following: str | None = None
    truncated = False
    try:
        root = _parsed(body)
    except ElementTree.ParseError:
        raise outcome(None, "", where, "its listing was cut") from None
    encoded = False
    for element in root:
        match element.tag.rpartition("}")[2]:
            case "EncodingType":
                encoded = element.text == "url"
            case "IsTruncated":
                truncated = element.text == "true"
            case "NextContinuationToken":
                following = element.text
            case "Contents":
                parts = {part.tag.rpartition("}")[2]: part.text or "" for part in element}
                entries.append(Entry(parts["Key"], parts["ETag"].strip('"')))
    if encoded:
        entries = [Entry(unquote_plus(key), version) for key, version in entries]
    if truncated and not following:
        raise outcome(None, "", where, "its listing was cut")
    return entries, following if truncated else None
