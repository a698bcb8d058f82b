"""Lists: whole or in pages, of now or of a version, as objects or as their metadata only.

In: a target and the query. Out: the list as JSON. A page's `continue` names the version of the first page, so that all pages
together are one moment; when that is forgotten, 410 comes with a token for the rest as it is now.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping
from typing import Any

import msgspec

from tests.kube.fake.refusals import bad_request, expired, too_new
from tests.kube.fake.resources import Target
from tests.kube.fake.selectors import selector
from tests.kube.fake.storing import Key, Object, Store, encode

TOO_OLD_PAGE = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)
METADATA_ONLY = "as=PartialObjectMetadataList"


async def listed(
    store: Store, target: Target, query: Mapping[str, str], accept: str, *, wait_seconds: float
) -> bytes:
    """Return a list as JSON."""
    limit = int(query.get("limit") or 0)
    chosen = selector(target.resource.plural, query.get("labelSelector", ""), query.get("fieldSelector", ""))
    if token := query.get("continue"):
        version, after = _decoded(token)
        version = version or store.version
        objects = _state(store, target, version, after)
    else:
        version, after = await _version(store, query, wait_seconds), None
        objects = _state(store, target, version, None)
    keys = sorted(key for key in objects if not target.namespace or key[0] == target.namespace)
    if after is not None:
        keys = [key for key in keys if key > after]
    if chosen is not None:
        keys = [key for key in keys if chosen(objects[key])]
    page = keys[:limit] if limit else keys
    metadata: dict[str, Any] = {"resourceVersion": str(version)}
    if len(page) < len(keys):
        metadata["continue"] = _encoded(version, page[-1], target)
        if chosen is None:
            metadata["remainingItemCount"] = len(keys) - len(page)
    return _body(target, metadata, [objects[key] for key in page], accept)


async def _version(store: Store, query: Mapping[str, str], wait_seconds: float) -> int:
    """Return the version to list: the present one, or the exact one that is asked for."""
    asked = int(query.get("resourceVersion") or 0)
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_seconds
    while asked > store.version:
        if loop.time() >= until:
            raise too_new(asked, store.version)
        await asyncio.sleep(0.05)
    return asked if query.get("resourceVersionMatch") == "Exact" else store.version


def _state(store: Store, target: Target, version: int, after: Key | None) -> dict[Key, Object]:
    if version >= store.oldest or version == store.version:
        return store.at(target.resource.plural, version)
    if after is None:
        raise expired(f"The resourceVersion for the provided list is too old. ({version})")
    refusal = expired(TOO_OLD_PAGE)
    refusal.continue_token = _encoded(0, after, target)
    raise refusal


def _encoded(version: int, last: Key, target: Target) -> str:
    """Return a token as the server makes it: the version, and the key after which to go on."""
    start = last[1] if target.namespace or not last[0] else "/".join(last)
    told = encode({"v": "meta.k8s.io/v1", "rv": version or -1, "start": f"{start}\0"})
    return base64.urlsafe_b64encode(told + b"\n" + encode(list(last))).decode().rstrip("=")


def _decoded(token: str) -> tuple[int, Key]:
    try:
        told = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        first, _, last = told.partition(b"\n")
        version = msgspec.json.decode(first)["rv"]
        namespace, name = msgspec.json.decode(last)
    except (binascii.Error, msgspec.DecodeError, KeyError, TypeError, ValueError):
        why = "invalid character 'Ï' looking for beginning of value"
        raise bad_request(f"invalid continue token: continue key is not valid: {why}") from None
    return max(0, version), (namespace, name)


def _body(target: Target, metadata: dict[str, Any], objects: list[Object], accept: str) -> bytes:
    if METADATA_ONLY in accept:
        kind = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
        items = [{**kind, "metadata": one["metadata"]} for one in objects]
        head = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"}
    else:
        items = [
            {key: value for key, value in one.items() if key not in ("kind", "apiVersion")} for one in objects
        ]
        head = {"kind": f"{target.resource.kind}List", "apiVersion": target.resource.api_version}
    return encode({**head, "metadata": metadata, "items": items})
