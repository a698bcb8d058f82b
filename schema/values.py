"""Job ids and other names from outside, and metadata documents as bytes.

A job id becomes a file name, an object key, a label and an SQL value: 1-128 ASCII letters, digits, `.`, `_`, `-`,
alphanumeric at both ends, so that no path trick or look-alike letter passes. `encode_value` takes plain data (None,
bool, int, float, str, list, tuple, dict with string keys) and, tagged as one-key objects, datetime, date, timedelta,
Decimal and bytes; `decode_value` gives them back, tuples as lists. Other types raise an error that names the part.
"""

from __future__ import annotations

import base64
import datetime as dt
import math
import re
import string
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec

from datatask.schema.errors import InvalidJobError, InvalidValueError

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
        remedy=f"`datatask log --since {position}` shows by whom and why; put the value again, or remove the job",
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


JOB_LENGTH_MAX = 128
JOB_ENDS = string.ascii_letters + string.digits
JOB_CHARACTERS = JOB_ENDS + "._-"
_JOB = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?", re.ASCII)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}", re.ASCII)

_valid_job = _JOB.fullmatch


def is_job(text: object) -> bool:
    """Whether `text` is a job id."""
    return isinstance(text, str) and _valid_job(text) is not None


def check_job(text: str, *, where: object = "") -> str:
    """Return `text` when it is a job id, else raise `InvalidJobError` naming it and `where` (a text, or what has a repr)."""
    if not is_job(text):
        raise InvalidJobError(
            f"{text!r:.160} is not a job id",
            where=where if isinstance(where, str) else repr(where),
            remedy="use 1-128 letters, digits, '.', '_' or '-', with a letter or digit at both ends",
        )
    return text


def check_name(text: str, what: str) -> str:
    """Return `text` when it can name a task, link, quota or pipeline, else raise `CallerError`."""
    if not isinstance(text, str) or _NAME.fullmatch(text) is None:
        raise InvalidValueError(
            f"{text!r:.160} cannot name a {what}",
            remedy="start with a letter or '_' and go on with letters, digits, '_', '-', '.' (128 at most)",
        )
    return text
