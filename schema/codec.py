"""Events as rows and back.

Out: an event becomes a `Row`, the envelope as columns and the kind's own fields as one JSON payload, encoded
once. In: a row becomes the event again, older versions raised one step at a time by `UPCASTERS`. A kind
that is not known comes back as `UnknownEvent` when it is not essential, else it is refused by name. The
hash chain is over `preimage`, which uses what readers read: names as text and a digest of the payload.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from datatask.schema.errors import FutureLogError, LogDamagedError
from datatask.schema.events import ABSENT, ENVELOPE, KINDS, Event, UnknownEvent

Maker = Callable[..., Event]
"""From the envelope's fields in order and the payload's JSON to the event."""

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]


def unchanged(fields: dict[str, Any]) -> dict[str, Any]:
    """Raise a payload to a version that only added fields with defaults, or words; such a payload is not touched at all."""
    return fields


UPCASTERS: dict[tuple[str, int], Upcaster] = {
    ("EngineOpened", 1): unchanged,  # `reason`
    ("PipelineDefined", 1): unchanged,  # `reason`
    ("PipelineDefined", 2): unchanged,  # parameters in the definition
    ("PipelineDefined", 3): unchanged,  # fingerprints of tasks, `on_change`
    ("PipelineDefined", 4): unchanged,  # repositories that are gathered
    ("PipelineDefined", 5): unchanged,  # `cache` of tasks
    ("PipelineDefined", 6): unchanged,  # identities of resources
    ("PipelineDefined", 7): unchanged,  # `later` of tasks
    ("LaunchDecided", 1): unchanged,  # `identities`
    ("Renamed", 1): unchanged,  # `reason`
    ("RepositorySynced", 1): unchanged,  # `request`
    ("RepositorySynced", 2): unchanged,  # `root`
    ("ArchiveCut", 1): unchanged,  # `reason`
    ("BlobsCollected", 1): unchanged,  # `kept`, `reason`
    ("DecisionRound", 1): unchanged,  # `selection`
    ("StoreWriteIntended", 1): unchanged,  # `settles` with the outcome `conflicted`
    ("RetryScheduled", 1): unchanged,  # `spent`; `conflict`
    ("RetryScheduled", 2): unchanged,  # `machine`
    ("RetriesExhausted", 1): unchanged,  # `conflict`, `machine`
    ("RunEnded", 1): unchanged,  # the outcome `conflicted`
    ("PayloadRedacted", 1): unchanged,  # `left`, `request`
}
"""(kind, version) -> the step that turns its payload into that of version + 1."""

CHAIN_START = bytes(32)


class Row(NamedTuple):
    """One event as the log stores it, names not yet interned; `payload` is None when it has no own fields."""

    at: int
    kind: str
    version: int
    essential: bool
    actor: str
    cause: int | None
    task: str | None
    repository: str | None
    job: str | None
    run: int | None
    payload: bytes | None


_encoder = msgspec.json.Encoder()
_encode = _encoder.encode
_own_fields = {
    name: tuple(field for field in kind.__struct_fields__ if field not in ENVELOPE)
    for name, kind in KINDS.items()
}


def _payload_type(kind: type[Event], *, without: str = "", gc: bool = True) -> type[msgspec.Struct]:
    """Return the struct of a kind's own fields alone: what the payload column holds."""
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [
        (field.name, field.type) if field.required else (field.name, field.type, _default(field))
        for field in msgspec.structs.fields(kind)
        if field.name not in ENVELOPE and field.name != without
    ]
    return msgspec.defstruct(
        f"{kind.__name__}Payload", fields, frozen=True, omit_defaults=True, kw_only=False, gc=gc
    )


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return msgspec.field(default_factory=field.default_factory)
    return msgspec.field(default=field.default)


def _getter(fields: tuple[str, ...]) -> Callable[[Event], tuple[Any, ...]]:
    """Return the function that gives these fields' values; by far the fastest way to read many."""
    if len(fields) > 1:
        return attrgetter(*fields)
    return lambda event: tuple(getattr(event, field) for field in fields)


def _maker(kind: type[Event], decode: Callable[[str | bytes], Any]) -> Maker:
    """Return the function that makes an event of its envelope and its payload.

    Its source is written out per kind, as dataclasses do: keyword by keyword costs a third of building dicts.
    """
    own = [field for field in kind.__struct_fields__ if field not in ENVELOPE]
    keywords = [f"{field}={field}" for field in ENVELOPE] + [f"{field}=own.{field}" for field in own]
    source = (
        f"lambda {', '.join(ENVELOPE)}, payload: (own := decode(payload)) and kind({', '.join(keywords)})"
        if own
        else f"lambda {', '.join(ENVELOPE)}, payload: decode(payload) and kind({', '.join(keywords)})"
    )
    made: Maker = eval(source, {"kind": kind, "decode": decode})  # the source holds names of fields only
    return made


def _versions_as_now(name: str, version: int) -> range:
    since = version
    while UPCASTERS.get((name, since - 1)) is unchanged:
        since -= 1
    return range(since, version + 1)


_payload_types = {name: _payload_type(kind) for name, kind in KINDS.items()}
_payload_decoders = {name: msgspec.json.Decoder(payload) for name, payload in _payload_types.items()}
_own_decoders = {
    name: msgspec.json.Decoder(list[_payload_type(kind, without="value", gc=False)])  # type: ignore[misc]
    for name, kind in KINDS.items()
}
_makers = {name: _maker(kind, _payload_decoders[name].decode) for name, kind in KINDS.items()}
AS_NOW: dict[str, range] = {name: _versions_as_now(name, kind.VERSION) for name, kind in KINDS.items()}
"""kind -> the versions whose payloads decode as they are: the present one, and those that no upcaster touches."""

