"""Documents as BSON, and what stands beside."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import bson
import msgspec
import pytest

from datatask.adapters.store import mongo_documents
from datatask.adapters.store.mongo_documents import checked, content, joined, made, noted, parts, version_of
from datatask.schema.errors import InvalidValueError, StoreError
from datatask.schema.messages import Write
from datatask.schema.values import encode_value


def test_a_document_is_its_bson_with_the_job_as_its_id() -> None:
    new = made({"n": 1, "sub": {"z": [1, 2.5]}}, "a", "here")
    assert bson.decode(new.raw) == {"_id": "a", "n": 1, "sub": {"z": [1, 2.5]}}
    assert (new.version, parts(new)) == (version_of(new.raw), [])
    assert noted(bson.decode(new.raw)) is None
    assert made({"n": 2}, "a", "here").version != made({"n": 1}, "a", "here").version


@pytest.mark.parametrize(
    "document",
    [
        {"n": 2**70},
        {"n": dt.timedelta(seconds=1)},
        {"n": Decimal("1.5")},
        {"$set": {"n": 1}},
        {"datatask_beside": "mine"},
    ],
    ids=["integer", "duration", "decimal", "dollar", "note"],
)
def test_what_bson_does_not_hold_stands_beside_whole(document: dict[str, Any]) -> None:
    new = made(document, "a", "here")
    note = noted(bson.decode(new.raw))
    assert note is not None
    assert joined(note, [data for _, data in parts(new)], "here") == document
    assert all(name.startswith(note.prefix) for name, _ in parts(new))


def test_what_is_too_large_stands_beside_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongo_documents, "INLINE_MAX", 100)
    monkeypatch.setattr(mongo_documents, "PART_BYTES", 30)
    new = made({"text": "x" * 100}, "a", "here")
    found, note = parts(new), noted(bson.decode(new.raw))
    assert note is not None
    assert [len(data) for _, data in found] == [30, 30, 30, 21]
    assert sorted(found) == found
    assert joined(note, [data for _, data in found], "here") == {"text": "x" * 100}
    with pytest.raises(StoreError, match="parts of a large document are missing beside it"):
        joined(note, [data for _, data in found[1:]], "here a")


@pytest.mark.parametrize("document", [[1], "x", None, 1])
def test_what_is_no_mapping_is_refused_in_one_line(document: Any) -> None:
    with pytest.raises(InvalidValueError, match="a MongoDB document is a dict, not a") as caught:
        checked(document, "a", "here")
    assert "\n" not in str(caught.value)


def test_another_jobs_id_is_refused_and_the_own_one_is_left_out() -> None:
    assert checked({"_id": "a", "n": 1}, "a", "here") == {"n": 1}
    with pytest.raises(InvalidValueError, match="its _id is 'b'"):
        checked({"_id": "b"}, "a", "here")


def test_a_write_has_its_document_in_the_event_in_bytes_or_in_a_file(tmp_path: Path) -> None:
    text = encode_value({"n": 1})
    (tmp_path / "f").write_bytes(text)
    for how in ({"value": msgspec.Raw(text)}, {"data": text}, {"source": tmp_path / "f"}):
        assert content(Write(repository="r", job="a", **how), "here") == {"n": 1}
    with pytest.raises(InvalidValueError, match="bytes are no document"):
        content(Write(repository="r", job="a", data=b"\xff"), "here")
