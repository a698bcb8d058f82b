"""Events as rows and lines: golden files, versions, unknown kinds, and the preimage of the chain."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datatask.schema import codec
from datatask.schema.codec import (
    CHAIN_START,
    UPCASTERS,
    Row,
    chain,
    decode,
    encode,
    payload_digest,
)
from datatask.schema.errors import FutureLogError, LogDamagedError
from datatask.schema.events import KINDS, Event, RunObserved, UnknownEvent, ValuePut
from tests.golden.samples import FOLDER, SAMPLES, golden_path, to_line

FILES = sorted(FOLDER.glob("*.json"))


def read(path: Path) -> tuple[bytes, Row]:
    """Return the line and the row in a golden file."""
    document = json.loads(path.read_bytes())
    row = Row(**document["row"])
    return document["line"].encode(), row._replace(payload=row.payload.encode() if row.payload else None)  # type: ignore[attr-defined]


def test_every_kind_has_a_golden_file_of_its_present_version() -> None:
    assert {golden_path(kind) for kind in KINDS.values()} <= set(FILES)
    assert {type(event) for event in SAMPLES} == set(KINDS.values())


def test_every_older_version_has_an_upcaster_and_a_golden_file() -> None:
    for name, kind in KINDS.items():
        for version in range(1, kind.VERSION):
            assert (name, version) in UPCASTERS
            assert FOLDER / f"{name}.v{version}.json" in FILES


@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: type(event).__name__)
def test_a_golden_file_decodes_to_the_event_and_encodes_to_the_same_bytes(event: Event) -> None:
    line, row = read(golden_path(type(event)))
    assert decode(row) == event
    assert msgspec.json.decode(line, type=type(event)) == event
    assert encode(event) == row
    assert to_line(event) == line


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_golden_file_of_any_version_still_decodes(path: Path) -> None:
    _, row = read(path)
    assert decode(row).at == row.at


def test_every_own_field_is_set_in_the_samples() -> None:
    """A golden file shows a field only when it differs from its default."""
    for event in SAMPLES:
        shown = json.loads(to_line(event))
        missing = [name for name in codec._own_fields[type(event).__name__] if name not in shown]
        assert missing == [], type(event).__name__


def test_defaults_are_left_out_and_an_event_of_defaults_has_no_payload() -> None:
    row = encode(ValuePut(at=1, repository="r", job="j"))
    assert row.payload is None
    assert decode(row) == ValuePut(at=1, repository="r", job="j")


def test_an_empty_value_is_no_value() -> None:
    row = encode(ValuePut(at=1, repository="r", job="j", value=msgspec.Raw()))
    assert row.payload is None


@pytest.fixture
def _raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """`RunObserved` as if it were at version 3, its `phase` once called `state` and then `step`."""
    monkeypatch.setattr(RunObserved, "VERSION", 3)
    monkeypatch.setitem(UPCASTERS, ("RunObserved", 1), lambda fields: {"step": fields.pop("state"), **fields})
    monkeypatch.setitem(UPCASTERS, ("RunObserved", 2), lambda fields: {"phase": fields.pop("step"), **fields})


@pytest.mark.usefixtures("_raised")
def test_older_versions_are_raised_one_step_at_a_time() -> None:
    row = Row(
        5, "RunObserved", 1, False, "engine", None, "t", None, "j", 4, b'{"state":"waiting","reason":"x"}'
    )
    expected = RunObserved(at=5, task="t", job="j", run=4, phase="waiting", reason="x")
    assert decode(row) == expected
    assert decode(row._replace(version=2, payload=b'{"step":"waiting","reason":"x"}')) == expected


NEW_WORDS = [
    ("RunEnded", 1, {"outcome": "conflicted"}),
    ("StoreWriteIntended", 1, {"op": "delete", "settles": {"outcome": "conflicted"}}),
    ("RetryScheduled", 1, {"not_before": 7, "attempt": 2, "budget": "conflict"}),
    ("RetryScheduled", 2, {"not_before": 7, "attempt": 2, "budget": "machine", "spent": 1}),
    ("RetriesExhausted", 1, {"attempts": 9, "budget": "machine"}),
]


@pytest.mark.parametrize(("kind", "version", "fields"), NEW_WORDS)
def test_a_word_that_came_before_its_version_is_read(
    kind: str, version: int, fields: dict[str, object]
) -> None:
    """Logs of the time between have it; written again it has the present version, which an earlier reader knows as newer."""
    payload = msgspec.json.encode(fields)
    row = Row(5, kind, version, True, "engine", None, "t", "r", "j", 3, payload)
    event = decode(row)
    assert encode(event) == row._replace(version=KINDS[kind].VERSION)
    assert version < KINDS[kind].VERSION
    make = codec.MAKERS[kind, version]
    assert make(5, "engine", None, "t", "r", "j", 3, payload) == event


def test_a_version_that_an_upcaster_changes_is_not_read_as_the_present_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(UPCASTERS, ("RunObserved", 2), dict)
    monkeypatch.setitem(UPCASTERS, ("RunObserved", 3), codec.unchanged)
    assert codec._versions_as_now("RunObserved", 4) == range(3, 5)
    assert codec._versions_as_now("RunObserved", 1) == range(1, 2)


@pytest.mark.parametrize(("kind", "version"), [("FutureThing", 1), ("ValuePut", 9)])
def test_an_unknown_essential_event_is_refused_by_name(kind: str, version: int) -> None:
    row = Row(5, kind, version, True, "engine", None, None, "r", "j", None, b'{"new":1}')
    with pytest.raises(FutureLogError, match=f"{kind} of version {version}") as caught:
        decode(row, where="log.db position 7")
    assert caught.value.where == "log.db position 7"
    assert caught.value.remedy


@pytest.mark.parametrize(("kind", "version"), [("FutureThing", 1), ("RunObserved", 9)])
def test_an_unknown_event_that_is_not_essential_is_carried_as_it_is(kind: str, version: int) -> None:
    row = Row(5, kind, version, False, "engine", 1, "t", "r", "j", 3, b'{"new":1}')
    event = decode(row)
    assert isinstance(event, UnknownEvent)
    assert (event.name, event.version, event.payload) == (kind, version, b'{"new":1}')
    assert encode(event) == row


@pytest.mark.parametrize("payload", [b"{", b'{"outcome":"vanished"}', b"[]", None])
def test_a_payload_that_does_not_decode_is_damage_at_its_place(payload: bytes | None) -> None:
    row = Row(5, "RunEnded", 1, True, "engine", None, "t", None, "j", 3, payload)
    with pytest.raises(LogDamagedError, match="RunEnded") as caught:
        decode(row, where="log.db position 7")
    assert caught.value.where == "log.db position 7"


text = st.text(st.characters(codec="utf-8"))


@given(st.lists(st.tuples(text, st.one_of(st.none(), text), st.one_of(st.none(), st.binary())), min_size=1))
def test_the_preimage_of_the_chain_is_what_its_description_says(
    parts: list[tuple[str, str | None, bytes | None]],
) -> None:
    rows = [Row(-5, "Kind", 1, True, actor, None, None, job, job, 2**62, data) for actor, job, data in parts]
    digests = [payload_digest(row.payload, -(2**63)) for row in rows]
    body = [[*row[:-1], digest] for row, digest in zip(rows, digests, strict=True)]
    document = json.dumps(["u" * 32, 7, body], separators=(",", ":"), ensure_ascii=False)
    expected = hashlib.sha256(CHAIN_START + document.encode()).digest()
    assert chain(CHAIN_START, "u" * 32, 7, rows, digests) == expected


def test_a_payloads_digest_is_salted_and_absent_without_a_payload() -> None:
    assert payload_digest(None, 5) == ""
    assert payload_digest(b"x", 5) == hashlib.sha256((5).to_bytes(8, "big") + b"x").hexdigest()
    assert payload_digest(b"x", 5) != payload_digest(b"x", 6)