MAKERS: dict[tuple[str, int], Maker] = {
    (name, version): _makers[name] for name, versions in AS_NOW.items() for version in versions
}
"""(kind, one of those versions) -> how its events are made; for all others `decode` knows what to do."""

_encodings = {
    kind: (
        name,
        kind.VERSION,
        kind.ESSENTIAL,
        _getter(_own_fields[name]),
        _payload_types[name],
        _own_fields[name].index("value") if "value" in _own_fields[name] else None,
    )
    for name, kind in KINDS.items()
}
envelope_of: Callable[[Event], tuple[Any, ...]] = attrgetter(*ENVELOPE)
"""From an event to the values of its `ENVELOPE`, in order."""

_plain_decoder = msgspec.json.Decoder(dict[str, Any])


def payload_of(event: Event) -> tuple[str, int, bool, bytes | None]:
    """Return an event's kind, version, whether it is essential, and its payload (None where all is default)."""
    kind = type(event)
    try:
        name, version, essential, getter, payload_type, raw = _encodings[kind]
    except KeyError:
        assert isinstance(event, UnknownEvent), "every other kind has its encoding"
        return event.name, event.version, False, event.payload or None
    own = getter(event)
    if raw is not None and not own[raw]:
        own = (*own[:raw], ABSENT, *own[raw + 1 :])  # an empty value other than ABSENT is left out too
    payload = _encode(payload_type(*own))
    return name, version, essential, None if payload == b"{}" else payload


def encode(event: Event) -> Row:
    """Return the row of an event."""
    name, version, essential, payload = payload_of(event)
    at, actor, cause, task, repository, job, run = envelope_of(event)
    return Row(at, name, version, essential, actor, cause, task, repository, job, run, payload)


def decode(row: Row, *, where: str = "the log") -> Event:
    """Return the event of a row; `FutureLogError` or `LogDamagedError` name the kind and `where`."""
    kind = KINDS.get(row.kind)
    if kind is None or row.version > kind.VERSION:
        if row.essential:
            raise FutureLogError(
                f"event {row.kind} of version {row.version} is not known here",
                where=where,
                remedy="read this log with the datatask version that wrote it, or a newer one",
            )
        return UnknownEvent(
            **_envelope(row), name=row.kind, version=row.version, payload=bytes(row.payload or b"")
        )
    payload = row.payload or b"{}"
    if row.version < kind.VERSION:
        payload = _upcast(row.kind, row.version, kind.VERSION, payload)
    try:
        return _makers[row.kind](row[0], *row[4:10], payload)
    except msgspec.DecodeError as error:
        raise undecodable(row.kind, where, error) from error


def undecodable(kind: str, where: str, error: Exception) -> LogDamagedError:
    """Return the error for a payload that is none of its kind."""
    return LogDamagedError(
        f"the payload of a {kind} does not decode: {error}",
        where=where,
        remedy="restore the log from a backup, or archive the part before this position",
    )


def own_fields(kind: str, payloads: str) -> list[Any]:
    """Return the own fields of many events of one kind, of versions in `AS_NOW`, from a JSON array of their payloads.

    They are attributes of one object each, without `value`, which may be any JSON. `LogDamagedError` where one does
    not decode.
    """
    try:
        found: list[Any] = _own_decoders[kind].decode(payloads)
    except msgspec.DecodeError as error:
        raise undecodable(kind, "the log", error) from error
    return found


def _envelope(row: Row) -> dict[str, Any]:
    return {
        "at": row.at,
        "actor": row.actor,
        "cause": row.cause,
        "task": row.task,
        "repository": row.repository,
        "job": row.job,
        "run": row.run,
    }


def _upcast(kind: str, version: int, until: int, payload: bytes) -> bytes:
    steps = [UPCASTERS[kind, step] for step in range(version, until)]
    if all(step is unchanged for step in steps):
        return payload
    fields = _plain_decoder.decode(payload)
    for step in steps:
        fields = step(fields)
    return _encoder.encode(fields)


def payload_digest(payload: bytes | None, salt: int | None) -> str:
    """Return the salted SHA-256 of a stored payload, in hex; the empty string where there is no payload."""
    if payload is None:
        return ""
    return sha256((salt or 0).to_bytes(8, "big", signed=True) + payload).hexdigest()


def chain(previous: bytes, log: str, first: int, rows: Sequence[Row], digests: Sequence[str]) -> bytes:
    """Return the hash of a batch that stands on `previous`, the hash of the batch before it.

    The preimage is the previous hash followed by the JSON array `[log, first, [row, …]]`, each row being its
    columns in order with the payload's digest in the payload's place, as
    `json.dumps(…, separators=(",", ":"), ensure_ascii=False)` writes it.
    """
    return chain_of(
        previous, log, first, [(*row[:-1], digest) for row, digest in zip(rows, digests, strict=True)]
    )


def chain_of(previous: bytes, log: str, first: int, body: list[tuple[Any, ...]]) -> bytes:
    """Return the same hash from rows that have the payload's digest in its place already."""
    return sha256(previous + _encode((log, first, body))).digest()
