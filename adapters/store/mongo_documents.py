"""Documents as MongoDB keeps them: one BSON document per job, and what does not fit into one beside it, in parts.

In: a document as JSON, as the engine hands it to a store. Out: its BSON with the job as `_id`, and the version: the digest of the BSON,
which a server keeps byte by byte. What is above `INLINE_MAX` (a server's limit is 16 MB), and what BSON cannot hold (integers beyond 64
bits, durations, decimals, names that begin with `$`), becomes a note in its place, and its JSON goes in parts to `<collection>.datatask_beside`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from datatask.adapters.store.places import library
from datatask.schema.errors import InvalidValueError, StoreError
from datatask.schema.messages import Write
from datatask.schema.values import decode_value, encode_value

INLINE_MAX = 15 * 1024 * 1024
"""A change stream tells a document with some words around it, which are within the server's limit, too."""
PART_BYTES = 4 * 1024 * 1024
BESIDE = "datatask_beside"


class Made(NamedTuple):
    """A document to be written; `beside` is the JSON of one that stands beside, in parts named `prefix` and a number."""

    raw: bytes
    version: str
    beside: bytes = b""
    prefix: str = ""


class Note(NamedTuple):
    """What stands in place of a document that stands beside."""

    prefix: str
    size: int
    digest: str


def bson(where: str) -> Any:
    """Return the package that knows BSON, PyMongo's."""
    for part in ("errors", "codec_options", "raw_bson"):  # which the package itself does not import
        library(f"bson.{part}", "mongodb", where)
    return library("bson", "mongodb", where)


def version_of(raw: bytes) -> str:
    """Return the version of a document by its BSON: equal documents are one version."""
    return hashlib.sha256(raw).hexdigest()[:32]


def content(write: Write, where: str) -> dict[str, Any]:
    """Return the document of a write; blocking where it is in a file."""
    data: Any = write.value
    if not data:
        data = write.data if write.data is not None else b""
        if write.source is not None:
            data = write.source.read_bytes()
    try:
        document = decode_value(data)
    except ValueError:
        raise InvalidValueError("bytes are no document", where=where, remedy="use dump()") from None
    return checked(document, write.job, where)


def checked(document: Any, job: str, where: str) -> dict[str, Any]:
    """Return a mapping without `_id`; `InvalidValueError` for what is none, and for one that is another job's."""
    if not isinstance(document, dict):
        raise InvalidValueError(
            f"a MongoDB document is a dict, not a {type(document).__name__}",
            where=f"{where} {job}",
            remedy="put it into a dict, such as {'value': …}",
        )
    if document.get("_id", job) != job:
        raise InvalidValueError(
            f"its _id is {document['_id']!r:.160}, which is not the job",
            where=f"{where} {job}",
            remedy="leave _id out",
        )
    return {name: value for name, value in document.items() if name != "_id"}


def made(document: dict[str, Any], job: str, where: str, *, beside: bool = False) -> Made:
    """Return a document as it is to be written; with `beside` it stands there whatever its size."""
    names = BESIDE in document or any(name.startswith("$") for name in document)
    raw = None if names or beside else _encoded({"_id": job, **document}, where)
    if raw is not None and len(raw) <= INLINE_MAX:
        return Made(raw, version_of(raw))
    text = encode_value(document)
    digest = hashlib.sha256(text).hexdigest()
    note = {"sha256": digest, "bytes": len(text)}
    raw = _encoded({"_id": job, BESIDE: note}, where)
    assert raw is not None, "a note is small and plain"
    return Made(raw, version_of(raw), text, _prefix(job, digest))


def _encoded(document: dict[str, Any], where: str) -> bytes | None:
    """Return the BSON of a document, None where it cannot hold it."""
    package = bson(where)
    try:
        return bytes(package.encode(document))
    except (package.errors.BSONError, OverflowError, ValueError):
        return None


def _prefix(job: str, digest: str) -> str:
    return f"{job}/{digest[:32]}/"


def noted(raw: Any) -> Note | None:
    """Return the note that a document (a mapping) is, None where it is the document itself."""
    note: Any = None if raw is None else raw.get(BESIDE)
    try:
        digest, size = str(note["sha256"]), int(note["bytes"])
    except (TypeError, KeyError, ValueError):
        return None
    return Note(_prefix(str(raw["_id"]), digest), size, digest)


def parts(made_: Made) -> list[tuple[str, bytes]]:
    """Return the names and the bytes of what goes beside."""
    return [
        (f"{made_.prefix}{at // PART_BYTES:06}", made_.beside[at : at + PART_BYTES])
        for at in range(0, len(made_.beside), PART_BYTES)
    ]


def joined(note: Note, found: Sequence[bytes], where: str) -> dict[str, Any]:
    """Return the document that stands beside; `StoreError` where parts of it are missing or others."""
    text = b"".join(found)
    if len(text) != note.size or hashlib.sha256(text).hexdigest() != note.digest:
        raise StoreError(
            f"parts of a large document are missing beside it ({len(text)} of {note.size} bytes are there)",
            where=where,
            remedy="write it again, or remove the job",
        )
    document = decode_value(text)
    assert isinstance(document, dict)
    return document
