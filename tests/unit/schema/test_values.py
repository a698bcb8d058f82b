"""Documents: what is accepted, what comes back, and what is refused by name."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datatask.schema.errors import CallerError
from datatask.schema.values import decode_value, encode_value

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text() | st.just("$date"), children, max_size=4)
    ),
    max_leaves=12,
)


@given(PLAIN)
def test_documents_come_back_as_they_were(document: object) -> None:
    """Any plain document, also one whose keys look like our own tags."""
    assert decode_value(encode_value(document)) == document


@pytest.mark.parametrize(
    "value",
    [
        dt.datetime(2024, 2, 29, 12, 0, 1, 5, tzinfo=dt.UTC),
        dt.datetime(2024, 2, 29),
        dt.date(2024, 2, 29),
        dt.timedelta(seconds=1.5),
        Decimal("1.10"),
        b"\x00\xff",
        math.inf,
        {"nested": [{"at": dt.date(2020, 1, 1)}]},
        {"$": {"$": 1}},
    ],
)
def test_rich_values_keep_their_types(value: object) -> None:
    """Dates, decimals and bytes are tagged in the JSON and come back as themselves."""
    found = decode_value(encode_value(value))
    assert found == value
    assert type(found) is type(value)


def test_tuples_become_lists() -> None:
    """As in YAML and JSON."""
    assert decode_value(encode_value((1, (2,)))) == [1, [2]]


@pytest.mark.parametrize(
    ("value", "part"),
    [({"a": [1, object()]}, "value.a[1]"), ({1: 2}, "the key 1"), ({"x": {1, 2}}, "value.x")],
)
def test_what_cannot_be_stored_is_named(value: object, part: str) -> None:
    """The message points at the part of the document."""
    with pytest.raises(CallerError, match=r".") as caught:
        encode_value(value)
    assert part in str(caught.value)
