"""Quantities and resources: what is read, reckoned and shown."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest

from datatask.schema.errors import CallerError
from datatask.schema.resources import Resources, ResourceType, parse_quantity, parse_size, to_nano


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


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1GiB", 1024**3),
        ("512MB", 512 * 10**6),
        (" 1.5 KiB ", 1536),
        ("2kB", 2000),
        ("2KB", 2000),
        ("2K", 2000),
        ("100B", 100),
        ("100", 100),
        ("2Gi", 2 * 1024**3),
        ("1e3", 1000),
        (4096, 4096),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str | int, number: int) -> None:
    """Of 1000s and of 1024s; what Kubernetes writes means what it means there."""
    assert parse_size(text) == number
    resources = Resources.parse(1, text, **{"ephemeral-storage": text})
    assert resources == Resources(1, text, 999_999_999, {"ephemeral-storage": number})
    assert resources.mem == number


@pytest.mark.parametrize("text", ["1gb", "GB", "-1 GB", "1 G B", "1GiBs", "", "1e3B", None, True])
def test_what_is_no_size_is_refused(text: object) -> None:
    """With the text, and what can be written."""
    with pytest.raises(CallerError, match=r"is no size.*512MB"):
        parse_size(text)  # type: ignore[arg-type]


def test_other_amounts_are_no_sizes() -> None:
    """A core is not counted in bytes."""
    with pytest.raises(CallerError, match="is not a quantity"):
        Resources(cpu="1GB")


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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("100m", "0.1"),
        ("1E", "1e18"),
        ("1E3", "1000"),
        ("1e3", "1000"),
        ("1Ei", 2**60),
        (".5", "0.5"),
        ("5.", "5"),
        ("+2", "2"),
        ("1e-10", "1e-9"),
        ("-1e-10", "-1e-9"),
        ("9007199254740993Ki", 2**63 - 1),
        ("1e999999", 2**63 - 1),
    ],
)
def test_quantities_are_what_the_api_server_makes_of_them(text: str, value: str | int) -> None:
    """Capped at what 63 bits hold, rounded up to a billionth."""
    assert parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["12Zi", "1e", "Ki", "1 Gi", "", "1mi", "1.2.3", "0x10", "1e3Ki", "１", "."])
def test_what_the_api_server_refuses_is_refused(text: str) -> None:
    """As the API server refuses it."""
    with pytest.raises(CallerError, match="is not a quantity"):
        parse_quantity(text)
