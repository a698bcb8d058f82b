"""What is kept of the values that an engine has just written: bounded, oldest first, and forgotten where the log is changed."""

import msgspec
import pytest

from datatask.engine.runtime.starting import ENTRY_BYTES, AtHand
from datatask.schema import events as e


def put(job: str, content: str = "") -> e.ValuePut:
    return e.ValuePut(at=0, repository="r", job=job, value=msgspec.Raw(content.encode()), origin="written")


def test_the_oldest_values_go_first_when_there_are_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datatask.engine.runtime.starting.BYTES_MAX", 3 * ENTRY_BYTES)
    kept = AtHand()
    kept.append(1, [put("a", "1"), put("b", "1"), put("c", "1")])
    assert list(kept.values) == [2, 3]
    kept.append(4, [put("d", "x" * 10_000)])
    assert list(kept.values) == []
    kept.append(5, [put("e", "1"), put("f", "1")])
    assert list(kept.values) == [5, 6]


def test_what_is_forgotten_or_read_twice_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datatask.engine.runtime.starting.BYTES_MAX", 2 * ENTRY_BYTES + 2)
    kept = AtHand()
    for _ in range(5):
        kept.add(1, put("a", "1"))
        kept.add(2, put("b", "1"))
    assert list(kept.values) == [1, 2]
    kept.forget([1, 7])
    kept.add(3, put("c", "1"))
    assert list(kept.values) == [2, 3]


def test_changes_without_a_value_are_known_but_are_no_values() -> None:
    kept = AtHand()
    gone = e.ValueDeleted(at=0, repository="r", job="a", origin="written")
    kept.append(1, [put("a"), gone, put("b", "1")])
    assert list(kept.values) == [3]
    assert kept.change(2) is gone
    assert kept.change(1) == put("a")
    assert kept.change(4) is None
    kept.forget([2])
    assert kept.change(2) is None
