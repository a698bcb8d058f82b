"""Metadata documents as bytes: JSON, plus the few types that YAML documents and done records hold.

`encode_value` takes plain data (None, bool, int, float, str, list, tuple, dict with string keys) and, tagged
as one-key objects, datetime, date, timedelta, Decimal and bytes; `decode_value` gives them back as they
were (tuples become lists). Anything else is the caller's mistake and is named.
"""

from __future__ import annotations

import base64
import datetime as dt
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec

from datatask.schema.errors import InvalidValueError

INLINE_BYTES_MAX = 64 * 1024
"""Values up to this size travel in the event; larger ones are blobs beside the log, named by digest."""

_PLAIN = frozenset((str, int, bool, type(None)))
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()


def encode_value(value: object) -> bytes:
    """Return the JSON bytes of a document; `CallerError` names the first part that cannot be stored."""
    try:
        return _encoder.encode(value if type(value) in _PLAIN else _tagged(value, "value"))
    except UnicodeEncodeError as error:
        raise InvalidValueError(
            f"a text holds {error.object[error.start]!r}, which is no character",
            remedy="store bytes, or encode the text with errors='backslashreplace'",
        ) from error


def storable(text: str) -> str:
    """Return a text with what UTF-8 cannot hold (lone surrogates, as in odd file names) written as `\\udcff`."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()
    return text


def decode_value(data: bytes | bytearray | memoryview | msgspec.Raw) -> Any:
    """Return the document that `encode_value` was given."""
    document = _decoder.decode(data)
    return _untagged(document) if b'"$' in bytes(data) else document


def _tagged(value: object, path: str) -> object:
    if type(value) in _PLAIN:
        return value
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"$float": repr(value)}
        case dict():
            return _tagged_mapping(value, path)
        case list() | tuple():
            return [_tagged(item, f"{path}[{index}]") for index, item in enumerate(value)]
        case dt.datetime():
            return {"$datetime": value.isoformat()}
        case dt.date():
            return {"$date": value.isoformat()}
        case dt.timedelta():
            return {"$seconds": value.total_seconds()}
        case Decimal():
            return {"$decimal": str(value)}
        case bytes() | bytearray():
            return {"$bytes": base64.b64encode(value).decode()}
    raise InvalidValueError(
        f"{path} is a {type(value).__name__}, which cannot be stored",
        remedy="store plain data: None, booleans, numbers, strings, lists, dicts, dates, bytes",
    )


def _tagged_mapping(value: dict[Any, Any], path: str) -> dict[str, object]:
    result = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise InvalidValueError(
                f"{path} has the key {key!r:.80} of type {type(key).__name__}",
                remedy="use strings as keys in stored documents",
            )
        result[key] = item if type(item) in _PLAIN else _tagged(item, f"{path}.{key}")
    return {"$": result} if len(result) == 1 and next(iter(result)).startswith("$") else result


def _redacted(position: int) -> Any:
    raise InvalidValueError(
        "this value was redacted: it is no longer in the log",
        where=f"position {position}",
        remedy=f"`datatask log --since {position}` tells by whom and why; put the value anew, or remove the job",
    )


_READERS: dict[str, Callable[[Any], Any]] = {
    "$float": float,
    "$datetime": dt.datetime.fromisoformat,
    "$date": dt.date.fromisoformat,
    "$seconds": lambda seconds: dt.timedelta(seconds=seconds),
    "$decimal": Decimal,
    "$bytes": base64.b64decode,
    "$redacted": lambda position: _redacted(position),
    "$": lambda inner: {key: _untagged(item) for key, item in inner.items()},
}


def _untagged(document: Any) -> Any:
    if isinstance(document, list):
        return [_untagged(item) for item in document]
    if isinstance(document, dict):
        if len(document) == 1:
            (key, item), *_ = document.items()
            if (reader := _READERS.get(key)) is not None:
                return reader(item)
        return {key: _untagged(item) for key, item in document.items()}
    return document
