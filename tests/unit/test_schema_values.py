"""Documents, ids and quantities: what is accepted, what comes back, and what is refused by name."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datatask.schema.errors import CallerError, InvalidJobError
from datatask.schema.ids import check_job, check_name, is_job
from datatask.schema.resources import Resources, ResourceType, parse_quantity, to_nano
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


@pytest.mark.parametrize("job", ["a", "A9", "a.b-c_d", "0" * 128, "json.decoder"])
def test_job_ids(job: str) -> None:
    """Letters, digits, dot, underscore and dash, alphanumeric at both ends."""
    assert check_job(job) == job


@pytest.mark.parametrize(
    "job",
    ["", ".", "..", "a/b", "../a", "-a", "a-", "_a", "a b", "a\n", "а", "０", "0" * 129, "a\x00", None, 5],
)
def test_everything_else_is_no_job_id(job: object) -> None:
    """Path tricks, look-alikes of other alphabets, and too long ones; also a `KeyError`, as in pydatatask."""
    assert not is_job(job)
    with pytest.raises(InvalidJobError, match="is not a job id"):
        check_job(job)  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        check_job(job)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "9a", "a b", "a/b", "x" * 129])
def test_names_are_checked(name: str) -> None:
    """Of tasks, links, quotas and pipelines."""
    with pytest.raises(CallerError, match="cannot name a task"):
        check_name(name, "task")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("100m", "0.1"),
        ("1.5", "1.5"),
        (".5", "0.5"),
        ("1k", "1000"),
        ("1Ki", "1024"),
        ("2Gi", str(2 * 1024**3)),
        ("2u", "0.000002"),
        ("3n", "0.000000003"),
        ("1e3", "1000"),
        ("1E3", "1000"),
        ("1E", str(10**18)),
        ("-2", "-2"),
        (4, "4"),
        (0.25, "0.25"),
    ],
)
def test_quantities_are_read_as_kubernetes_reads_them(text: str | float, number: str) -> None:
    """Including the exponent that looks like exa."""
    assert parse_quantity(text) == Decimal(number)


@pytest.mark.parametrize(
    "text", ["", "1 Gi", "Gi", "1gi", "1e", "0x1", "1.2.3", True, None, math.nan, "1Mi ", "١"]
)
def test_what_is_no_quantity_is_refused(text: object) -> None:
    """With the text in the message."""
    with pytest.raises(CallerError, match="is not a quantity"):
        parse_quantity(text)  # type: ignore[arg-type]


def test_nano_rounds_up() -> None:
    """What is finer than a billionth counts as one."""
    assert to_nano(Decimal("0.0000000001")) == 1
    assert to_nano(Decimal("0.1")) == 100_000_000


def test_resources_add_subtract_multiply() -> None:
    """Named amounts take part; launches default to 1 as in pydatatask."""
    one = Resources.parse("500m", "1Gi", 1, gpu=1)
    assert Resources() == Resources(Decimal(0), Decimal(0), 1)
    assert (one + one) == one * 2
    assert (one + one - one) == one
    assert hash(one) == hash(Resources.parse("0.5", 1024**3, 1, gpu="1"))
    assert one.to_amounts() == {"cpu": 500_000_000, "mem": 1024**3 * 10**9, "gpu": 10**9}


@pytest.mark.parametrize(
    ("request_", "excess"),
    [
        (Resources.parse(1, 1, 1), None),
        (Resources.parse(3, 1, 1), ResourceType.CPU),
        (Resources.parse(1, 9, 1), ResourceType.MEM),
        (Resources.parse(1, 1, 9), ResourceType.RATE),
        (Resources.parse(1, 1, 1, gpu=1), ResourceType.CUSTOM),
    ],
)
def test_excess_names_the_first_dimension(request_: Resources, excess: ResourceType | None) -> None:
    """Strictly more than the limit."""
    assert request_.excess(Resources.parse(2, 2, 2)) is excess


@pytest.mark.parametrize(
    ("amounts", "text"),
    [
        (Resources.parse("1500m", "2Gi", gpu=1), "cpu 1.5, mem 2Gi, gpu 1"),
        (Resources.parse(0, 1000, disk="3Ki"), "mem 1000, disk 3Ki"),
        (Resources(), "nothing"),
    ],
)
def test_amounts_are_told_as_they_are_written(amounts: Resources, text: str) -> None:
    assert str(amounts) == text
